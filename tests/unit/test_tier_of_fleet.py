"""An engine that names a fleet is attached to the tier that this fleet has on the engine's own cluster."""

import copy
from typing import Any

import pytest

from function import kube
from function.api import annotations
from function.attachment import TIER_ATTACHED
from function.kube import ANNOTATION_PATCH, Manifest
from function.render import EXAMPLES, Rendered, load, render
from tests.unit import modelplane
from tests.unit.stories import Story, state
from tests.unit.test_step import FORCED, MAIN, MODEL, Step

CLUSTER: str = load(EXAMPLES / "lmcache-current" / "tier.yaml")[0]["spec"]["inferenceClusterRef"]["name"]
FLEET = {"name": "h200", "kind": "KVOffloadFleet"}


def tier_on(cluster: str, tier: Manifest) -> Manifest:
    """Give a tier as the fleet h200 would have it on a cluster."""
    found = copy.deepcopy(tier)
    found["metadata"]["name"] = kube.tier_of_fleet("h200", cluster)
    found["spec"]["inferenceClusterRef"]["name"] = cluster
    return found


def deployment(ref: Manifest, **spec: Any) -> Story:
    """Begin with the current engine, which names a tier or a fleet, and with the fleet's tiers on two clusters."""
    folder = EXAMPLES / "lmcache-current"
    (engine,), (tier,) = load(folder / "deployment.yaml"), load(folder / "tier.yaml")
    engine["spec"]["engine"]["kvCache"] = {"tierRef": ref}
    engine["spec"].update(spec)
    story = Story(engine, load(folder / "required.yaml"))
    story.required |= {name: tier_on(name, tier) for name in (CLUSTER, "other")}
    return story


def attached_to(rendered: Rendered) -> str:
    """Which tier an engine is attached to, by its condition."""
    found = rendered.condition(TIER_ATTACHED)
    assert (found["status"], found["reason"]) == ("True", "Attached")
    return found["message"].rpartition("/")[2]


def test_an_engine_has_the_tier_of_its_own_cluster() -> None:
    story = deployment(FLEET, inferenceClusterRef={"name": CLUSTER})
    assert attached_to(story.settle()) == kube.tier_of_fleet("h200", CLUSTER)


def test_to_name_the_fleet_or_its_tier_is_the_same_to_the_byte() -> None:
    by_fleet = deployment(FLEET, inferenceClusterRef={"name": CLUSTER})
    before = by_fleet.settle().composed
    assert before
    by_fleet.composite["spec"]["engine"]["kvCache"]["tierRef"] = {"name": kube.tier_of_fleet("h200", CLUSTER)}
    assert by_fleet.render().composed == before


def test_before_the_fleet_has_a_tier_there_the_engine_waits_and_says_for_what() -> None:
    story = deployment(FLEET, inferenceClusterRef={"name": CLUSTER})
    del story.required[CLUSTER]
    rendered = story.render()
    assert state(rendered, TIER_ATTACHED) == ("False", "TierNotFound")
    assert rendered.composed == {}
    name = kube.tier_of_fleet("h200", CLUSTER)
    assert (
        f"KVOffloadTier modelplane-system/{name} does not exist; KVOffloadFleet modelplane-system/h200 has it once it "
        f"selects InferenceCluster {CLUSTER} and the turn of that has come"
    ) in rendered.condition(TIER_ATTACHED)["message"]


def test_an_engine_that_runs_stays_with_the_tier_of_the_cluster_that_it_is_on() -> None:
    story = deployment(FLEET, inferenceClusterRef={"name": CLUSTER})
    before = story.settle().composed
    assert before
    story.composite["spec"]["inferenceClusterRef"] = {"name": "other"}
    assert story.render().composed == before


def test_a_fleet_needs_a_cluster_to_have_a_tier_on() -> None:
    story = deployment(FLEET)
    story.composite["spec"].pop("inferenceClusterRef", None)
    message = story.render().condition("Accepted")["message"]
    assert message.startswith("spec: inferenceClusterRef is required with engine.kvCache.tierRef.kind KVOffloadFleet")


# --- in a pipeline ----------------------------------------------------------------------------------------------------


