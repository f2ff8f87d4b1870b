"""What an engine's own flags, variables and pods rule out is told before it starts, with the fix."""

from collections.abc import Mapping
from typing import Any

import pytest

from function import api, attachment, deployment, releases
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import EnginePatch, Refusal, Site, Tier
from function.engines import Engine, pod
from function.kube import Manifest
from tests.unit.stories import engine_story, specs, state

LMCACHE: Manifest = {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64, "mode": "Multiprocess"}}
AUTO: Manifest = {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}}
IN_PROCESS: Manifest = {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64, "mode": "InProcess"}}
MOONCAKE: Manifest = {"backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}
FS: Manifest = {"fs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}}
OBJ: Manifest = {"obj": {"bucket": "kv-cache", "endpoint": "http://minio:9000", "secretRef": {"name": "keys"}}}
FILES: Manifest = {"backend": "Nixl", "nixl": {"storage": {"cpuTierGiBPerNode": 64, **FS}}}
OBJECTS: Manifest = {"backend": "Nixl", "nixl": {"storage": {"cpuTierGiBPerNode": 64, **OBJ}}}
MOVING: Manifest = {"backend": "Nixl", "nixl": {"p2p": {}}}
HICACHE: Manifest = {"backend": "HiCache", "hicache": {"hostMemoryGiBPerNode": 200}}
BY_FILE: Manifest = {
    "backend": "HiCache",
    "hicache": {
        "hostMemoryGiBPerNode": 200,
        "l3": {"backend": "File", "file": {"claimName": "kv", "sizePerRank": "500Gi"}},
    },
}
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
VLLM, SGLANG = "0.33.0", "0.5.23"


def engine(
    *args: str,
    kind: str = "vLLM",
    version: str = "",
    env: Mapping[str, str] | None = None,
    secret: str = "",
    pods: int = 1,
) -> Engine:
    """See an engine with a vouched identity, a role, and these words and variables, in so many pods."""
    # Of which nobody knows what libraries they hold.
    image = {"vLLM": "registry.example/team/vllm", "SGLang": "registry.example/team/sglang"}[kind]
    variables: list[Manifest] = [{"name": name, "value": value} for name, value in (env or {}).items()]
    if secret:
        variables.append({"name": secret, "valueFrom": {"configMapKeyRef": {"name": "torch", "key": "conf"}}})
    container = {
        "image": f"{image}:v{version or {'vLLM': VLLM, 'SGLang': SGLANG}[kind]}",
        "args": ["--model=Qwen/Qwen3-32B" if kind == "vLLM" else "--model-path=Qwen/Qwen3-32B", *args],
        "env": variables,
    }
    said = pod.Said(owner=("ml", "chat"), identity="qwen", role="Prefill", pods=pods)
    return pod.view(pod.KINDS[kind], container, said)


def ask(spec: Manifest, which: Engine) -> EnginePatch | Refusal:
    """Ask a tier with this spec for what attaches an engine on nodes of eight GPUs."""
    read = api.parse(TierSpec, {"inferenceClusterRef": {"name": "eu-h100"}, **spec})
    tier = Tier("modelplane-system", "shared", read, releases.RELEASES["2026.11"])
    return of(read).attach(tier, Site(gpus_per_node=8), which)


def refused(spec: Manifest, which: Engine, reason: str = "EngineIncompatible") -> Refusal:
    """Ask, and expect a refusal for this reason."""
    answer = ask(spec, which)
    assert isinstance(answer, Refusal), answer
    assert answer.reason == reason, answer
    return answer


def attached(spec: Manifest, which: Engine) -> EnginePatch:
    """Ask, and expect to be attached."""
    answer = ask(spec, which)
    assert isinstance(answer, EnginePatch), answer
    return answer


# --- chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "chunk", "fits"),
    [
        ([], 256, True),
        (["-dcp", "3"], 256, True),
        (["--block-size=16"], 256, True),
        (["--block-size", "128", "-dcp", "2"], 256, True),
        (["--block_size=256"], 256, True),
        (["--block-size=auto"], 256, True),
        (["--block-size=96"], 256, False),
        (["--block-size=512"], 256, False),
        (["--block-size=128", "--decode-context-parallel-size=4"], 256, False),
        (["--block-size=128", "-dcp", "4"], 512, True),
        (["--block-size=96"], 384, True),
    ],
)
def test_chunks_hold_whole_blocks(args: list[str], chunk: int, fits: bool) -> None:
    spec = {"backend": "LMCache", "lmcache": {**LMCACHE["lmcache"], "chunkSize": chunk}}
    which = engine(*args)
    if fits:
        assert attached(spec, which).connector == "LMCacheMPConnector"
    else:
        refusal = refused(spec, which)
        assert f"--block-size {which.line.value('--block-size')}" in refusal.message
        assert f"lmcache.chunkSize (is {chunk})" in refusal.message
        assert refusal.rules_out == ["LMCacheMPConnector"]


def test_in_scaled_blocks_the_message_counts_tokens() -> None:
    message = refused(LMCACHE, engine("--block-size=128", "-dcp", "4")).message
    assert message.startswith(
        "engine.args set --block-size 128, times --decode-context-parallel-size 4, 512 tokens, of which the tier's "
        "lmcache.chunkSize (is 256) is no multiple; set one that divides 256, or a tier's lmcache.chunkSize that is a "
        "multiple of 512"
    )


@pytest.mark.parametrize("args", [["--block-size=96"], ["--enable-sleep-mode"], ["--enable-cumem-allocator"]])
def test_auto_attaches_in_process_what_cannot_speak_to_an_agent_and_says_why(args: list[str]) -> None:
    patch = attached(AUTO, engine(*args))
    assert patch.connector == "LMCacheConnectorV1"
    unused = [n for n in patch.notices if n.type == attachment.TIER_UNUSED]
    assert [n.reason for n in unused] == ["EngineIncompatible"]
    assert args[0].partition("=")[0] in unused[0].message
    assert "Auto would attach in process" in refused(LMCACHE, engine(*args)).message


# --- GPU memory ---------------------------------------------------------------------------------------------------

EVERYWHERE = [LMCACHE, AUTO, IN_PROCESS, MOONCAKE, FILES, OBJECTS, MOVING]


@pytest.mark.parametrize("spec", EVERYWHERE)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512, expandable_segments: True"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:true"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:1"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:512"),
        ("PYTORCH_HIP_ALLOC_CONF", "expandable_segments:True"),
    ],
)
def test_expandable_segments_are_refused_in_every_spelling(spec: Manifest, name: str, value: str) -> None:
    message = refused(spec, engine(env={name: value})).message
    assert f"engine.env sets {name}={value}," in message
    assert "remove expandable_segments" in message
    assert "Auto would" not in message


