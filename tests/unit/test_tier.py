"""A KVOffloadTier's life, pass after pass."""

import base64
import functools
import json

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import fn, kube, tier
from function.kube import Manifest
from function.render import Rendered, outcome, render, request
from tests.examples import PASSWORD
from tests.unit.stories import Story, messages, pod, specs, state, tier_story

AGENTS = "agents-gke-h200-prod"
SECRET = "credentials-gke-h200-prod"
CONNECTOR = "connector-gke-h200-prod"


def agent_args(rendered: Rendered) -> list[str]:
    args: list[str] = pod(rendered, "DaemonSet")["spec"]["containers"][0]["args"]
    return args


def adapter(rendered: Rendered, type_: str) -> dict[str, object]:
    found = [json.loads(a.removeprefix("--l2-adapter=")) for a in agent_args(rendered) if a.startswith("--l2-adapter=")]
    (only,) = [a for a in found if a["type"] == type_]
    return dict(only)


# --- the seed -----------------------------------------------------------------------------------------------------


def test_the_seeds_numbers() -> None:
    rendered = tier_story().render()
    container = pod(rendered, "DaemonSet")["spec"]["containers"][0]
    assert "--l1-size-gb=64" in container["args"]
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "69Gi"}, "limits": {"memory": "104Gi"}}
    assert adapter(rendered, "fs_native")["max_capacity_gb"] == 921.6
    volume = pod(rendered, "DaemonSet")["spec"]["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert volume["storageClassName"] == "nvme-local"
    assert volume["resources"]["requests"]["storage"] == "1Ti"
    assert adapter(rendered, "resp") == {"type": "resp", "host": "kv-redis.modelplane-system", "port": 6379}
    (config,) = [m for m in rendered.manifests if m["kind"] == "ConfigMap"]
    assert "max_local_cpu_size: 2.0\n" in config["data"]["lmcache.yaml"]
    assert rendered.composite["status"]["memory"] == {
        "cacheGiB": 64,
        "overheadGiB": 5,
        "requestGiB": 69,
        "limitGiB": 104,
        "stagingGiBPerRank": 2,
    }


def test_the_agent_claims_no_gpu_and_runs_with_least_privilege() -> None:
    spec = pod(tier_story().render(), "DaemonSet")["spec"]
    container = spec["containers"][0]
    assert "nvidia.com/gpu" not in json.dumps(container["resources"])
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
    assert spec["runtimeClassName"] == "nvidia"
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert "hostNetwork" not in spec and "hostIPC" not in spec


def test_the_secret_holds_only_what_is_used_and_nothing_else_holds_any_of_it() -> None:
    story = tier_story()
    story.required["Secret"]["data"]["admin-token"] = base64.b64encode(b"not ours").decode()
    rendered = story.render()
    (secret,) = [m for m in rendered.manifests if m["kind"] == "Secret"]
    assert set(secret["data"]) == {"username", "password", "redis-url"}
    url = base64.b64decode(secret["data"]["redis-url"]).decode()
    assert url == "redis://kv:not%40a%3Areal%2Fpass%25word%23@kv-redis.modelplane-system:6379"
    del rendered.composed[SECRET]
    everything = json.dumps([rendered.composite, rendered.composed, rendered.results])
    for form in (PASSWORD, "not%40a", base64.b64encode(PASSWORD.encode()).decode()):
        assert form not in everything


# --- passes -------------------------------------------------------------------------------------------------------


def test_first_sight_composes_everything_and_is_not_ready() -> None:
    rendered = tier_story().render()
    assert set(rendered.composed) == {
        f"{part}-gke-h200-prod"
        for part in ("agents", "connector", "credentials", "network-policy", "service", "service-account")
    }
    assert state(rendered, tier.ACCEPTED) == ("True", "Accepted")
    assert state(rendered, tier.AGENTS_READY) == ("False", "Creating")
    assert messages(rendered) == []


def test_while_unresolved_nothing_is_fatal_and_nothing_that_runs_is_dropped() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.required = {}  # the first round of every reconcile sees this
    rendered = render_first_round(story)
    assert not rendered.fatal
    assert specs(rendered) == specs(settled)


def render_first_round(story: Story) -> Rendered:
    """Render one round only: requirements are declared and not one of them is resolved."""
    return outcome(story.composite, fn.run(request(story.composite, story.observed)))


def test_all_conditions_are_there_on_every_path() -> None:
    paths = {
        "first sight": tier_story().render(),
        "settled": tier_story().settle(),
        "invalid": tier_story(lambda t: t["spec"].update(backend="Nope")).render(),
        "no cluster": render(tier_story().composite),
        "first round": render_first_round(tier_story()),
    }
    for path, rendered in paths.items():
        types = [c["type"] for c in rendered.composite["status"]["conditions"]]
        assert types == list(tier.VOCABULARY), path


def test_it_is_ready_when_the_cluster_shows_it_and_a_second_pass_changes_nothing() -> None:
    story = tier_story()
    settled = story.settle()
    untrue = {c["type"] for c in settled.composite["status"]["conditions"] if c["status"] != "True"}
    assert untrue == {
        tier.HOST_NETWORK,
        tier.KEYS_NOT_DURABLE,
        tier.ETCD_FILLS_UP,
        tier.INSUFFICIENT_NICS,
        tier.LEGACY,
    }
    assert settled.composite["status"]["agents"] == "2/2"
    story.happen()
    again = story.render()
    assert again.composed == settled.composed
    assert again.composite == settled.composite
    assert messages(again) == []


def test_becoming_ready_is_told_once() -> None:
    story = tier_story()
    settled = story.settle()
    assert "normal: AgentsReady: 2 of 2 agents are ready" in messages(settled)
    story.happen()
    assert messages(story.render()) == []


def test_a_pool_of_no_nodes_is_ready() -> None:
    story = tier_story()
    story.render()
    story.happen(nodes=0)
    rendered = story.render()
    assert state(rendered, tier.AGENTS_AVAILABLE) == ("True", "NoNodes")
    assert state(rendered, tier.AGENTS_READY) == ("True", "NoNodes")
    assert rendered.composite["status"]["agents"] == "0/0"


def test_one_agent_of_two_is_available_but_not_ready() -> None:
    story = tier_story()
    story.render()
    story.happen(ready=1)
    rendered = story.render()
    assert state(rendered, tier.AGENTS_AVAILABLE) == ("True", "Available")
    assert state(rendered, tier.AGENTS_READY) == ("False", "Rolling")
    assert rendered.composite["status"]["agents"] == "1/2"


def test_a_new_spec_is_not_ready_by_the_old_ones_readiness() -> None:
    story = tier_story()
    story.settle()
    story.happen()
    story.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 128
    rendered = story.render()  # the provider has not applied it yet, and still says Ready
    assert state(rendered, tier.ROLLED_OUT) == ("False", "Applying")
    assert state(rendered, tier.AGENTS_READY) == ("False", "Rolling")
    assert rendered.composite["status"]["pendingDisruption"] == "2 agents restart 1 at a time, each with an empty cache"


def test_a_rolling_update_says_how_far_it_is() -> None:
    story = tier_story()
    story.settle()
    story.happen(updated=1)
    rendered = story.render()
    assert state(rendered, tier.ROLLED_OUT) == ("False", "Rolling")
    assert rendered.condition(tier.ROLLED_OUT)["message"] == "1 of 2 agents run the newest revision"
    assert rendered.composite["status"]["pendingDisruption"] == "1 agent restarts 1 at a time, each with an empty cache"


def test_on_delete_agents_that_are_not_replaced_are_ready_and_not_up_to_date() -> None:
    story = tier_story(lambda t: t["spec"].update(updateStrategy={"type": "OnDelete"}))
    story.render()
    story.happen(updated=0)
    rendered = story.render()
    assert state(rendered, tier.AGENTS_READY) == ("True", "AllReady")
    assert state(rendered, tier.ROLLED_OUT) == ("False", "Rolling")
    assert "when their pods are deleted" in rendered.composite["status"]["pendingDisruption"]


# --- trouble ------------------------------------------------------------------------------------------------------


def gone(kind: str) -> Rendered:
    """Settle a tier, then take one thing that it requires away."""
    story = tier_story()
    story.settle()
    story.happen()
    del story.required[kind]
    return story.render()


def test_a_cluster_that_is_gone_changes_nothing_that_runs() -> None:
    rendered = gone("InferenceCluster")
    assert specs(rendered) == specs(tier_story().settle())
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "ClusterNotFound")
    expected = "InferenceCluster gke-h200-prod does not exist; what runs there stays as it is"
    assert messages(rendered) == [f"warning: ClusterReachable: {expected}"]


