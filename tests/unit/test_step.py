"""Engines that an earlier step of the pipeline composed, in Modelplane's shapes and others, pass after pass."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from hypothesis import given, settings
from hypothesis import strategies as st

from function import fn, kube, templates
from function.attachment import MEMORY_SHORT, MULTIPROCESS_FORCED, NICS_NOT_ALIGNED, TIER_ATTACHED, TIER_UNUSED
from function.kube import ANNOTATION_PATCH, Manifest
from function.render import Rendered, render, request
from tests.lint.schemas import schema_errors
from tests.standin import observe
from tests.unit import modelplane
from tests.unit.builders import INSTANCE, tier_spec
from tests.unit.modelplane import CLUSTER, TIER, claim, desired, gang, pod, replica, standalone, wrap
from tests.unit.stories import messages, state

MAIN = "model-serving-main"
MODEL = "--model=Qwen/Qwen3-32B"
# GPUs by DRA, which every engine of Modelplane's has, are attached to an agent only where the tier insists.
FORCED: Manifest = {"mode": "Multiprocess"}


def tier(lmcache: Manifest | None = None, **fields: Any) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": "shared", "namespace": "modelplane-system"},
        "spec": tier_spec(lmcache, **fields),
    }


def cluster(provider_config: str = CLUSTER) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": "eu-h100"},
        "status": {"providerConfigRef": {"name": provider_config}},
    }


class Step:
    """A ModelReplica's life: what earlier steps desire, what the control plane holds, and what is observed."""

    def __init__(self, before: dict[str, Manifest], composite: Manifest | None = None, **lmcache: Any) -> None:
        self.composite = composite or replica()
        self.before = before
        self.required = [tier(lmcache), cluster()]
        self.observed: list[Manifest] = []

    def render(self) -> Rendered:
        rendered = render(self.composite, self.observed, self.required, self.before)
        if not rendered.fatal:
            self.composite = rendered.composite
        return rendered

    def settle(self) -> Rendered:
        self.observed = observe(self.render(), self.observed)
        for number, found in enumerate(self.observed):
            # Names that Crossplane gave.
            found["metadata"].setdefault("name", f"llama-70b-{number}")
        return self.render()


def template(rendered: Rendered, key: str = MAIN, *path: str) -> Manifest:
    found: Manifest = rendered.composed[key]["spec"]["forProvider"]["manifest"]["spec"]
    for name in path or ("template",):
        found = found[name]
    return found


def engine(rendered: Rendered, key: str = MAIN, *path: str) -> Manifest:
    return next(c for c in template(rendered, key, *path)["spec"]["containers"] if c["name"] == "engine")


def wired(container: Manifest) -> Manifest:
    """The one --kv-transfer-config of a container."""
    (at,) = [i for i, word in enumerate(container["args"]) if word == "--kv-transfer-config"]
    found: Manifest = json.loads(container["args"][at + 1])
    return found


def untouched(rendered: Rendered, before: dict[str, Manifest]) -> dict[str, Manifest]:
    """What is desired, without what Crossplane adds to it; keys as before."""
    found = copy.deepcopy({key: rendered.composed[key] for key in before})
    for manifest in found.values():
        del manifest["metadata"]["labels"]["crossplane.io/composite"]
        del manifest["metadata"]["annotations"]["crossplane.io/composition-resource-name"]
        del manifest["metadata"]["namespace"]
        manifest["metadata"] = {name: value for name, value in manifest["metadata"].items() if value}
        if not manifest["metadata"]:
            del manifest["metadata"]
    return found


# --- a standalone engine ------------------------------------------------------------------------------------------


def test_an_engine_is_attached_and_all_else_stays_to_the_byte() -> None:
    before = desired(standalone(pod(MODEL, "--tensor-parallel-size=8")))
    rendered = Step(before, **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
    attached = template(rendered)
    assert wired(engine(rendered))["kv_connector"] == "LMCacheMPConnector"
    assert attached["metadata"]["labels"]["kv-offload.modelplane.ai/tier"] == INSTANCE
    # Without our additions the workload is what came in.
    expected = copy.deepcopy(before)
    found = untouched(rendered, before)
    found[MAIN].pop("metadata")
    found[MAIN]["spec"]["forProvider"]["manifest"]["spec"]["template"] = expected[MAIN]["spec"]["forProvider"][
        "manifest"
    ]["spec"]["template"]
    assert found == expected


def test_the_users_own_fields_keep_their_values_and_their_order() -> None:
    given = pod(MODEL, "--max-num-seqs=64", env=[{"name": "HF_TOKEN", "value": "x"}])
    given["spec"]["containers"].append({"name": "sidecar", "image": "s", "args": []})
    container = engine(Step(desired(standalone(given)), **FORCED).render())
    assert container["args"][:2] == [MODEL, "--max-num-seqs=64"]
    assert container["env"][-1] == {"name": "HF_TOKEN", "value": "x"}
    assert container["volumeMounts"][0] == {"name": "dshm", "mountPath": "/dev/shm"}
    assert container["resources"] == {"claims": [{"name": "devices"}]}


def test_a_template_without_the_annotation_is_none_of_ours() -> None:
    before = desired(standalone(pod(MODEL, annotations=None)))
    rendered = Step(before).render()
    assert untouched(rendered, before) == before
    assert rendered.composite["status"]["conditions"] == []
    assert rendered.results == []


def test_detaching_gives_the_same_bytes_as_before() -> None:
    attached, plain = (desired(standalone(pod(MODEL, annotations=a))) for a in (TIER, None))
    story = Step(attached, **FORCED)
    story.settle()
    story.before = plain
    rendered = story.render()
    assert untouched(rendered, plain) == plain
    assert state(rendered, TIER_ATTACHED) == ("False", "NotRequested")


def test_attaching_twice_changes_nothing_more() -> None:
    first = Step(desired(standalone(pod(MODEL))), **FORCED).render()
    again = dict(first.composed)
    for manifest in again.values():
        manifest["metadata"] = {}
    second = Step(again, **FORCED).render()
    assert template(second) == template(first)


def test_a_second_pass_changes_nothing() -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    settled = story.settle()
    again = story.render()
    assert again.composed == settled.composed
    assert messages(again) == []


# --- the tier is not there ----------------------------------------------------------------------------------------


def test_a_tier_that_is_gone_leaves_the_desired_template_byte_for_byte() -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    settled = story.settle()
    story.required = [cluster()]
    rendered = story.render()
    assert rendered.composed[MAIN] == settled.composed[MAIN]
    assert state(rendered, TIER_ATTACHED) == ("True", "TierNotFound")


def test_an_engine_that_never_ran_waits_for_its_tier() -> None:
    story = Step(desired(standalone(pod(MODEL))))
    story.required = [cluster()]
    rendered = story.render()
    assert MAIN not in rendered.composed
    assert sorted(rendered.composed) == ["epp-config", "resource-claim-main-standalone"]
    assert state(rendered, TIER_ATTACHED) == ("False", "TierNotFound")
    story.required = [tier(FORCED), cluster()]
    assert wired(engine(story.render()))


def test_an_engine_serves_without_its_tier_where_its_user_says_so() -> None:
    before = desired(
        standalone(pod(MODEL, annotations={**TIER, "kv-offload.modelplane.ai/on-unavailable": "ServeWithout"}))
    )
    story = Step(before)
    story.required = [cluster()]
    assert untouched(story.render(), before) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inferenceClusterRef": {"name": "us-h100"}}, "ClusterNotFound"),
        ({"targetNamespace": "kv"}, "TierInOtherNamespace"),
        ({"allowedNamespaces": {"from": "Same"}}, "NamespaceNotAllowed"),
    ],
)
def test_a_tier_that_is_not_where_the_replica_is_does_not_attach_it(change: Manifest, reason: str) -> None:
    story = Step(desired(standalone(pod(MODEL))))
    story.required[0]["spec"] |= change
    assert state(story.render(), TIER_ATTACHED) == ("False", reason)