@pytest.mark.parametrize("spec", EVERYWHERE)
@pytest.mark.parametrize(
    "value", ["", "expandable_segments:False", "max_split_size_mb:512", "no_expandable_segments:True", "True"]
)
def test_what_else_torch_is_told_is_its_own(spec: Manifest, value: str) -> None:
    assert attached(spec, engine(env={"PYTORCH_CUDA_ALLOC_CONF": value}))


@pytest.mark.parametrize("spec", EVERYWHERE)
def test_a_value_that_is_not_in_the_spec_rules_out_nothing(spec: Manifest) -> None:
    assert attached(spec, engine(secret="PYTORCH_CUDA_ALLOC_CONF"))


@pytest.mark.parametrize("spec", [IN_PROCESS, AUTO, MOONCAKE, FILES, OBJECTS, MOVING])
def test_vllms_own_allocator_lifts_it(spec: Manifest) -> None:
    assert attached(spec, engine("--enable-cumem-allocator", env=EXPANDABLE))
    refused(spec, engine("--enable-cumem-allocator", "--no-enable-cumem-allocator", env=EXPANDABLE))
    assert "add --enable-cumem-allocator" in refused(spec, engine(env=EXPANDABLE)).message


@pytest.mark.parametrize("switch", ["--enable-cumem-allocator", "--enable-sleep-mode", "--enable_sleep_mode"])
def test_nothing_lifts_it_where_memory_is_shared_with_an_agent(switch: str) -> None:
    assert "PYTORCH_CUDA_ALLOC_CONF" in refused(LMCACHE, engine(switch, env=EXPANDABLE)).message
    assert f"engine.args set {switch.replace('_', '-')}," in refused(LMCACHE, engine(switch)).message


@pytest.mark.parametrize(
    ("spec", "version", "starts"),
    [
        (IN_PROCESS, "0.11.0", True),
        (IN_PROCESS, "0.20.2", True),
        (IN_PROCESS, "0.21.0", False),
        (MOVING, "0.13.0", False),
        (MOVING, "0.20.2", False),
    ],
)
def test_before_vllm_looked_only_registered_memory_is_a_matter(
    spec: Manifest,
    version: str,
    starts: bool,
) -> None:
    which = engine(version=version, env=EXPANDABLE)
    if starts:
        assert attached(spec, which)
    else:
        assert "--enable-cumem-allocator" not in refused(spec, which).message


# --- sleep --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "version", "sleeps"),
    [
        (IN_PROCESS, "0.11.0", True),
        (IN_PROCESS, "0.33.0", True),
        (FILES, "0.33.0", True),
        (OBJECTS, "0.33.0", True),
        (MOVING, "0.33.0", True),
        (MOVING, "0.32.0", False),
        (MOVING, "0.13.0", False),
        (MOONCAKE, "0.22.0", False),
        (MOONCAKE, "0.33.0", False),
        (LMCACHE, "0.33.0", False),
    ],
)
def test_an_engine_may_sleep_where_its_connector_wakes(
    spec: Manifest,
    version: str,
    sleeps: bool,
) -> None:
    asleep = engine("--enable-sleep-mode", version=version)
    if sleeps:
        assert attached(spec, asleep)
    else:
        assert "engine.args set --enable-sleep-mode," in refused(spec, asleep).message
    assert attached(spec, engine("--enable-sleep-mode", "--no-enable-sleep-mode", version=version))