def test_a_cluster_that_comes_back_clears_its_condition() -> None:
    story = tier_story()
    cluster = story.required["InferenceCluster"]
    settled = story.settle()
    story.happen()
    del story.required["InferenceCluster"]
    story.render()
    story.required["InferenceCluster"] = cluster
    rendered = story.render()
    assert specs(rendered) == specs(settled)
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("True", "Reachable")


def test_a_secret_that_is_gone_keeps_its_copy() -> None:
    rendered = gone("Secret")
    assert specs(rendered) == specs(tier_story().settle())
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "SecretNotFound")
    assert rendered.condition(tier.CREDENTIALS_RESOLVED)["message"] == (
        "Secret modelplane-system/kv-redis-auth does not exist; the copy on the cluster stays"
    )


def test_a_secret_that_is_not_there_yet_holds_back_only_itself() -> None:
    story = tier_story()
    secret = story.required.pop("Secret")
    rendered = story.render()
    assert SECRET not in rendered.composed
    assert AGENTS in rendered.composed
    story.happen()
    story.required["Secret"] = secret
    assert SECRET in story.render().composed


def test_a_secret_that_loses_its_key_keeps_its_copy_and_says_which_key() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.required["Secret"]["data"] = {"pass": "eA=="}
    rendered = story.render()
    assert specs(rendered) == specs(settled)
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "KeyMissing")
    assert rendered.condition(tier.CREDENTIALS_RESOLVED)["message"] == (
        "Secret modelplane-system/kv-redis-auth has no key 'password'"
    )