def replica(composite: Manifest | None = None) -> Step:
    """Begin with a ModelReplica on eu-h100 whose engine names the fleet by annotations."""
    named = modelplane.pod(MODEL)
    named["metadata"]["annotations"] = {annotations.TIER: "h200", f"{annotations.PREFIX}tier-kind": "KVOffloadFleet"}
    step = Step(modelplane.desired(modelplane.standalone(named)), composite, **FORCED)
    (tier, cluster) = step.required
    step.required = [tier_on("eu-h100", tier), tier_on("other", tier), cluster]
    return step


def test_a_replica_has_the_tier_of_the_cluster_that_it_is_scheduled_to() -> None:
    composite = modelplane.replica()
    composite["spec"]["clusterName"] = "eu-h100"
    rendered = replica(composite).settle()
    assert attached_to(rendered) == kube.tier_of_fleet("h200", "eu-h100")
    assert ANNOTATION_PATCH in rendered.composed[MAIN]["metadata"]["annotations"]


def test_any_composite_may_say_by_a_label_which_cluster_it_is_for() -> None:
    composite = modelplane.replica()
    composite["spec"].pop("clusterName", None)
    composite["metadata"].setdefault("labels", {})["modelplane.ai/cluster"] = "eu-h100"
    assert attached_to(replica(composite).settle()) == kube.tier_of_fleet("h200", "eu-h100")


def test_a_composite_that_does_not_say_is_told_how() -> None:
    composite = modelplane.replica()
    composite["spec"].pop("clusterName", None)
    composite["metadata"].get("labels", {}).pop("modelplane.ai/cluster", None)
    rendered = replica(composite).render()
    assert state(rendered, TIER_ATTACHED) == ("False", "ClusterUnknown")
    assert (
        "set the composite's spec.clusterName or label modelplane.ai/cluster"
        in rendered.condition(TIER_ATTACHED)["message"]
    )


def test_a_replica_on_another_cluster_than_it_says_is_not_attached() -> None:
    composite = modelplane.replica()
    composite["spec"]["clusterName"] = "other"
    assert state(replica(composite).render(), TIER_ATTACHED)[1] in {"TierOnOtherCluster", "ClusterNotFound"}


def test_a_fleet_and_a_tier_of_one_name_are_two() -> None:
    composite = modelplane.replica()
    composite["spec"]["clusterName"] = "eu-h100"
    step = replica(composite)
    other = modelplane.pod(MODEL)
    other["metadata"]["annotations"] = {annotations.TIER: "h200"}
    step.before = {**step.before, "second": modelplane.wrap(modelplane.standalone(other))}
    rendered = step.render()
    assert "second: KVOffloadTier modelplane-system/h200 does not exist" in rendered.condition(TIER_ATTACHED)["message"]


@pytest.mark.parametrize("wrong", ["Fleet", ""])
def test_another_kind_is_said_by_its_annotation(wrong: str) -> None:
    step = replica()
    manifest = step.before[MAIN]["spec"]["forProvider"]["manifest"]
    manifest["spec"]["template"]["metadata"]["annotations"][f"{annotations.PREFIX}tier-kind"] = wrong
    message = step.render().condition(TIER_ATTACHED)["message"]
    assert message.startswith(f"annotation {annotations.PREFIX}tier-kind (is {wrong!r}): ")


# --- behind another tier ----------------------------------------------------------------------------------------------


def test_a_tier_may_have_a_fleets_tier_behind_it() -> None:
    base = {"apiVersion": "modelplane.ai/v1alpha1", "kind": "KVOffloadTier"}
    l3 = {"tierRef": {"name": "h200", "kind": "KVOffloadFleet"}}
    hicache = {"backend": "HiCache", "hicache": {"hostMemoryGiBPerNode": 64, "l3": l3}}
    where = {"inferenceClusterRef": {"name": "eu-h100"}}
    tier = {**base, "metadata": {"name": "h200", "namespace": "modelplane-system"}, "spec": {**where, **hicache}}
    pool = {"backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}
    there = {**base, "metadata": {"name": "x", "namespace": "modelplane-system"}, "spec": {**where, **pool}}
    cluster = {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": "eu-h100"},
        "status": {"providerConfigRef": {"name": "eu"}},
    }
    rendered = render(tier, [], [cluster, tier_on("eu-h100", there)])
    name = kube.tier_of_fleet("h200", "eu-h100")
    assert (
        rendered.condition("ControlPlaneReady")["message"] == f"KVOffloadTier modelplane-system/{name} has not said yet"
    )
    (usage,) = [m for m in rendered.composed.values() if m["kind"] == "Usage"]
    assert usage["spec"]["of"]["resourceRef"]["name"] == name