def test_a_tier_of_another_cluster_says_which() -> None:
    story = Step(desired(standalone(pod(MODEL))))
    story.required[1] = cluster("us-kubeconfig")
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "TierOnOtherCluster")
    message = rendered.condition(TIER_ATTACHED)["message"]
    for name in ("modelplane-system/shared", "eu-h100", "us-kubeconfig", CLUSTER):
        assert name in message


def test_a_changed_model_waits_while_the_tier_cannot_be_asked() -> None:
    story = Step(desired(standalone(pod(MODEL))))
    settled = story.settle()
    story.required = [cluster()]
    story.before = desired(standalone(pod("--model=other/model")))
    rendered = story.render()
    assert template(rendered) == template(settled)
    assert ANNOTATION_PATCH in rendered.composed[MAIN]["metadata"]["annotations"]
    assert "waits" in rendered.condition(TIER_ATTACHED)["message"]


def test_what_waits_stays_on_its_cluster() -> None:
    story = Step(desired(standalone(pod(MODEL))))
    settled = story.settle()
    story.required = [cluster()]
    story.before = {MAIN: wrap(standalone(pod("--model=other/model")), modelplane.AVAILABLE, "us-kubeconfig")}
    rendered = story.render()
    assert rendered.composed[MAIN]["spec"]["providerConfigRef"] == settled.composed[MAIN]["spec"]["providerConfigRef"]
    assert template(rendered) == template(settled)


def test_a_plain_workload_that_waits_is_still_scaled_by_whoever_does() -> None:
    composite = {**replica(), "metadata": {"name": "r", "namespace": "default"}}
    workload = standalone(pod(MODEL))
    del workload["spec"]["replicas"]
    story = Step({"w": workload}, composite)
    story.required[1]["spec"] = {"cluster": {"source": "Local"}}
    settled = story.settle()
    (found,) = [m for m in story.observed if m["kind"] == "Deployment"]
    found["spec"]["replicas"] = 7
    story.required = [story.required[1]]
    story.before["w"]["spec"]["template"] = pod("--model=other/model")
    assert story.render().composed["w"]["spec"] == settled.composed["w"]["spec"]


@pytest.mark.parametrize("required", [[tier(FORCED), cluster()], [cluster()]])
def test_a_latch_that_another_version_wrote_keeps_what_runs_and_is_told_of(required: list[Manifest]) -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    story.settle()
    (own,) = [m["metadata"]["annotations"] for m in story.observed if ANNOTATION_PATCH in m["metadata"]["annotations"]]
    own[ANNOTATION_PATCH] = kube.compact({**json.loads(own[ANNOTATION_PATCH]), "later": 1})
    own[f"{ANNOTATION_PATCH}-hash"] = kube.digest(own[ANNOTATION_PATCH])[:12]
    story.required = required
    rendered = story.render()
    assert rendered.fatal
    assert "was written by another version of this function" in rendered.results[-1]["message"]


# --- in use -------------------------------------------------------------------------------------------------------


def usages(rendered: Rendered) -> dict[str, Manifest]:
    return {key: m["spec"] for key, m in rendered.composed.items() if m["kind"] == "Usage"}


def test_a_tier_is_in_use_by_what_carries_the_engine_once_that_has_a_name() -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    assert usages(story.render()) == {}
    settled = story.settle()
    (usage,) = usages(settled).values()
    assert usage["of"] == {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "resourceRef": {"name": "shared", "namespace": "modelplane-system"},
    }
    name = settled.composed[MAIN]["metadata"].get("name") or next(
        m["metadata"]["name"]
        for m in story.observed
        if m["metadata"]["annotations"]["crossplane.io/composition-resource-name"] == MAIN
    )
    assert usage["by"]["kind"] == "Object"
    assert usage["by"]["resourceRef"] == {"name": name}
    assert "ModelReplica ml-team/" in usage["reason"]


def test_a_tier_stays_in_use_while_it_is_gone_and_until_a_detached_engine_has_rolled() -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    story.settle()
    held = usages(story.settle())
    assert held
    story.required = [cluster()]
    assert usages(story.render()) == held
    story.before = desired(standalone(pod(MODEL, annotations=None)))
    assert usages(story.render()) == held
    assert usages(story.settle()) == {}


def test_what_another_step_composed_to_protect_things_is_its_own() -> None:
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    story.settle()
    (spec,) = usages(story.settle()).values()
    story.observed.append(
        {
            "apiVersion": "protection.crossplane.io/v1beta1",
            "kind": "Usage",
            "metadata": {
                "name": "theirs",
                "namespace": "ml-team",
                "annotations": {"crossplane.io/composition-resource-name": "uses-theirs"},
            },
            "spec": spec,
        }
    )
    story.before = desired(standalone(pod(MODEL, annotations=None)))
    held = usages(story.render())
    assert held
    assert "uses-theirs" not in held


# --- what earlier steps leave out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [[], ["epp-config"]])
def test_a_workload_that_is_observed_and_no_longer_desired_is_fatal(left: list[str]) -> None:
    story = Step(desired(standalone(pod(MODEL))))
    story.settle()
    story.before = {key: story.before[key] for key in left}
    rendered = story.render()
    assert rendered.fatal
    assert rendered.composed.keys() == set(left)
    assert state(rendered, TIER_ATTACHED) == ("Unknown", "WorkloadsMissing")
    assert MAIN in rendered.condition(TIER_ATTACHED)["message"]


def test_an_engine_that_its_deployment_no_longer_has_goes() -> None:
    story = Step(
        {**desired(standalone(pod(MODEL))), **desired(standalone(pod(MODEL)), "extra")}, replica("main", "extra")
    )
    story.settle()
    story.before = desired(standalone(pod(MODEL)))
    story.composite["spec"]["engines"] = [{"name": "main"}]
    rendered = story.render()
    assert not rendered.fatal
    assert "model-serving-extra" not in rendered.composed


def test_a_workload_of_any_composite_goes_where_its_owner_lets_it() -> None:
    composite = {"apiVersion": "example.org/v1", "kind": "XServing", "metadata": {"name": "x", "namespace": "ml-team"}}
    story = Step({"chat": wrap(standalone(pod(MODEL)))}, composite)
    story.settle()
    story.before = {}
    assert story.render().fatal
    story.composite["metadata"]["annotations"] = {"kv-offload.modelplane.ai/let-go": "chat"}
    assert not story.render().fatal


def test_a_key_like_modelplanes_is_let_go_by_no_other_composite() -> None:
    composite = {"apiVersion": "example.org/v1", "kind": "XServing", "metadata": {"name": "x", "namespace": "ml-team"}}
    story = Step({MAIN: wrap(standalone(pod(MODEL))), "more": wrap(standalone(pod(MODEL)))}, composite)
    story.settle()
    story.before = {}
    assert story.render().fatal
    story.composite["metadata"]["annotations"] = {"kv-offload.modelplane.ai/let-go": f"more, {MAIN}"}
    assert not story.render().fatal


def test_an_unattached_workload_may_go_as_it_would_without_us() -> None:
    story = Step(desired(standalone(pod(MODEL, annotations=None))))
    story.settle()
    story.before = {}
    assert not story.render().fatal


# --- gangs --------------------------------------------------------------------------------------------------------