def test_a_rotated_secret_reaches_the_cluster_and_restarts_nothing() -> None:
    story = tier_story()
    before = story.settle()
    story.happen()
    story.required["Secret"]["data"]["password"] = base64.b64encode(b"rotated").decode()
    story.required["Secret"]["metadata"]["resourceVersion"] = "2"
    after = story.render()
    assert {k for k in after.composed if specs(after)[k] != specs(before)[k]} == {SECRET}
    assert state(after, tier.ROLLED_OUT) == ("False", "Applying")
    story.happen()
    assert state(story.render(), tier.ROLLED_OUT) == ("True", "RolledOut")


def test_a_renamed_provider_config_repoints_nothing() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.required["InferenceCluster"]["status"]["providerConfigRef"]["name"] = "another"
    story.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 128  # even a new spec goes where the old one went
    rendered = story.render()
    names = {o["spec"]["providerConfigRef"]["name"] for o in rendered.composed.values()}
    assert names == {settled.composed[AGENTS]["spec"]["providerConfigRef"]["name"]}
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "ProviderConfigChanged")


def test_a_cluster_without_a_provider_config_is_awaited() -> None:
    story = tier_story()
    del story.required["InferenceCluster"]["status"]
    rendered = story.render()
    assert rendered.composed == {}
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "NoProviderConfig")


