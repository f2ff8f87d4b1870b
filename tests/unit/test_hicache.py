"""HiCache: an SGLang engine's own host memory, what stands behind it, and tiers that stand behind a tier."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from function import api, attachment, deployment, releases, tier
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import hierarchy
from function.backends.base import EnginePatch, Invalid, Refusal, Site, Tier
from function.engines import Engine, pod
from function.fn import run
from function.kube import ANNOTATION_PATCH, Manifest
from function.render import EXAMPLES, Rendered, load, request
from tests.lint.manifests import Context, lint
from tests.lint.schemas import schema_errors
from tests.unit import builders, stories
from tests.unit.stories import Story, engine_story, messages, state, tier_story

CLUSTER: Manifest = load(EXAMPLES / "lmcache-current" / "required.yaml")[0]
EIGHT_GPUS = Site(gpus_per_node=8)
# sha256("kvtier/modelplane-system/hosts") begins with 5ed4d, that of .../pool with c0066.
HOSTS, POOL = "kvtier-modelplane-system-hosts-5ed4d", "kvtier-modelplane-system-pool-c0066"


def tier_manifest(name: str = "hosts", **spec: Any) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": name, "namespace": "modelplane-system"},
        "spec": {"inferenceClusterRef": {"name": CLUSTER["metadata"]["name"]}, **spec},
    }


def hicache(l3: Manifest | None = None, **fields: Any) -> Manifest:
    size = {} if "ratio" in fields else {"hostMemoryGiBPerNode": 200}
    return {"backend": "HiCache", "hicache": {**size, **fields, **({"l3": l3} if l3 else {})}}


FILE = {"backend": "File", "file": {"claimName": "kv", "sizePerRank": "500Gi"}}
MOONCAKE: Manifest = {"mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}
BY_REF = {"tierRef": {"name": "pool"}}


def read(l3: Manifest | None = None, gpus: int | None = None, **fields: Any) -> Tier:
    extra = MOONCAKE if l3 and l3.get("backend") == "Mooncake" else {}
    spec = api.parse(TierSpec, tier_manifest(**hicache(l3, **fields), **extra)["spec"])
    return Tier("modelplane-system", "hosts", spec, releases.NEWEST, gpus)


def engine(*args: str, version: str = "0.5.23", kind: str = "SGLang", **fields: Any) -> Engine:
    image = f"lmsysorg/sglang:v{version}" if kind == "SGLang" else "vllm/vllm-openai:v0.33.0"
    spec = {"name": kind, "image": image, "args": ["--model-path=Qwen/Qwen3-32B", *args], **fields}
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


def attach(to: Tier, *args: str, site: Site = EIGHT_GPUS, **fields: Any) -> EnginePatch:
    return builders.attach(to, engine(*args, **fields), site)


def refuse(to: Tier, *args: str, **fields: Any) -> Refusal:
    return builders.refuse(to, engine(*args, **fields))


def env(patch: EnginePatch) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in patch.env}


# --- what an engine is told ---------------------------------------------------------------------------------------


def test_host_memory_alone_needs_nothing_else() -> None:
    patch = attach(read())
    assert list(patch.args) == [
        "--enable-hierarchical-cache",
        "--hicache-size=26",
        "--hicache-write-policy=write_through",
        "--hicache-io-backend=kernel",
        "--hicache-mem-layout=page_first",
    ]
    assert patch.connector == "HiCache"
    assert (patch.env, patch.mounts, patch.volumes, patch.notices) == ((), (), (), ())
    assert patch.labels == {"kv-offload.modelplane.ai/tier": HOSTS}
    assert len(patch.affinity) == 3


@pytest.mark.parametrize(
    ("gib", "gpus", "each"),
    [
        (200, 8, 26),  # 214.7 GB
        (800, 8, 107),  # 858.99 GB
        (8, 8, 1),  # 1.07 GB
        (1, 1, 1),
        (100, 3, 35),
    ],
)
def test_a_nodes_gib_become_whole_decimal_gb_for_each_rank(gib: int, gpus: int, each: int) -> None:
    patch = attach(read(hostMemoryGiBPerNode=gib), site=Site(gpus_per_node=gpus))
    assert f"--hicache-size={each}" in patch.args
    assert each * gpus * 1000**3 <= gib * 1024**3


def test_a_share_below_one_gb_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        Invalid, match=r"hostMemoryGiBPerNode \(is 7\) is less than 1 GB for each of 8 GPUs; set at .* 8"
    ):
        attach(read(hostMemoryGiBPerNode=7))


def test_without_known_gpus_the_tier_says_what_to_set() -> None:
    with pytest.raises(Invalid, match=r"placement.gpusPerNode is required with hicache.hostMemoryGiBPerNode"):
        attach(read(), site=Site())


def test_what_was_divided_by_first_counts_more_than_what_pools_are_now() -> None:
    assert "--hicache-size=53" in attach(read(gpus=4)).args


def test_a_ratio_needs_no_gpus() -> None:
    patch = attach(read(ratio=3), site=Site())
    assert patch.args[1] == "--hicache-ratio=3.0"


@pytest.mark.parametrize(
    ("policy", "written"),
    [
        ("WriteThrough", "write_through"),
        ("WriteThroughSelective", "write_through_selective"),
        ("WriteBack", "write_back"),
    ],
)
def test_the_write_policy_is_written_as_sglang_spells_it(policy: str, written: str) -> None:
    assert f"--hicache-write-policy={written}" in attach(read(writePolicy=policy)).args


FA3 = ("direct", "page_first_direct")
KERNEL = ("kernel", "page_first")


@pytest.mark.parametrize(
    ("args", "version", "layout"),
    [
        ((), "0.5.5", KERNEL),
        (("--attention-backend=fa3",), "0.5.5", FA3),
        (("--decode-attention-backend=fa3",), "0.5.13", FA3),
        (("--decode-attention-b", "fa3"), "0.5.13", FA3),
        (("--attention-backend=fa3", "--decode-attention-backend=flashinfer"), "0.5.13", KERNEL),
        (("--prefill-attention-backend=fa3",), "0.5.13", KERNEL),
        (("--attention-backend=flashinfer",), "0.5.13", KERNEL),
        (("--attention-backend=fa3",), "0.5.14", KERNEL),
        (("--decode-attention-backend=fa3",), "0.5.23", KERNEL),
    ],
)
def test_the_users_decode_kernel_is_not_swapped(args: tuple[str, ...], version: str, layout: tuple[str, str]) -> None:
    patch = attach(read(), *args, version=version)
    assert list(patch.args[-2:]) == [f"--hicache-io-backend={layout[0]}", f"--hicache-mem-layout={layout[1]}"]


# --- who is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fields", "reason", "fix"),
    [
        (("--disable-radix-cache",), {}, "RadixCacheDisabled", "remove it"),
        (("--disable-radix-c",), {}, "RadixCacheDisabled", "remove it"),
        (("--disaggregation-mode", "decode"), {}, "DecodeNotAttached", "remove it from this one"),
        (("--disaggregation-mode=decode",), {}, "DecodeNotAttached", "remove it from this one"),
        ((), {"kind": "vLLM"}, "EngineNotSupported", "choose a tier of backend LMCache, Mooncake or Nixl"),
        ((), {"version": "0.5.4"}, "EngineVersionUnsupported", "older than 0.5.5"),
        ((), {"image": "lmsysorg/sglang:latest"}, "EngineVersionUnknown", "set engine.version, as in 0.5.23"),
    ],
)
def test_an_engine_that_cannot_have_it_is_told_why(
    args: tuple[str, ...], fields: Manifest, reason: str, fix: str
) -> None:
    for to in (read(), read(FILE)):
        refusal = refuse(to, *args, **fields)
        assert refusal.reason == reason
        assert fix in refusal.message


def test_a_prefill_engine_is_attached() -> None:
    attach(read(FILE), "--disaggregation-mode=prefill")


LORA = "--lora-paths"


def test_adapters_share_no_pages_behind_host_memory() -> None:
    refusal = refuse(read(FILE), LORA, "a=/a", version="0.5.19")
    assert refusal.reason == "LoRANotIsolated"
    assert "0.5.20" in refusal.message
    attach(read(FILE), LORA, "a=/a", version="0.5.20")
    # In its own memory, an engine tells them apart.
    attach(read(), LORA, "a=/a", version="0.5.5")


@pytest.mark.parametrize(
    ("store", "args", "first"),
    [
        ("mooncake", "--pp-size=2", "0.5.8"),
        ("mooncake", "--attn-cp-size=2", "0.5.11"),
        ("mooncake", "--enable-nsa-prefill-context-parallel", "0.5.11"),
        ("file", "--pipeline-parallel-size=2", "0.5.10"),
        ("file", "--attention-context-parallel-size=2", "0.5.14"),
    ],
)
def test_ranks_that_hold_different_kv_are_not_attached_where_keys_do_not_tell_them_apart(
    store: str, args: str, first: str
) -> None:
    def by(version: str) -> EnginePatch | Refusal:
        given = hierarchy.Store(store)
        return hierarchy.attach(read(), engine(args, version=version), hierarchy.Memory(size=1), "WriteThrough", given)

    major, minor, patch = first.split(".")
    before = by(f"{major}.{minor}.{int(patch) - 1}")
    assert isinstance(before, Refusal)
    assert before.reason == "RanksNotIsolated"
    assert first in before.message
    assert isinstance(by(first), EnginePatch)


@pytest.mark.parametrize("args", ["--pp-size=2", "--enable-prefill-cp"])
def test_nixl_never_tells_stages_and_slices_apart(args: str) -> None:
    refusal = hierarchy.attach(read(), engine(args), hierarchy.Memory(size=1), "WriteThrough", hierarchy.Store("nixl"))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "RanksNotIsolated"
    assert "newer" not in refusal.message


# --- files --------------------------------------------------------------------------------------------------------


def test_files_are_in_a_folder_that_the_kubelet_makes() -> None:
    patch = attach(read(FILE))
    assert list(patch.args[-2:]) == ["--hicache-storage-backend=file", "--hicache-storage-prefetch-policy=timeout"]
    assert env(patch) == {
        "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": "/var/lib/kv-offload",
        "SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE": "536870912000",
    }
    (mount,) = patch.mounts
    assert mount["mountPath"] == "/var/lib/kv-offload"
    assert mount["subPath"].startswith(f"{HOSTS}/")
    assert list(patch.volumes) == [{"name": mount["name"], "persistentVolumeClaim": {"claimName": "kv"}}]


def test_an_engine_that_would_fill_the_claim_is_refused() -> None:
    refusal = refuse(read(FILE), version="0.5.13")
    assert refusal.reason == "EngineTooOld"
    assert "0.5.14" in refusal.message
    attach(read(FILE), version="0.5.14")


def folder(*args: str, **fields: Any) -> str:
    (mount,) = attach(read(FILE), *args, **fields).mounts
    path: str = mount["subPath"]
    return path


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        (("--tp=2",), {}),
        (("--tensor-parallel-size", "2"), {}),
        (("--pp-size=2",), {}),
        (("--enable-dp-attention", "--tp=2", "--dp-size=2"), {}),
        (("--attn-dp-size=2", "--tp=2"), {}),
        (("--kv-cache-dtype=fp8_e5m2",), {}),
        (("--kv-cache-d=fp8_e5m2",), {}),
        (("--quantization=fp8",), {}),
        (("--revision=v2",), {}),
        ((), {"version": "0.5.22"}),
        ((), {"env": [{"name": "HF_ENDPOINT", "value": "https://mirror"}]}),
        (("--enable-lora",), {}),
    ],
)
def test_what_computes_or_splits_kv_otherwise_has_another_folder(args: tuple[str, ...], fields: Manifest) -> None:
    assert folder(*args, **fields) != folder()
    # Twice the same is the same.
    assert folder(*args, **fields) == folder(*args, **fields)


@pytest.mark.parametrize("args", [("--tp=2",), ("--pp-size=2",), ("--tp=4",)])
def test_what_is_vouched_for_is_still_split_as_it_is(args: tuple[str, ...]) -> None:
    vouched = {"kvCache": {"tierRef": {"name": "hosts"}, "identity": "qwen"}}
    assert folder(*args, **vouched) != folder(**vouched)
    assert folder("--dtype=half", **vouched) == folder(**vouched)


@pytest.mark.parametrize(
    "args",
    [("--port=8000",), ("--tp=1",), ("--dp-size=2",), ("--served-model-name=qwen",), ("--mem-fraction-static=0.8",)],
)
def test_what_leaves_kv_alone_shares(args: tuple[str, ...]) -> None:
    assert folder(*args) == folder()


# --- what the tier runs -------------------------------------------------------------------------------------------


def tiers_story(l3: Manifest | None = None, behind: Manifest | None = None, **fields: Any) -> Story:
    """Begin the story of a HiCache tier, with the tier that its tierRef names, where there is one."""
    story = Story(tier_manifest(**{**hicache(l3, **fields), "placement": {"gpusPerNode": 8}}), [CLUSTER])
    if behind:
        story.required["pool"] = behind
    return story


def pool(**spec: Any) -> Manifest:
    """A Mooncake tier that has settled."""
    settled = Story(tier_manifest("pool", backend="Mooncake", **{**MOONCAKE, **spec}), [CLUSTER]).settle()
    return settled.composite


def test_a_tier_that_runs_nothing_is_ready() -> None:
    for l3 in (None, FILE):
        rendered = tiers_story(l3).render()
        assert rendered.composed == {}
        conditions = {c["type"]: (c["status"], c["reason"]) for c in rendered.composite["status"]["conditions"]}
        assert conditions[tier.CLUSTER_REACHABLE] == ("True", "Reachable")
        assert conditions[tier.CREDENTIALS_RESOLVED] == ("True", "NotRequired")
        assert conditions[tier.CONTROL_PLANE_READY] == ("True", "NotNeeded")
        assert conditions[tier.AGENTS_AVAILABLE] == ("True", "NotNeeded")
        assert conditions[tier.AGENTS_READY] == ("True", "NotNeeded")
        assert conditions[tier.ROLLED_OUT] == ("True", "RolledOut")
        status = rendered.composite["status"]
        assert (status["agents"], status["controlPlane"]) == ("n/a", "n/a")
        assert status["memory"] == {"hostMemoryGiB": 200, "gpusPerNode": 8, "perRankGB": 26}


@pytest.mark.parametrize("l3", [None, FILE])
def test_crossplane_is_told_that_it_is_ready(l3: Manifest | None) -> None:
    story = tiers_story(l3)
    rsp = run(request(story.composite, (), [("cluster", CLUSTER)]))
    assert rsp.desired.composite.ready == 1


def test_gpus_are_latched_from_the_pools_that_the_cluster_had_first() -> None:
    cluster = copy.deepcopy(CLUSTER)

    def pools(count: int) -> None:
        devices = [{"driver": "gpu.nvidia.com", "count": count}]
        cluster["status"]["gpuPools"] = [{"name": "a", "devices": devices}]

    story = Story(tier_manifest(**hicache()), [cluster])
    pools(4)
    story.required["InferenceCluster"] = cluster
    assert story.render().composite["status"]["memory"]["perRankGB"] == 53
    pools(8)
    later = story.render()
    assert later.composite["status"]["memory"] == {"hostMemoryGiB": 200, "gpusPerNode": 4, "perRankGB": 53}
    assert state(later, tier.ACCEPTED) == ("True", "GPUPoolsChanged")


def test_unknown_gpus_are_said_at_the_tier() -> None:
    rendered = Story(tier_manifest(**hicache()), [CLUSTER]).render()
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    assert "spec.placement.gpusPerNode" in rendered.condition(tier.ACCEPTED)["message"]


def test_a_ratio_leaves_nothing_to_budget() -> None:
    rendered = tiers_story(ratio=2).render()
    assert "memory" not in rendered.composite["status"]


def test_an_inline_mooncake_runs_as_in_a_tier_of_its_own() -> None:
    story = tier_story(example="hicache-mooncake")
    rendered = story.settle()
    kinds = sorted(m["kind"] for m in rendered.manifests)
    assert kinds.count("DaemonSet") == 1
    assert kinds.count("Deployment") == 1
    assert state(rendered, tier.AGENTS_READY) == ("True", "AllReady")
    memory = rendered.composite["status"]["memory"]
    assert (memory["cacheGiB"], memory["hostMemoryGiB"], memory["perRankGB"]) == (400, 800, 107)


# --- tiers behind a tier ------------------------------------------------------------------------------------------


def test_a_tier_is_no_better_than_the_one_behind_it() -> None:
    ready = tiers_story(BY_REF, pool()).render()
    assert [m["kind"] for m in ready.composed.values()] == ["Usage"]  # nothing for the cluster
    assert state(ready, tier.CONTROL_PLANE_READY) == ("True", "Ready")
    assert state(ready, tier.AGENTS_READY) == ("True", "AllReady")
    begun = Story(tier_manifest("pool", backend="Mooncake", **MOONCAKE), [CLUSTER]).render().composite
    waiting = tiers_story(BY_REF, begun).render()
    assert state(waiting, tier.CONTROL_PLANE_READY) == ("False", "Creating")
    assert state(waiting, tier.AGENTS_AVAILABLE) == ("False", "Creating")
    assert waiting.condition(tier.AGENTS_AVAILABLE)["message"].startswith("KVOffloadTier modelplane-system/pool: ")
    # A tier that was written a moment ago has no conditions yet.
    written = tiers_story(BY_REF, tier_manifest("pool", backend="Mooncake", **MOONCAKE)).render()
    assert state(written, tier.CONTROL_PLANE_READY) == ("Unknown", "Waiting")


ELSEWHERE = {"inferenceClusterRef": {"name": "other"}}


def test_a_secret_that_the_tier_behind_lacks_is_said_at_the_tier_and_at_its_engines() -> None:
    behind = pool()
    (condition,) = (c for c in behind["status"]["conditions"] if c["type"] == tier.CREDENTIALS_RESOLVED)
    condition |= {
        "status": "False",
        "reason": "SecretNotFound",
        "message": "Secret modelplane-system/ca does not exist",
    }
    rendered = tiers_story(BY_REF, behind).render()
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "SecretNotFound")
    attached = engines_story(BY_REF, behind).render().condition(attachment.TIER_ATTACHED)
    assert attached["status"] == "True"
    assert "Secret modelplane-system/ca does not exist" in attached["message"]


# What is wrong with the tier behind, and the reason that both the HiCache tier and its engines give.
UNUSABLE = [
    (None, "L3NotFound"),
    (tier_manifest("pool", backend="Mooncake", mooncake={}), "L3Invalid"),
    (tier_manifest("pool", **hicache()), "L3NotSupported"),
    (tier_manifest("pool", backend="LMCache", lmcache={"cpuTierGiBPerNode": 1}), "L3NotSupported"),
    (tier_manifest("pool", backend="Mooncake", **MOONCAKE, **ELSEWHERE), "L3OnOtherCluster"),
    (tier_manifest("pool", backend="Mooncake", **MOONCAKE, targetNamespace="kv"), "L3InOtherNamespace"),
]
IDS = ["absent", "invalid", "HiCache", "LMCache", "another cluster", "another namespace"]


@pytest.mark.parametrize(("behind", "reason"), UNUSABLE, ids=IDS)
def test_a_tier_behind_that_cannot_be_used_is_named(behind: Manifest | None, reason: str) -> None:
    rendered = tiers_story(BY_REF, behind).render()
    assert state(rendered, tier.CONTROL_PLANE_READY) == ("False", reason)
    assert "modelplane-system/pool" in rendered.condition(tier.CONTROL_PLANE_READY)["message"]
    assert any(m.startswith(f"warning: {tier.CONTROL_PLANE_READY}: ") for m in messages(rendered))


def test_a_tier_is_not_behind_itself() -> None:
    rendered = tiers_story({"tierRef": {"name": "hosts"}}).render()
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    assert "names this very tier" in rendered.condition(tier.ACCEPTED)["message"]


def test_a_tier_behind_that_is_not_read_yet_is_waited_for() -> None:
    story = tiers_story(BY_REF)
    rsp = run(request(story.composite, (), [("cluster", CLUSTER)]))
    conditions = {c.type: (c.status, c.reason) for c in rsp.conditions}
    assert conditions[tier.CONTROL_PLANE_READY] == (1, "Waiting")
    assert rsp.desired.composite.ready == 2
    assert rsp.requirements.resources["l3"].match_name == "pool"
    assert not [r for r in rsp.results if r.severity == 1]


# --- engines, through a whole story -------------------------------------------------------------------------------


def deployment_manifest(**kv_cache: Any) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen", "namespace": "chat"},
        "spec": {
            "engine": {
                "name": "SGLang",
                "image": "lmsysorg/sglang:v0.5.23",
                "args": ["--model-path=Qwen/Qwen3-32B", "--tp", "2"],
                "kvCache": {"tierRef": {"name": "hosts"}, **kv_cache},
            }
        },
    }


def engines_story(l3: Manifest | None, behind: Manifest | None = None, **kv_cache: Any) -> Story:
    """Begin the story of an engine whose HiCache tier has settled."""
    hosts = tiers_story(l3, behind).settle().composite
    story = Story(deployment_manifest(**kv_cache), [CLUSTER, hosts])
    if behind:
        story.required["pool"] = behind
    return story


def args(rendered: Rendered) -> list[str]:
    found: list[str] = stories.pod(rendered)["spec"]["containers"][0]["args"]
    return found


def sound(rendered: Rendered, *others: Manifest) -> None:
    """Check what lands on the cluster, beside what else is there."""
    manifests = [*rendered.manifests, *others]
    assert [error for manifest in manifests for error in schema_errors(manifest)] == []
    assert lint(manifests, Context(external=frozenset({"PersistentVolumeClaim/kv"}))) == []


def test_an_engine_with_host_memory_alone_becomes_ready() -> None:
    story = engines_story(None)
    settled = story.settle()
    assert args(settled) == [
        "--model-path=Qwen/Qwen3-32B",
        "--tp",
        "2",
        "--host=0.0.0.0",
        "--enable-hierarchical-cache",
        "--hicache-size=26",
        "--hicache-write-policy=write_through",
        "--hicache-io-backend=kernel",
        "--hicache-mem-layout=page_first",
    ]
    assert settled.composite["status"]["kvCache"] == {"tier": "modelplane-system/hosts", "connector": "HiCache"}
    assert settled.composite["status"]["endpoint"].endswith(":30000")
    assert state(settled, deployment.ENGINE_READY) == ("True", "Ready")
    resources = stories.pod(settled)["spec"]["containers"][0]["resources"]
    # Two ranks of 26 GB.
    assert resources == {"requests": {"memory": "49592Mi"}, "limits": {"nvidia.com/gpu": "2"}}
    sound(settled)
    story.happen()
    assert story.render().composed == settled.composed


def test_an_engine_with_files_mounts_its_folder() -> None:
    rendered = engines_story(FILE).render()
    assert [v for v in stories.pod(rendered)["spec"]["volumes"] if "persistentVolumeClaim" in v] == [
        {"name": "kv-files", "persistentVolumeClaim": {"claimName": "kv"}}
    ]
    sound(rendered)


def test_an_engine_reaches_the_pool_of_the_tier_behind_its_own() -> None:
    behind = pool()
    rendered = engines_story(BY_REF, behind).render()
    assert args(rendered)[-3:-1] == [
        "--hicache-storage-backend=mooncake",
        "--hicache-storage-prefetch-policy=timeout",
    ]
    _, extra = args(rendered)[-1].split("=", 1)
    assert list(json.loads(extra)) == ["extra_backend_tag"]
    template = stories.pod(rendered)
    variables = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
    assert variables["MOONCAKE_MASTER"] == f"{POOL}-master.default.svc:50051"
    # Whom the pool's NetworkPolicies let in.
    assert template["metadata"]["labels"]["kv-offload.modelplane.ai/tier"] == POOL
    assert rendered.composite["status"]["kvCache"]["tier"] == "modelplane-system/hosts"
    sound(rendered, *Story(behind, [CLUSTER]).render().manifests)


FILES_OF_NODES = {"storage": {"cpuTierGiBPerNode": 8, "fs": {"hostPath": {"path": "/kv"}, "sizePerNode": "1Ti"}}}


def test_an_engine_reaches_the_files_of_a_nixl_tier_with_its_own_tiers_memory() -> None:
    behind = Story(tier_manifest("pool", backend="Nixl", nixl=FILES_OF_NODES), [CLUSTER])
    behind.composite["spec"]["placement"] = {"gpusPerNode": 8}
    rendered = engines_story(BY_REF, behind.settle().composite).render()
    assert "--hicache-storage-backend=nixl" in args(rendered)
    assert "--hicache-size=26" in args(rendered)
    assert stories.pod(rendered)["metadata"]["labels"]["kv-offload.modelplane.ai/tier"] == POOL


def test_a_nixl_store_of_the_tiers_own_has_hicaches_memory() -> None:
    story = tiers_story({"backend": "Nixl"})
    story.composite["spec"]["nixl"] = FILES_OF_NODES
    settled = story.settle()
    assert settled.composite["status"]["memory"] == {"hostMemoryGiB": 200, "gpusPerNode": 8, "perRankGB": 26}
    rendered = Story(deployment_manifest(), [CLUSTER, settled.composite]).render()
    assert "--hicache-storage-backend=nixl" in args(rendered)
    assert stories.pod(rendered)["metadata"]["labels"]["kv-offload.modelplane.ai/tier"] == HOSTS


def test_an_engine_reaches_the_pool_of_its_own_tier() -> None:
    story = engine_story(example="hicache-mooncake")
    rendered = story.settle()
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "Attached")
    assert any(a.startswith('--hicache-storage-backend-extra-config={"extra_backend_tag":') for a in args(rendered))
    sound(rendered, *tier_story(example="hicache-mooncake").render().manifests)


@pytest.mark.parametrize(("behind", "reason"), UNUSABLE, ids=IDS)
def test_an_engine_waits_where_the_tier_behind_cannot_be_used(behind: Manifest | None, reason: str) -> None:
    rendered = engines_story(BY_REF, behind).render()
    assert rendered.composed == {}
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", reason)
    assert "waits for it" in rendered.condition(attachment.TIER_ATTACHED)["message"]
    without = engines_story(BY_REF, behind, onUnavailable="ServeWithout").render()
    assert "--enable-hierarchical-cache" not in args(without)


@pytest.mark.parametrize(("behind", "reason"), UNUSABLE, ids=IDS)
def test_an_attached_engine_keeps_its_attachment_when_the_tier_behind_is_lost(
    behind: Manifest | None, reason: str
) -> None:
    story = engines_story(BY_REF, pool())
    before = story.settle()
    story.happen()
    del story.required["pool"]
    if behind:
        story.required["pool"] = behind
    after = story.render()
    assert stories.specs(after) == stories.specs(before)
    assert state(after, attachment.TIER_ATTACHED) == ("True", reason)


def test_an_engine_is_never_composed_before_the_tier_behind_is_read() -> None:
    story = engines_story(BY_REF, pool())
    hosts = story.required["KVOffloadTier"]
    rsp = run(request(story.composite, (), [("tier", hosts), ("cluster", CLUSTER)]))
    assert not rsp.desired.resources
    assert {c.type: c.reason for c in rsp.conditions}[attachment.TIER_ATTACHED] == "Waiting"
    assert not [r for r in rsp.results if r.severity == 1]
    # Nor does one that runs change.
    story.settle()
    story.happen()
    kept = run(request(story.composite, story.observed, [("tier", hosts), ("cluster", CLUSTER)]))
    assert len(kept.desired.resources) == len(story.observed)


@pytest.mark.parametrize(
    ("name", "change", "stays"),
    [
        ("its arguments", lambda e: e["args"].append("--port=8000"), True),
        ("its TP", lambda e: e["args"].append("--tp=4"), False),
        ("its version", lambda e: e.update(image="lmsysorg/sglang:v0.5.22"), False),
        ("its model", lambda e: e["args"].append("--model-path=Qwen/Qwen3-8B"), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kept_attachment_never_serves_an_engine_with_other_pages(
    name: str, change: Callable[[Manifest], None], stays: bool
) -> None:
    story = engines_story(BY_REF, pool())
    before = story.settle()
    story.happen()
    del story.required["pool"]
    change(story.composite["spec"]["engine"])
    after = story.render()
    assert (stories.specs(after) != stories.specs(before)) is stays, name
    latched = {k: m["metadata"]["annotations"].get(ANNOTATION_PATCH) for k, m in after.composed.items()}
    assert latched == {k: m["metadata"]["annotations"].get(ANNOTATION_PATCH) for k, m in before.composed.items()}


@pytest.mark.parametrize(
    "flag",
    [
        "--enable-hierarchical-cache",
        "--enable-hic",
        "--hicache-ratio=2",
        "--hicache-storage-backend=file",
        "--enable-lmcache",
        "--radix-cache-backend=flexkv",
        "--enable-unified-cache-external-linker",
    ],
)
def test_a_cache_that_the_user_wired_is_left_alone(flag: str) -> None:
    story = engines_story(BY_REF, pool())
    story.composite["spec"]["engine"]["args"].append(flag)
    rendered = story.render()
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "UserConfigured")
    assert args(rendered)[-1] == "--host=0.0.0.0"