RANK = ("--nnodes=2", "--node-rank=$(MODELPLANE_RANK)", "--master-addr=$(MODELPLANE_LEADER_ADDRESS)")
SERVE = ["vllm", "serve", "Qwen/Qwen3-32B"]
LEADER, WORKER = ("leaderWorkerTemplate", "leaderTemplate"), ("leaderWorkerTemplate", "workerTemplate")
POOL: Manifest = {"backend": "Mooncake", "lmcache": None, "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}


def pool_tier() -> Manifest:
    found = tier()
    found["spec"] = {key: value for key, value in {**found["spec"], **POOL}.items() if value is not None}
    return found


def gang_story(leader: Manifest, worker: Manifest) -> Step:
    story = Step(desired(gang(leader, worker)))
    story.required[0] = pool_tier()
    return story


def test_every_rank_of_a_gang_is_attached_alike() -> None:
    tp = "--tensor-parallel-size=16"
    story = gang_story(pod(tp, *RANK, command=SERVE), pod(tp, *RANK, "--headless", command=SERVE, leader=False))
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached"), rendered.condition(TIER_ATTACHED)
    leader, worker = (engine(rendered, MAIN, *path) for path in (LEADER, WORKER))
    assert wired(leader) == wired(worker)
    assert leader["env"] == worker["env"]
    assert leader["volumeMounts"] == worker["volumeMounts"]
    assert worker["args"][:5] == [tp, *RANK, "--headless"]
    for path in (LEADER, WORKER):
        assert template(rendered, MAIN, *path)["metadata"]["labels"]["kv-offload.modelplane.ai/tier"] == INSTANCE


def test_a_gang_that_the_tier_cannot_follow_is_not_started_and_no_workload_is_changed() -> None:
    words = ("--tensor-parallel-size=16", *RANK)
    story = Step(desired(gang(pod(*words, command=SERVE), pod(*words, "--headless", command=SERVE, leader=False))))
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "GangNotSupported")
    assert MAIN not in rendered.composed


@pytest.mark.parametrize("local", [(), ("--data-parallel-size-local=1",)])
def test_a_gang_of_as_many_nodes_as_only_the_cluster_knows_is_one(local: tuple[str, ...]) -> None:
    env = [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['nodes']"}}}]
    workload = standalone(pod(MODEL, "--nnodes=$(N)", "--node-rank=$(R)", *local, env=env)) | {"kind": "StatefulSet"}
    assert state(Step(desired(workload)).render(), TIER_ATTACHED) == ("False", "GangNotSupported")


def test_a_member_that_asks_for_too_little_memory_is_said_and_one_that_asks_for_none_asks() -> None:
    little = {"claims": [{"name": "devices"}], "limits": {"memory": "32Gi"}}
    story = Step(desired(standalone(pod(MODEL, "--tensor-parallel-size=8", resources=little))))
    rendered = story.render()
    assert engine(rendered)["resources"] == little
    assert state(rendered, MEMORY_SHORT) == ("True", "LittleLeft")
    story.before = desired(standalone(pod(MODEL, "--tensor-parallel-size=8")))
    rendered = story.render()
    assert engine(rendered)["resources"] == {"claims": [{"name": "devices"}], "requests": {"memory": "16384Mi"}}
    assert state(rendered, MEMORY_SHORT) == ("False", "Nothing")


def test_what_several_engines_are_warned_of_is_all_said() -> None:
    little = {"claims": [{"name": "devices"}], "limits": {"memory": "32Gi"}}
    words = (MODEL, "--tensor-parallel-size=8")
    given = {name: wrap(standalone(pod(*words, resources=little))) for name in ("a", "b")}
    message = Step(given).render().condition(MEMORY_SHORT)["message"]
    assert [part.partition(": the engine's container")[0] for part in message.split("; ") if "asks for" in part] == [
        "a",
        "b",
    ]


def test_a_worker_that_joins_ray_gets_files_and_variables_but_no_flags() -> None:
    join = ["ray", "start", "--address=$(MODELPLANE_LEADER_ADDRESS):6379", "--block"]
    story = gang_story(pod("--tensor-parallel-size=16", command=SERVE), pod(command=join, leader=False))
    rendered = story.render()
    worker = engine(rendered, MAIN, *WORKER)
    assert worker["command"] == join
    assert worker["args"] == []
    assert {e["name"] for e in worker["env"]} == {e["name"] for e in engine(rendered, MAIN, *LEADER)["env"]}


def test_members_that_name_different_tiers_are_not_attached() -> None:
    before = gang(pod(command=SERVE), pod(command=SERVE, leader=False, annotations=None))
    rendered = Step(desired(before)).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "MembersDisagree")
    assert MAIN not in rendered.composed
    serving = annotated(on_unavailable="ServeWithout")
    before = gang(pod(command=SERVE, annotations=serving), pod(command=SERVE, leader=False, annotations=None))
    assert untouched(Step(desired(before)).render(), desired(before)) == desired(before)


def test_members_that_are_wired_differently_are_not_attached() -> None:
    own = '--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}'
    story = gang_story(pod(own, command=SERVE), pod("--headless", command=SERVE, leader=False))
    assert state(story.render(), TIER_ATTACHED) == ("False", "MembersDisagree")


@pytest.mark.parametrize(
    ("leader", "worker"),
    [
        ({}, {"image": "vllm/vllm-openai:v0.22.0"}),
        ({}, {"args": ["--kv-offloading-size=8"]}),
        ({"image": "vllm/vllm-openai:latest"}, {}),
        ({}, {"command": ["vllm", "serve", "Qwen/Qwen3-8B"]}),
        ({"args": ["--quantization=fp8"]}, {}),
        ({"args": ["--enforce-eager", "--block-size=32"]}, {"args": ["--block-size=64"]}),
        ({"args": ["-tp=8"]}, {"args": ["--tensor-parallel-size=4"]}),
    ],
)
def test_members_that_are_not_one_engine_are_not_attached(leader: Manifest, worker: Manifest) -> None:
    first, second = (
        pod(*own.pop("args", ()), **{"command": SERVE, **own}, leader=leads)
        for own, leads in ((dict(leader), True), (dict(worker), False))
    )
    story = gang_story(first, second)
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "MembersDisagree")
    assert MAIN not in rendered.composed


def test_members_may_differ_in_what_changes_no_kv() -> None:
    leader = pod("-tp=16", *RANK, "--api-server-count=4", "--port=9000", command=SERVE)
    worker = pod("--tensor-parallel-size", "16", *RANK, "--headless", "--enforce-eager", command=SERVE, leader=False)
    assert state(gang_story(leader, worker).render(), TIER_ATTACHED) == ("True", "Attached")


def test_a_leader_that_only_starts_ray_runs_an_engine_that_nobody_sees() -> None:
    head = ["ray", "start", "--head", "--block"]
    rendered = gang_story(pod(command=head), pod(command=head, leader=False)).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "CommandHidesArgs")


def test_a_gang_whose_workers_alone_claim_gpus_claims_them() -> None:
    leader = pod(command=SERVE)
    del leader["spec"]["containers"][0]["resources"]
    story = Step(desired(gang(leader, pod(command=SERVE, leader=False))), **FORCED)
    story.before[MAIN]["spec"]["forProvider"]["manifest"]["spec"]["leaderWorkerTemplate"]["size"] = 1
    assert state(story.render(), MULTIPROCESS_FORCED)[0] == "True"


def test_a_shell_in_a_leader_hides_its_flags_and_waits_for_nobody() -> None:
    shell = ["/bin/sh", "-c", "exec vllm serve Qwen/Qwen3-32B"]
    before = gang(pod(command=shell), pod("--headless", command=SERVE, leader=False))
    rendered = Step(desired(before)).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "CommandHidesArgs")
    assert untouched(rendered, desired(before)) == desired(before)


def test_a_shell_in_a_worker_hides_its_flags() -> None:
    shell = ["/bin/sh", "-c", "exec vllm serve Qwen/Qwen3-32B --headless"]
    story = gang_story(pod(command=SERVE), pod(command=shell, leader=False))
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "CommandHidesArgs")
    assert "the container's args" in rendered.condition(TIER_ATTACHED)["message"]