def test_a_tier_that_is_moved_by_force_stays_where_it_runs() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.composite["spec"]["inferenceClusterRef"]["name"] = "elsewhere"
    story.required["InferenceCluster"]["metadata"]["name"] = "elsewhere"
    rendered = story.render()
    assert specs(rendered) == specs(settled)
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "ClusterMoved")


def test_a_cluster_that_is_unreachable_is_said_although_its_objects_are_ready() -> None:
    story = tier_story()
    story.settle()
    story.happen(reachable=False)
    rendered = story.render()
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "ApplyFailed")
    assert "connection refused" in rendered.condition(tier.CLUSTER_REACHABLE)["message"]
    story.happen()
    assert state(story.render(), tier.CLUSTER_REACHABLE) == ("True", "Reachable")


def test_an_invalid_spec_keeps_what_runs_and_its_status() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 0
    rendered = story.render()
    assert specs(rendered) == specs(settled)
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    for field in ("release", "agents", "connector", "memory", "revision"):
        assert rendered.composite["status"][field] == settled.composite["status"][field]


def test_what_is_kept_is_only_what_we_own() -> None:
    story = tier_story()
    settled = story.settle()
    story.happen()
    story.composite["spec"]["backend"] = "Nope"
    rendered = story.render()
    for key, manifest in rendered.composed.items():
        assert manifest == settled.composed[key], key


def test_a_release_that_is_latched_holds() -> None:
    story = tier_story()
    assert story.render().composite["status"]["release"] == "2026.11"
    story.composite["status"]["release"] = "1999.01"
    rendered = story.render()
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    assert "1999.01" in rendered.condition(tier.ACCEPTED)["message"]


def test_a_secret_ref_to_nothing_takes_no_agent_down() -> None:
    story = tier_story(lambda t: t["spec"]["lmcache"]["remote"]["redis"].pop("secretRef"))
    before = story.settle()
    story.happen()
    story.composite["spec"]["lmcache"]["remote"]["redis"]["secretRef"] = {"name": "typo"}
    rendered = story.render()
    assert specs(rendered)[AGENTS] == specs(before)[AGENTS]
    assert rendered.condition(tier.CREDENTIALS_RESOLVED)["message"] == "Secret modelplane-system/typo does not exist"


def test_marks_that_somebody_removed_lose_nothing() -> None:
    for mark in ("labels", "annotations"):
        story = tier_story()
        before = story.settle()
        story.happen()
        for observed in story.observed:
            observed["metadata"][mark] = {k: v for k, v in observed["metadata"][mark].items() if "crossplane.io" in k}
        del story.required["InferenceCluster"]
        rendered = story.render()
        assert set(rendered.composed) == set(before.composed), mark


def test_one_lost_annotation_heals() -> None:
    story = tier_story()
    story.settle()
    story.happen()
    del story.observed[0]["metadata"]["annotations"]["kv-offload.modelplane.ai/cluster"]
    story.composite["spec"]["backend"] = "Nope"
    rendered = story.render()
    assert rendered.composed[AGENTS]["metadata"]["annotations"]["kv-offload.modelplane.ai/cluster"] == "gke-h200-prod"


def test_what_earlier_steps_wrote_stays() -> None:
    req = request(tier_story().composite)
    req.desired.composite.resource.update({"status": {"theirs": 1}})
    req.desired.composite.ready = fnv1.READY_FALSE
    req.desired.resources["theirs"].resource.update({"kind": "ConfigMap"})
    rsp = fn.run(req)
    assert kube.integer(rsp.desired.composite.resource, "status", "theirs") == 1
    assert rsp.desired.composite.ready == fnv1.READY_FALSE
    assert "theirs" in rsp.desired.resources


def test_an_invalid_spec_still_tells_how_the_agents_are() -> None:
    story = tier_story()
    story.settle()
    story.happen(ready=0)
    story.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 0
    rendered = story.render()
    assert rendered.composite["status"]["agents"] == "0/2"
    assert state(rendered, tier.AGENTS_AVAILABLE) == ("False", "NoneReady")
    assert state(rendered, tier.ROLLED_OUT) == ("False", "Held")