def test_sglang_may_save_memory() -> None:
    for spec in (HICACHE, MOONCAKE, FILES):
        assert attached(spec, engine("--enable-memory-saver", kind="SGLang", env=EXPANDABLE))


# --- the hybrid KV cache manager ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "version", "starts"),
    [
        (IN_PROCESS, "0.11.0", True),
        (IN_PROCESS, "0.13.0", False),
        (IN_PROCESS, "0.33.0", False),
        (LMCACHE, "0.33.0", True),
        (MOVING, "0.17.1", False),
        (MOVING, "0.18.0", True),
        (MOONCAKE, "0.22.0", True),
        (FILES, "0.22.0", True),
    ],
)
def test_the_hybrid_manager_goes_with_connectors_that_know_it(
    spec: Manifest,
    version: str,
    starts: bool,
) -> None:
    off = "--no-disable-hybrid-kv-cache-manager"
    which = engine(off, version=version)
    if starts:
        assert attached(spec, which)
    else:
        assert f"engine.args set {off}," in refused(spec, which).message
    assert attached(spec, engine(off, "--disable-hybrid-kv-cache-manager", version=version))


# --- gangs --------------------------------------------------------------------------------------------------------

GANG = ["--tensor-parallel-size=16", "--nnodes=2"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (LMCACHE, "one agent alone"),
        (AUTO, "one agent alone"),
        (IN_PROCESS, "sockets of one pod"),
        (FILES, "answers could be wrong"),
        (OBJECTS, "answers could be wrong"),
        (MOVING, "engine id of its own"),
    ],
)
def test_a_replica_of_several_pods_is_refused(spec: Manifest, why: str) -> None:
    for which in (engine(*GANG), engine("--pipeline-parallel-size=2", pods=2)):
        refusal = refused(spec, which, "GangNotSupported")
        assert refusal.message.startswith("the ranks of one replica are in 2 pods, and ")
        assert why in refusal.message
        assert "Mooncake" in refusal.message
        assert refusal.rules_out


@pytest.mark.parametrize("spec", [*EVERYWHERE])
def test_data_parallel_replicas_of_several_pods_are_attached_like_single_pods(spec: Manifest) -> None:
    which = engine("-tp", "4", "-dp", "4", "--data-parallel-size-local=2", pods=2)
    assert attached(spec, which)


def test_a_pool_takes_gangs_and_so_does_host_memory() -> None:
    assert attached(MOONCAKE, engine(*GANG)).connector == "MooncakeStoreConnector"
    for spec in (MOONCAKE, HICACHE, BY_FILE, OBJECTS):
        assert attached(spec, engine("--tp=16", "--nnodes=2", kind="SGLang")).connector == "HiCache"


def test_sglangs_files_of_nixl_are_on_one_node() -> None:
    behind = {"backend": "HiCache", "hicache": {"hostMemoryGiBPerNode": 200, "l3": {"backend": "Nixl"}}}
    for spec in (FILES, {**behind, "nixl": FILES["nixl"]}):
        refusal = refused(spec, engine("--tp=16", "--nnodes=2", kind="SGLang"), "GangNotSupported")
        assert "nixl.storage.obj" in refusal.message
        assert attached(spec, engine("--tp=8", kind="SGLang"))


# --- an engine's life ---------------------------------------------------------------------------------------------


def expandable(composite: Manifest) -> None:
    """Have an engine's torch allocate in expandable segments."""
    composite["spec"]["engine"]["env"] = [{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"}]


def test_an_engine_that_would_fail_is_not_started() -> None:
    rendered = engine_story(expandable, example="mooncake").render()
    assert rendered.manifests == []
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "EngineIncompatible")
    assert "no engine is started" in rendered.condition(attachment.TIER_ATTACHED)["message"]


def test_one_that_may_serve_without_does() -> None:
    def change(composite: Manifest) -> None:
        expandable(composite)
        composite["spec"]["engine"]["kvCache"]["onUnavailable"] = "ServeWithout"

    rendered = engine_story(change, example="mooncake").render()
    assert [m["kind"] for m in rendered.manifests] == ["Deployment", "Service"]
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "EngineIncompatible")


def test_a_running_engine_does_not_take_a_change_that_it_would_not_start_with() -> None:
    story = engine_story(example="mooncake")
    before = story.settle()
    story.happen()
    expandable(story.composite)
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "EngineIncompatible")
    assert "waits" in rendered.condition(attachment.TIER_ATTACHED)["message"]
    assert state(rendered, deployment.ROLLED_OUT) == ("False", "Held")
    del story.composite["spec"]["engine"]["env"]
    again: Any = story.render()
    assert state(again, attachment.TIER_ATTACHED) == ("True", "Attached")
    assert specs(again) == specs(before)