def test_a_gang_whose_leader_is_a_worker_as_well_has_one_template() -> None:
    workload = gang(pod(command=SERVE), pod(*RANK, command=SERVE))
    del workload["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    story = Step(desired(workload))
    story.required[0] = pool_tier()
    assert wired(engine(story.render(), MAIN, *WORKER))


# --- prefill and decode -------------------------------------------------------------------------------------------


def split(image: str = "vllm/vllm-openai:v0.33.0") -> dict[str, Manifest]:
    """Desire a prefill and a decode engine, wired by their user, with the router's sidecar before the second."""
    both = {}
    for name, role, port in (("prefill", "kv_producer", 8000), ("decode", "kv_consumer", 8001)):
        own = f'--kv-transfer-config={{"kv_connector":"NixlConnector","kv_role":"{role}"}}'
        template = pod(f"--port={port}", own, command=SERVE, image=image)
        if name == "decode":
            template["spec"]["containers"].append(
                {"name": "pd-sidecar", "image": "sidecar", "args": ["--vllm-port=8001"]}
            )
        both[f"model-serving-{name}"] = wrap(standalone(template), modelplane.AVAILABLE)
    return both


def test_prefill_and_decode_engines_keep_their_transport_and_get_the_cache_behind_it() -> None:
    rendered = Step(split(), replica("prefill", "decode", mode="PrefillDecode"), **FORCED).render()
    for name, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        container = engine(rendered, f"model-serving-{name}")
        found = wired(container)
        assert (found["kv_connector"], found["kv_role"]) == ("MultiConnector", "kv_both")
        transport, cache = found["kv_connector_extra_config"]["connectors"]
        assert transport == {"kv_connector": "NixlConnector", "kv_role": role}
        assert (cache["kv_connector"], cache["kv_role"]) == ("LMCacheMPConnector", "kv_both")
        assert found["kv_load_failure_policy"] == "recompute"
        assert not [word for word in container["args"] if word.startswith("--kv-transfer-config=")]
    sidecar = template(rendered, "model-serving-decode")["spec"]["containers"][1]
    assert sidecar == {"name": "pd-sidecar", "image": "sidecar", "args": ["--vllm-port=8001"]}


def test_a_version_that_stores_wrong_blocks_beside_a_transport_keeps_its_own_wiring() -> None:
    before = split("registry.example/team/vllm:v0.23.0")
    rendered = Step(before, replica("prefill", "decode"), **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "UserConfigured")
    assert "0.26.0" in rendered.condition(TIER_ATTACHED)["message"]
    assert untouched(rendered, before) == before


def test_what_is_not_attached_is_named_among_those_that_are() -> None:
    before = split() | {"model-serving-old": split("vllm/vllm-openai:latest")["model-serving-prefill"]}
    rendered = Step(before, replica("prefill", "decode", "old"), **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "EngineVersionUnknown")
    message = rendered.condition(TIER_ATTACHED)["message"]
    assert "model-serving-old: the version of image" in message
    assert "model-serving-prefill: By LMCacheMPConnector" in message
    assert "annotation kv-offload.modelplane.ai/version" in message


# --- annotations --------------------------------------------------------------------------------------------------


def annotated(**own: str) -> Manifest:
    return {**TIER, **{f"kv-offload.modelplane.ai/{name.replace('_', '-')}": value for name, value in own.items()}}


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"tier": "Bad_Name"}, "annotation kv-offload.modelplane.ai/tier (is 'Bad_Name'): must be a tier's name"),
        ({"tier": "a" * 254}, "annotation kv-offload.modelplane.ai/tier: must be a tier's name of at most 253"),
        ({"tier": f"{'a' * 64}/shared"}, "annotation kv-offload.modelplane.ai/tier"),
        ({"on_unavailable": "Maybe"}, "annotation kv-offload.modelplane.ai/on-unavailable (is 'Maybe')"),
        ({"version": "latest"}, "annotation kv-offload.modelplane.ai/version (is 'latest'): must be a version"),
        ({"engine": "TGI"}, "annotation kv-offload.modelplane.ai/engine (is 'TGI')"),
    ],
)
def test_a_wrong_annotation_says_which_and_how_and_costs_no_running_engine(own: dict[str, str], says: str) -> None:
    before = desired(standalone(pod(MODEL, annotations=annotated(**own))))
    story = Step(before)
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "InvalidAnnotation")
    assert says in rendered.condition(TIER_ATTACHED)["message"]
    assert MAIN not in rendered.composed
    story = Step(desired(standalone(pod(MODEL))))
    settled = story.settle()
    story.before = before
    kept = story.render()
    assert template(kept) == template(settled)
    assert state(kept, TIER_ATTACHED) == ("True", "InvalidAnnotation")


def test_the_version_and_the_engine_may_be_said() -> None:
    mine = annotated(version="0.33.0", engine="vLLM", tier="modelplane-system/shared")
    story = Step(desired(standalone(pod(MODEL, annotations=mine, image="registry.example/llm:7"))), **FORCED)
    assert state(story.render(), TIER_ATTACHED) == ("True", "Attached")


def test_an_engine_that_nothing_tells_is_not_guessed_at() -> None:
    story = Step(desired(standalone(pod(MODEL, image="registry.example/llm:7"))))
    assert state(story.render(), TIER_ATTACHED) == ("False", "EngineUnknown")


def test_sglang_is_told_by_its_program() -> None:
    command = ["python3", "-m", "sglang.launch_server"]
    given = pod("--model-path=Qwen/Qwen3-32B", "--port=8000", command=command, image="lmsysorg/sglang:v0.5.23-cu129")
    story = Step(desired(standalone(given)))
    story.required[0] = pool_tier()
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
    assert "--hicache-storage-backend=mooncake" in engine(rendered)["args"]


def test_the_container_is_found_by_name() -> None:
    given = pod(MODEL)
    given["spec"]["containers"][0]["name"] = "server"
    given["spec"]["containers"].append({"name": "logs", "image": "logs"})
    story = Step(desired(standalone(given)))
    assert state(story.render(), TIER_ATTACHED) == ("False", "ContainerNotFound")
    given["metadata"]["annotations"] |= annotated(container="server")
    story = Step(desired(standalone(given)), **FORCED)
    rendered = story.render()
    assert wired(template(rendered)["spec"]["containers"][0])
    assert template(rendered)["spec"]["containers"][1] == {"name": "logs", "image": "logs"}


@pytest.mark.parametrize(
    "taken",
    [
        {"volumes": [{"name": "kv-offload", "emptyDir": {}}]},
        {"mount": {"name": "mine", "mountPath": "/etc/kv-offload"}},
    ],
)
def test_a_name_that_is_taken_is_said_and_not_fought_over(taken: Manifest) -> None:
    given = pod(MODEL, annotations=annotated(on_unavailable="ServeWithout"))
    given["spec"]["volumes"] += taken.get("volumes", [])
    given["spec"]["containers"][0]["volumeMounts"] += [taken["mount"]] if "mount" in taken else []
    before = desired(standalone(given))
    rendered = Step(before).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "NameTaken")
    assert untouched(rendered, before) == before


# --- wherever pod templates are -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"])
def test_every_kind_of_workload_is_attached_plain_and_in_an_object(kind: str) -> None:
    workload = {**standalone(pod(MODEL)), "kind": kind}
    rendered = Step({"w": wrap(workload)}, **FORCED).render()
    assert wired(engine(rendered, "w"))
    story = Step({"w": workload}, {**replica(), "metadata": {"name": "r", "namespace": "default"}}, **FORCED)
    story.required[1]["spec"] = {"cluster": {"source": "Local"}}
    plain = story.render()
    found = plain.composed["w"]["spec"]["template"]["spec"]["containers"][0]
    assert wired(found) == wired(engine(rendered, "w"))
    assert ANNOTATION_PATCH in plain.composed["w"]["metadata"]["annotations"]


def test_a_plain_workload_does_not_use_a_tier_of_a_remote_cluster() -> None:
    story = Step({"w": standalone(pod(MODEL))}, {**replica(), "metadata": {"name": "r", "namespace": "default"}})
    assert state(story.render(), TIER_ATTACHED) == ("False", "TierOnOtherCluster")