def test_a_mode_that_changes_leaves_kept_engines_their_files() -> None:
    story = tier_story()
    story.settle()
    story.happen()
    story.composite["spec"]["lmcache"]["mode"] = "Multiprocess"
    (config,) = [m for m in story.render().manifests if m["kind"] == "ConfigMap"]
    (secret,) = [m for m in story.render().manifests if m["kind"] == "Secret"]
    assert "lmcache.yaml" in config["data"]
    assert "redis-url" in secret["data"]


# --- in process ---------------------------------------------------------------------------------------------------


def in_process(t: Manifest) -> None:
    t["spec"]["lmcache"]["mode"] = "InProcess"


def pools(*gpus: int) -> list[Manifest]:
    nic = {"name": "nic", "driver": "dra.net", "count": 16}
    return [
        {"name": f"pool-{n}", "devices": [{"name": "gpu", "driver": "gpu.nvidia.com", "count": n}, nic]} for n in gpus
    ]


def test_in_process_without_gpus_per_node_says_what_to_set() -> None:
    rendered = tier_story(in_process).render()
    assert rendered.composed == {}
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    assert rendered.condition(tier.ACCEPTED)["message"] == (
        "spec.placement.gpusPerNode is required with lmcache.mode InProcess, since InferenceCluster gke-h200-prod "
        "reports no GPU pools"
    )


def test_in_process_shares_by_the_largest_pool_and_runs_no_agents() -> None:
    story = tier_story(in_process)
    story.required["InferenceCluster"]["status"]["gpuPools"] = pools(4, 8)
    rendered = story.settle()
    assert sorted(m["kind"] for m in rendered.manifests) == ["ConfigMap", "Secret"]
    assert rendered.composite["status"]["memory"] == {"cacheGiB": 64, "gpusPerNode": 8, "perRankGiB": 8}
    assert rendered.composite["status"]["agents"] == "n/a"
    assert state(rendered, tier.AGENTS_READY) == ("True", "NotNeeded")


def test_in_process_keeps_its_numbers_while_the_cluster_is_gone() -> None:
    story = tier_story(in_process)
    story.required["InferenceCluster"]["status"]["gpuPools"] = pools(8)
    settled = story.settle()
    story.happen()
    del story.required["InferenceCluster"]
    rendered = story.render()
    assert specs(rendered) == specs(settled)
    assert state(rendered, tier.ACCEPTED) == ("True", "Accepted")
    assert state(rendered, tier.CLUSTER_REACHABLE) == ("False", "ClusterNotFound")


# --- requests that no Crossplane sends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("composite", "says"),
    [
        ({}, "composite: observed composite has no metadata.name"),
        ({"kind": "Pod"}, "Pod: observed composite has no metadata.name"),
        ({"kind": "KVOffloadTier"}, "KVOffloadTier: observed composite has no metadata.name"),
        ({"kind": "ModelDeployment", "metadata": {}}, "ModelDeployment: observed composite has no metadata.name"),
    ],
)
def test_a_malformed_request_is_fatal_in_one_sentence(composite: Manifest, says: str) -> None:
    rsp = fn.run(request(composite))
    assert [r.severity for r in rsp.results] == [fnv1.SEVERITY_FATAL]
    assert rsp.results[0].message.startswith(says)
    assert "Traceback" not in rsp.results[0].message
    assert "\n" not in rsp.results[0].message


def test_a_composite_whose_spec_is_of_another_shape_is_a_condition() -> None:
    specs_: tuple[object, ...] = ("text", 5, [], {"lmcache": "text", "backend": "LMCache"}, {})
    for spec in specs_:
        story = tier_story(functools.partial(dict.update, spec=spec))
        rendered = story.render()
        assert not rendered.fatal
        assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