def test_each_role_of_a_group_is_an_engine_of_its_own() -> None:
    roles = [
        {"name": "prefill", "replicas": 1, "template": pod(MODEL)},
        {"name": "decode", "replicas": 1, "standalonePattern": {"template": pod(MODEL)}},
        {"name": "router", "replicas": 1, "template": pod("--route", annotations=None)},
        {"name": "gang", "leaderWorkerSet": {"size": 2}, "template": pod(MODEL)},
    ]
    group = {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroup",
        "metadata": {"name": "g", "namespace": "default"},
        "spec": {"roles": roles},
    }
    story = Step({"g": wrap(group)}, **FORCED)
    rendered = story.settle()
    found = rendered.composed["g"]["spec"]["forProvider"]["manifest"]["spec"]["roles"]
    assert wired(found[0]["template"]["spec"]["containers"][0])
    assert wired(found[1]["standalonePattern"]["template"]["spec"]["containers"][0])
    assert found[2:] == roles[2:]
    latches = [name for name in rendered.composed["g"]["metadata"]["annotations"] if name.startswith(ANNOTATION_PATCH)]
    assert sorted(latches) == [
        f"{ANNOTATION_PATCH}-hash.decode",
        f"{ANNOTATION_PATCH}-hash.prefill",
        f"{ANNOTATION_PATCH}.decode",
        f"{ANNOTATION_PATCH}.prefill",
    ]
    story.required = [cluster()]
    assert story.render().composed["g"] == rendered.composed["g"]


def test_roles_of_any_names_are_told_apart() -> None:
    names = ("x", "x-hash", "a" * 60, "a" * 61)
    roles = [{"name": name, "replicas": 1, "template": pod(MODEL)} for name in names]
    group = {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroup",
        "metadata": {"name": "g", "namespace": "default"},
        "spec": {"roles": roles},
    }
    story = Step({"g": wrap(group)}, **FORCED)
    rendered = story.settle()
    latches = [name for name in rendered.composed["g"]["metadata"]["annotations"] if name.startswith(ANNOTATION_PATCH)]
    assert len(latches) == 2 * len(names)
    assert max(len(name.partition("/")[2]) for name in latches) <= 63
    story.required = [cluster()]
    assert story.render().composed["g"] == rendered.composed["g"]


# --- what earlier steps may desire as well ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Job", "x"),
        ("Job", {"template": "nightly"}),
        ("Deployment", [1]),
        ("Deployment", {"template": {"spec": "x"}}),
        ("Deployment", {"template": {"spec": {"containers": "abc"}}}),
        ("Deployment", {"template": {"metadata": "x", "spec": {"containers": [{}]}}}),
        ("Deployment", {"template": {"metadata": {"annotations": 3}, "spec": {"containers": [{}]}}}),
        ("LeaderWorkerSet", {"leaderWorkerTemplate": "x"}),
        ("RoleBasedGroup", {"roles": {"a": 1}}),
        ("RoleBasedGroup", {"roles": [None, "x", {"name": 1, "template": pod(annotations=None)}]}),
    ],
)
@pytest.mark.parametrize("carry", [lambda manifest: manifest, wrap])
def test_a_kind_of_the_same_name_that_is_something_else_is_none_of_ours(
    kind: str, spec: Any, carry: Callable[[Manifest], Manifest]
) -> None:
    other = {"apiVersion": "example.org/v1", "kind": kind, "metadata": {"name": "o", "namespace": "default"}}
    before = {"other": carry({**other, "spec": spec})} | desired(standalone(pod(MODEL)))
    rendered = Step(before, **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
    found = rendered.composed["other"]
    assert (found if carry is not wrap else found["spec"]["forProvider"]["manifest"])["spec"] == spec


def altered(**container: Any) -> Manifest:
    given = pod(MODEL)
    given["spec"]["containers"][0].update(container)
    return given


def altered_pod(**spec: Any) -> Manifest:
    given = pod(MODEL)
    given["spec"].update(spec)
    return given


@pytest.mark.parametrize(
    "given",
    [
        *(altered(**{name: None}) for name in ("command", "env", "volumeMounts", "resources", "ports")),
        altered(securityContext=None, resources={"limits": None, "requests": None, "claims": None}),
        altered(env=[{"name": "A"}, {"name": "B", "value": "b", "valueFrom": None}]),
        *(altered_pod(**{name: None}) for name in ("volumes", "tolerations", "nodeSelector", "resourceClaims")),
        *(altered_pod(**{name: None}) for name in ("initContainers", "affinity")),
        altered_pod(affinity={"nodeAffinity": None}),
        {**pod(MODEL), "metadata": {"labels": None, "annotations": TIER}},
    ],
)
def test_what_is_null_is_as_if_it_were_not_said(given: Manifest) -> None:
    rendered = Step(desired(standalone(given)), **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
    assert wired(engine(rendered))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (altered(args=[MODEL, 5]), "spec.containers[0].args[1] (is 5)"),
        (altered(args="--x"), "spec.containers[0].args (is '--x'): must be a list"),
        (altered(env=[{"value": "x"}]), "spec.containers[0].env[0].name is required"),
        (altered(env=[{"name": "A", "value": 3}]), "spec.containers[0].env[0].value"),
        (altered(env=[None]), "spec.containers[0].env[0]: must be an object"),
        (altered(name=None), "spec.containers[0].name is required"),
        (altered(volumeMounts=[{"name": "x"}]), "spec.containers[0].volumeMounts[0].mountPath is required"),
        (altered(volumeMounts=[{"name": [], "mountPath": "/x"}]), "spec.containers[0].volumeMounts[0].name"),
        (altered(resources={"claims": [{"name": "a", "request": {}}]}), "resources.claims[0].request"),
        (altered_pod(resourceClaims=[{"name": "a", "resourceClaimTemplateName": []}]), "resourceClaimTemplateName"),
        (altered_pod(containers={"engine": {}}), "spec.containers: must be a list"),
        (altered_pod(tolerations=[None]), "spec.tolerations[0]: must be an object"),
        ({**pod(MODEL), "metadata": {"labels": {"a": 1}, "annotations": TIER}}, "metadata.labels.a (is 1)"),
    ],
)
def test_a_template_that_is_none_says_so_and_costs_nothing_else(given: Manifest, says: str) -> None:
    before = desired(standalone(given)) | {"fine": wrap(standalone(pod(MODEL)))}
    rendered = Step(before, **FORCED).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "InvalidTemplate")
    assert says in rendered.condition(TIER_ATTACHED)["message"]
    assert untouched(rendered, {MAIN: before[MAIN]}) == {MAIN: before[MAIN]}
    assert wired(engine(rendered, "fine"))
    story = Step(desired(standalone(pod(MODEL))), **FORCED)
    settled = story.settle()
    story.before = desired(standalone(given))
    assert template(story.render()) == template(settled)


JUNK: list[Any] = [None, 0, 1.5, True, "", "x", [], {}, [None], ["x"], [{}], {"a": None}, {"name": "x"}]


def alter(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Put something else in one place of a manifest."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(JUNK))
    at = draw(st.sampled_from(inner))
    changed = copy.copy(value)
    changed[at] = alter(value[at], draw)
    return changed


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_an_earlier_step_desires_nothing_is_fatal(data: st.DataObject) -> None:
    before = two_members() | {"plain": standalone(pod(MODEL)), "claim": claim()}
    key = data.draw(st.sampled_from(sorted(before)))
    place = before[key]["spec"]["forProvider"]["manifest"] if before[key]["kind"] == "Object" else before[key]
    place["spec"] = alter(place["spec"], data.draw)
    rendered = nic_story(before).render()
    assert not rendered.fatal, rendered.results


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": "x"},
        {"spec": {"spec": {"devices": {"requests": ["x"]}}}},
        {"metadata": {**claim()["metadata"], "labels": "x"}},
        {"metadata": {**claim()["metadata"], "labels": ["x"]}},
    ],
)
def test_a_claim_template_that_is_none_is_not_joined(wrong: Manifest) -> None:
    before = desired(standalone(pod(MODEL)))
    before[THEIRS] = wrap({**claim(), **wrong})
    story = nic_story(before)
    assert [asks(t) for t in ours(story.render(), story).values()] == [[("kv-nic", 8)]]


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (None, "Attached"),
        ({"name": "default"}, "Attached"),
        ({"kind": "ProviderConfig", "name": "default"}, "TierOnOtherCluster"),
    ],
)
def test_an_object_goes_where_its_provider_config_says_or_by_default(ref: Manifest | None, reason: str) -> None:
    carried = wrap(standalone(pod(MODEL)))
    del carried["spec"]["providerConfigRef"]
    if ref:
        carried["spec"]["providerConfigRef"] = ref
    story = Step({MAIN: carried}, **FORCED)
    story.required[1] = cluster("default")
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED)[1] == reason
    assert (MAIN in rendered.composed) is (reason == "Attached")
    if reason == "Attached":
        assert wired(engine(rendered))
        assert "template" not in rendered.composed[MAIN]["spec"]


# --- identity -----------------------------------------------------------------------------------------------------


def seed(rendered: Rendered) -> str:
    return next(str(e["value"]) for e in engine(rendered)["env"] if e["name"] == "PYTHONHASHSEED")


def test_replicas_of_one_deployment_share_and_other_deployments_do_not() -> None:
    """Every cached model of Modelplane's is --model=/mnt/models."""
    stories = [Step(desired(standalone(pod("--model=/mnt/models")))) for _ in range(3)]
    stories[1].composite["metadata"]["name"] = "llama-70b-eu-1-9d2e1"
    stories[2].composite["metadata"]["labels"]["modelplane.ai/deployment"] = "mistral"
    one, two, other = (seed(story.render()) for story in stories)
    assert one == two != other


def test_composites_of_one_name_and_another_kind_do_not_share() -> None:
    stories = [Step(desired(standalone(pod("--model=/mnt/models")))) for _ in range(3)]
    for story, kind in zip(stories, ("XServing", "XServing", "XChat"), strict=True):
        story.composite["kind"] = kind
        del story.composite["metadata"]["labels"]
    one, same, other = (seed(story.render()) for story in stories)
    assert one == same != other


def files(claim_name: str, path: str = "/mnt/models", **init: Any) -> Manifest:
    given = pod("--model=/mnt/models/a")
    given["spec"]["volumes"].append({"name": "files", "persistentVolumeClaim": {"claimName": claim_name}})
    given["spec"]["containers"][0]["volumeMounts"] += [{"name": "files", "mountPath": path}]
    if init:
        mounts = [{"name": "files", "mountPath": "/out"}]
        given["spec"]["initContainers"] = [{"name": "get", "image": "get", "volumeMounts": mounts, **init}]
    return given


@pytest.mark.parametrize(
    ("one", "two", "share"),
    [
        (files("a"), files("a"), True),
        (files("a"), files("b"), False),
        (files("a", "/mnt/models/a/b"), files("b", "/mnt/models/a/b"), False),
        (files("a", "/mnt/other"), files("b", "/mnt/other"), True),
        (files("a", args=["llama"]), files("a", args=["mistral"]), False),
    ],
)
def test_a_path_is_what_is_mounted_there(one: Manifest, two: Manifest, share: bool) -> None:
    first, second = (seed(Step(desired(standalone(given))).render()) for given in (one, two))
    assert (first == second) is share


def test_a_path_goes_in_process_unless_it_is_vouched_for() -> None:
    rendered = Step(desired(standalone(pod("--model=/mnt/models")))).render()
    assert state(rendered, TIER_UNUSED) == ("True", "IdentityNotShared")
    assert "annotation kv-offload.modelplane.ai/identity" in rendered.condition(TIER_UNUSED)["message"]


# --- NICs by claim ------------------------------------------------------------------------------------------------

THEIRS = "resource-claim-main-standalone"


def nic_tier(engines: int = 8, *, align: bool = True, **dra: Any) -> Manifest:
    found = pool_tier()
    rdma = {
        "dra": {"deviceClassName": "rdma.example", "alignWithGPU": align, **dra},
        "agents": {"count": 1},
        "engines": {"count": engines},
    }
    found["spec"] |= {"mooncake": {"segmentGiBPerNode": 64, "protocol": "RDMA"}, "rdma": rdma}
    return found


def nic_story(before: dict[str, Manifest], engines: int = 8, **dra: Any) -> Step:
    story = Step(before)
    story.required[0] = nic_tier(engines, **dra)
    return story


def ours(rendered: Rendered, story: Step) -> dict[str, Manifest]:
    """The ResourceClaimTemplates that were added to what came in, by key."""
    added = {key: m for key, m in rendered.composed.items() if key not in story.before}
    found = {key: m["spec"]["forProvider"]["manifest"] if m["kind"] == "Object" else m for key, m in added.items()}
    return {key: m for key, m in found.items() if m["kind"] == "ResourceClaimTemplate"}


def asks(template: Manifest) -> list[tuple[str, int]]:
    return [(r["name"], r["exactly"]["count"]) for r in template["spec"]["spec"]["devices"]["requests"]]


def test_nics_join_the_claim_that_has_the_gpus() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    rendered = story.render()
    ((key, copied),) = ours(rendered, story).items()
    assert schema_errors(copied) == []
    assert asks(copied) == [(f"gpu-{n}", 1) for n in range(8)] + [(f"kv-nic-{n}", 1) for n in range(8)]
    assert key == f"{MAIN}-{copied['metadata']['name']}"
    wrapped, workload = rendered.composed[key], rendered.composed[MAIN]
    assert wrapped["spec"]["providerConfigRef"] == workload["spec"]["providerConfigRef"]
    assert copied["metadata"]["namespace"] == "default"
    claims = template(rendered)["spec"]["resourceClaims"]
    assert claims == [{"name": "devices", "resourceClaimTemplateName": copied["metadata"]["name"]}]
    assert engine(rendered)["resources"]["claims"] == [{"name": "devices"}]
    assert untouched(rendered, {THEIRS: story.before[THEIRS]}) == {THEIRS: story.before[THEIRS]}
    assert state(rendered, NICS_NOT_ALIGNED) == ("False", "Nothing")


def test_a_claim_is_ready_once_it_is_there() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    first = fn.run(request(story.composite, [], wanted(story), story.before))
    (key,) = set(first.desired.resources) - set(story.before)
    assert first.desired.resources[key].ready == fnv1.READY_UNSPECIFIED
    settled = story.settle()
    again = fn.run(request(story.composite, story.observed, wanted(story), story.before))
    assert again.desired.resources[key].ready == fnv1.READY_TRUE
    assert story.render().composed == settled.composed


def wanted(story: Step) -> list[tuple[str, Manifest | None]]:
    there, on = story.required
    return [("tier modelplane-system/shared", there), ("cluster eu-h100", on)]


def test_what_cannot_be_aligned_is_said() -> None:
    rendered = nic_story(desired(standalone(pod(MODEL))), engines=4).render()
    assert state(rendered, NICS_NOT_ALIGNED) == ("True", "CannotAlign")
    assert "8 GPUs cannot have equal shares of 4 NICs" in rendered.condition(NICS_NOT_ALIGNED)["message"]
    assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
    silent = nic_story(desired(standalone(pod(MODEL))), engines=4, align=False).render()
    assert state(silent, NICS_NOT_ALIGNED) == ("False", "Nothing")


def test_a_request_that_another_container_goes_by_is_not_split() -> None:
    given = pod(MODEL)
    seen = {"resources": {"claims": [{"name": "devices", "request": "gpu"}]}}
    given["spec"]["containers"].append({"name": "exporter", "image": "e", **seen})
    story = nic_story(desired(standalone(given)))
    rendered = story.render()
    ((_, joined),) = ours(rendered, story).items()
    assert asks(joined) == [("gpu", 8), ("kv-nic", 8)]
    assert "container 'exporter' sees only request 'gpu'" in rendered.condition(NICS_NOT_ALIGNED)["message"]


def test_an_engine_whose_template_is_not_here_gets_a_second_claim() -> None:
    before = desired(standalone(pod(MODEL)))
    before[THEIRS] = wrap(claim(name="other"))
    story = nic_story(before)
    rendered = story.render()
    ((_, second),) = ours(rendered, story).items()
    assert schema_errors(second) == []
    assert second["metadata"]["name"].startswith("main-nics-")
    assert asks(second) == [("kv-nic", 8)]
    assert template(rendered)["spec"]["resourceClaims"] == [
        {"name": "devices", "resourceClaimTemplateName": "main-devices"},
        {"name": "kv-nics", "resourceClaimTemplateName": second["metadata"]["name"]},
    ]
    assert engine(rendered)["resources"]["claims"] == [{"name": "devices"}, {"name": "kv-nics"}]
    assert "no step of this pipeline composes" in rendered.condition(NICS_NOT_ALIGNED)["message"]


@pytest.mark.parametrize("elsewhere", [{"provider_config": "us"}, {"namespace": "kv"}])
def test_a_template_of_another_place_is_not_the_engines(elsewhere: dict[str, str]) -> None:
    before, theirs = desired(standalone(pod(MODEL))), claim()
    theirs["metadata"]["namespace"] = elsewhere.get("namespace", "default")
    before[THEIRS] = wrap(theirs, provider_config=elsewhere.get("provider_config", CLUSTER))
    story = nic_story(before)
    assert [asks(t) for t in ours(story.render(), story).values()] == [[("kv-nic", 8)]]


def two_members() -> dict[str, Manifest]:
    leader, worker = pod(command=SERVE), pod("--headless", command=SERVE, leader=False)
    worker["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] = "worker-devices"
    four = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 4}}
    return {
        MAIN: wrap(gang(leader, worker), modelplane.AVAILABLE),
        "resource-claim-main-leader": wrap(claim()),
        "resource-claim-main-worker": wrap(claim(four, name="worker-devices")),
    }


def test_each_member_of_a_gang_has_a_claim_of_its_own() -> None:
    story = nic_story(two_members())
    rendered = story.render()
    found = {t["metadata"]["name"]: t for t in ours(rendered, story).values()}
    assert len(found) == 2
    named = [
        template(rendered, MAIN, *path)["spec"]["resourceClaims"][0]["resourceClaimTemplateName"]
        for path in (LEADER, WORKER)
    ]
    gpus, nics = zip(*(_shares(found[name]) for name in named), strict=True)
    assert (gpus, nics) == ((8, 4), (8, 8))
    assert [name.rpartition("-nics-")[0] for name in named] == ["main-devices", "worker-devices"]


def _shares(template_: Manifest) -> tuple[int, int]:
    counts = asks(template_)
    return (sum(c for n, c in counts if n.startswith("gpu")), sum(c for n, c in counts if n.startswith("kv-nic")))


def test_members_without_claims_share_a_second_one() -> None:
    before = two_members()
    for role in ("leader", "worker"):
        del before[f"resource-claim-main-{role}"]
    story = nic_story(before)
    assert len(ours(story.render(), story)) == 1


def test_a_plain_workload_has_a_plain_template() -> None:
    composite = {**replica(), "metadata": {"name": "r", "namespace": "default"}}
    story = Step({"w": standalone(pod(MODEL)), "c": claim()}, composite)
    story.required[0] = nic_tier()
    story.required[1]["spec"] = {"cluster": {"source": "Local"}}
    settled = story.settle()
    ((key, copied),) = ours(settled, story).items()
    assert copied["kind"] == "ResourceClaimTemplate"
    assert settled.composed["w"]["spec"]["template"]["spec"]["resourceClaims"] == [
        {"name": "devices", "resourceClaimTemplateName": copied["metadata"]["name"]}
    ]
    # A held workload keeps it as it is.
    story.before["w"] = standalone(pod("--model=other/model"))
    story.required = [story.required[1]]
    assert story.render().composed[key] == settled.composed[key]


def test_nics_go_with_the_attachment() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    story.settle()
    story.before = desired(standalone(pod(MODEL, annotations=None)))
    rendered = story.render()
    assert ours(rendered, story) == {}
    assert untouched(rendered, story.before) == story.before


def test_attaching_what_has_its_nics_changes_nothing_more() -> None:
    first = nic_story(desired(standalone(pod(MODEL)))).render()
    again = copy.deepcopy(first.composed)
    for key, manifest in again.items():
        manifest["metadata"] = {} if key in (MAIN, THEIRS, "epp-config") else {"annotations": {}}
    second = nic_story(again).render()
    assert template(second) == template(first)
    assert second.composed.keys() == first.composed.keys()


@pytest.mark.parametrize("gone", ["the tier", "its request", "its NICs"])
def test_what_the_engine_claims_stays_to_the_byte_while_it_keeps_its_attachment(gone: str) -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    settled = story.settle()
    if gone == "the tier":
        story.required = [cluster()]
    elif gone == "its request":
        # One that asks for too much: the engine is refused, and keeps what it has.
        story.required = [nic_tier(64, deviceClassName="other.example"), with_pools({"other.example": 8})]
    else:
        story.required = [with_nothing(), cluster()]
    rendered = story.render()
    assert rendered.condition(TIER_ATTACHED)["message"].count("keeps what attached it") == 1
    assert rendered.composed == settled.composed


def with_nothing() -> Manifest:
    """A tier that is being changed, and cannot be composed as it is."""
    found = nic_tier()
    del found["spec"]["rdma"]
    return found


def test_an_engine_that_waits_keeps_its_claim() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    settled = story.settle()
    story.required = [cluster()]
    story.before = desired(standalone(pod("--model=other/model")))
    eight = [{"name": "other", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 2}}]
    story.before[THEIRS] = wrap(claim(*eight))
    rendered = story.render()
    assert template(rendered) == template(settled)
    assert ours(rendered, story) == ours(settled, story)


def test_an_engine_that_never_ran_and_waits_has_no_claim() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    story.required = [cluster()]
    assert sorted(story.render().composed) == ["epp-config", THEIRS]


def test_another_request_is_another_template() -> None:
    story = nic_story(desired(standalone(pod(MODEL))))
    before = ours(story.settle(), story)
    story.required[0] = nic_tier(16)
    after = ours(story.render(), story)
    assert before.keys().isdisjoint(after)
    assert len(after) == 1


def with_pools(*pools: dict[str, int]) -> Manifest:
    """Let the cluster say what a node of each pool has, by DeviceClass; the first is the engine's."""
    found = cluster()
    found["status"]["gpuPools"] = [
        {
            "name": name,
            "devices": [
                {"name": f"d{n}", "claim": "DRA", "driver": "x", "deviceClassName": class_, "count": count}
                for n, (class_, count) in enumerate(devices.items())
            ],
        }
        for name, devices in zip(("h100", "large"), pools, strict=False)
    ]
    return found


@pytest.mark.parametrize(
    ("devices", "own", "reason"),
    [
        ({"rdma.example": 9}, 0, "Attached"),
        ({"rdma.example": 8}, 0, "InsufficientNICs"),
        ({"rdma.example": 16}, 8, "InsufficientNICs"),
        ({"rdma.example": 17}, 8, "Attached"),
        ({"gpu.nvidia.com": 8}, 8, "Attached"),
    ],
)
def test_the_sum_of_nics_is_the_engines_pools(devices: dict[str, int], own: int, reason: str) -> None:
    gpus = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 8}}
    mine = [{"name": "efa", "exactly": {"deviceClassName": "rdma.example", "count": own}}] if own else []
    before = desired(standalone(pod(MODEL)))
    before[THEIRS] = wrap(claim(gpus, *mine))
    story = nic_story(before)
    story.required[1] = with_pools(devices, {"rdma.example": 64})
    assert state(story.render(), TIER_ATTACHED)[1] == reason


def test_a_claim_is_left_as_it_is_where_the_tier_has_no_nics() -> None:
    before = desired(standalone(pod(MODEL))) | {"resource-claim-main-standalone": wrap(claim())}
    assert untouched(Step(before).render(), before)["resource-claim-main-standalone"] == wrap(claim())


# --- validated ----------------------------------------------------------------------------------------------------


def test_kubernetes_accepts_every_attached_template() -> None:
    """A LeaderWorkerSet has no schema of Kubernetes' own, so its templates are held against a Deployment's."""
    ray = ["ray", "start", "--address=$(MODELPLANE_LEADER_ADDRESS):6379", "--block"]
    stories = [
        Step(desired(standalone(pod(MODEL, "--tensor-parallel-size=8"))), **FORCED),
        Step(split(), replica("prefill", "decode", mode="PrefillDecode"), **FORCED),
        gang_story(pod(*RANK, command=SERVE), pod(*RANK, "--headless", command=SERVE, leader=False)),
        gang_story(pod(command=SERVE), pod(command=ray, leader=False)),
    ]
    seen = 0
    for rendered in (story.render() for story in stories):
        assert state(rendered, TIER_ATTACHED) == ("True", "Attached")
        for manifest in rendered.manifests:
            for member in (m for group in templates.find(manifest) for m in group.members):
                workload = standalone(member.template)
                workload["spec"]["template"]["metadata"].setdefault("labels", {})["modelplane.ai/workload"] = "main"
                assert schema_errors(workload) == []
                seen += 1
            if manifest["kind"] not in templates.KINDS:
                assert schema_errors(manifest) == []
    assert seen == 1 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("attached", "plain"),
    [
        (
            gang(pod(*RANK, command=SERVE), pod(*RANK, "--headless", command=SERVE, leader=False)),
            gang(
                pod(*RANK, command=SERVE, annotations=None),
                pod(*RANK, "--headless", command=SERVE, leader=False, annotations=None),
            ),
        ),
        (standalone(pod(MODEL)), standalone(pod(MODEL, annotations=None))),
    ],
)
def test_a_gang_or_an_engine_is_detached_to_the_same_bytes(attached: Manifest, plain: Manifest) -> None:
    story = Step(desired(attached))
    story.required[0] = pool_tier()
    assert state(story.settle(), TIER_ATTACHED) == ("True", "Attached")
    story.before = desired(plain)
    assert untouched(story.render(), desired(plain)) == desired(plain)


def test_a_pair_of_prefill_and_decode_is_detached_to_the_same_bytes() -> None:
    story = Step(split(), replica("prefill", "decode", mode="PrefillDecode"), **FORCED)
    story.settle()
    plain = copy.deepcopy(split())
    for wrapped in plain.values():
        del wrapped["spec"]["forProvider"]["manifest"]["spec"]["template"]["metadata"]["annotations"]
    story.before = plain
    assert untouched(story.render(), plain) == plain


# --- what would go unseen -----------------------------------------------------------------------------------------


def cron_job(template: Manifest) -> Manifest:
    spec = {"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "c", "namespace": "default"},
        "spec": spec,
    }


def on_the_workload() -> Manifest:
    workload = standalone(pod(MODEL, annotations=None))
    workload["metadata"]["annotations"] = dict(TIER)
    return wrap(workload)


def on_the_object() -> Manifest:
    return {**wrap(standalone(pod(MODEL, annotations=None))), "metadata": {"annotations": dict(TIER)}}


def on_a_gang_of_a_group() -> Manifest:
    role = {"name": "gang", "leaderWorkerSet": {"size": 2}, "template": pod(MODEL)}
    metadata = {"name": "g", "namespace": "default"}
    return wrap({"apiVersion": "x/v1", "kind": "RoleBasedGroup", "metadata": metadata, "spec": {"roles": [role]}})


@pytest.mark.parametrize(
    "lost", [on_the_workload(), on_the_object(), on_a_gang_of_a_group(), wrap(cron_job(pod(MODEL)))]
)
def test_an_annotation_where_nobody_looks_is_told_of(lost: Manifest) -> None:
    rendered = Step({"w": lost}).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "AnnotationMisplaced")
    assert "LeaderWorkerSet" in rendered.condition(TIER_ATTACHED)["message"]
    assert untouched(rendered, {"w": lost}) == {"w": lost}


def test_a_label_of_the_same_name_is_no_annotation() -> None:
    """A tier's own policies select engines by it."""
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
    selector = {"podSelector": {"matchLabels": {"kv-offload.modelplane.ai/tier": "x"}}}
    rendered = Step({"p": wrap({**policy, "spec": selector})}).render()
    assert rendered.composite["status"]["conditions"] == []


def test_an_annotation_that_nobody_knows_is_told_of() -> None:
    rendered = Step(desired(standalone(pod(MODEL, annotations=annotated(idenity="qwen"))))).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "InvalidAnnotation")
    message = rendered.condition(TIER_ATTACHED)["message"]
    assert "kv-offload.modelplane.ai/idenity is not known" in message
    assert "identity" in message
    assert "on-unavailable" in message


# --- another version of the function ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workload",
    [
        standalone(pod(MODEL)),
        gang(pod(*RANK, command=SERVE), pod(*RANK, "--headless", command=SERVE, leader=False)),
    ],
)
def test_a_newer_function_that_would_write_another_patch_changes_no_byte(
    workload: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Step(desired(workload))
    story.required[0] = pool_tier()
    before = story.settle()
    assert state(before, TIER_ATTACHED) == ("True", "Attached")
    monkeypatch.setattr("function.preflight._PROGRAM", "pass")
    monkeypatch.setattr("function.backends.mooncake.patches._LOCAL_BUFFER_BYTES", 1)
    assert story.render().composed == before.composed
    # Until something changes that it was decided by.
    spec = story.required[0]["spec"]
    spec["mooncake"] = {**spec["mooncake"], "metadata": "HTTP"}
    assert story.render().composed[MAIN] != before.composed[MAIN]
    story.required = [cluster()]
    assert story.render().composed == before.composed


# --- a Job --------------------------------------------------------------------------------------------------------


def test_a_job_keeps_what_it_was_made_with_since_its_template_never_changes() -> None:
    job = {**standalone(pod(MODEL)), "kind": "Job"}
    story = Step({"w": wrap(job)}, **FORCED)
    settled = story.settle()
    assert wired(engine(settled, "w"))
    story.required[0]["spec"]["lmcache"]["chunkSize"] = 512
    assert story.render().composed["w"] == settled.composed["w"]


def test_a_job_that_runs_without_a_tier_goes_on_without() -> None:
    plain = {"w": wrap({**standalone(pod(MODEL, annotations=None)), "kind": "Job"})}
    story = Step(plain, **FORCED)
    story.settle()
    story.before = {"w": wrap({**standalone(pod(MODEL)), "kind": "Job"})}
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "JobNeverChanges")
    assert untouched(rendered, story.before) == story.before


# --- variables from elsewhere -------------------------------------------------------------------------------------


def test_what_only_the_cluster_knows_keeps_engines_apart() -> None:
    """A ConfigMap may say that the model comes from another hub, or that KV is laid out anew."""

    def seeded(*refs: str, name: str = "llama-70b") -> str:
        own: Manifest = {"envFrom": [{"configMapRef": {"name": ref}} for ref in refs]} if refs else {}
        story = Step(desired(standalone(pod(MODEL, **own))))
        story.composite["metadata"]["labels"]["modelplane.ai/deployment"] = name
        return seed(story.render())

    assert seeded("a") == seeded("a")
    assert len({seeded(), seeded("a"), seeded("b"), seeded("a", name="mistral")}) == 4
