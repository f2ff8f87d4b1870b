"""What stands behind a tier cannot be deleted while the tier is there."""

import copy

from function.kube import Manifest
from function.render import render
from tests.standin import observe
from tests.unit.test_specs import BEHIND, required, tier

HICACHE: Manifest = {
    "inferenceClusterRef": {"name": "eu-h100"},
    "backend": "HiCache",
    "hicache": {"ratio": 2, "l3": {"tierRef": {"name": "behind"}}},
}
USE: Manifest = {
    "of": {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "resourceRef": {"name": "behind"},
    },
    "reason": "KVOffloadTier modelplane-system/shared uses it",
    "replayDeletion": True,
}


def uses(composed: dict[str, Manifest]) -> dict[str, Manifest]:
    """Give the Usages, by key."""
    return {key: manifest["spec"] for key, manifest in composed.items() if manifest["kind"] == "Usage"}


def test_a_tier_protects_the_one_behind_it_from_the_first_pass_on() -> None:
    rendered = render(tier(HICACHE), [], required())
    assert uses(rendered.composed) == {"uses-behind": USE}
    assert rendered.composed["uses-behind"]["apiVersion"] == "protection.crossplane.io/v1beta1"


def test_it_has_no_by_since_its_own_composite_would_wait_for_it() -> None:
    (spec,) = uses(render(tier(HICACHE), [], required()).composed).values()
    assert "by" not in spec


def test_it_is_there_before_the_tier_behind_is() -> None:
    absent = [r for r in required() if r["metadata"]["name"] != "behind"]
    assert uses(render(tier(HICACHE), [], absent).composed) == {"uses-behind": USE}


def test_a_wrong_spec_does_not_let_go() -> None:
    first = render(tier(HICACHE), [], required())
    wrong = copy.deepcopy(first.composite)
    wrong["spec"]["hicache"]["ratio"] = 0.5
    later = render(wrong, observe(first), required())
    assert later.condition("Accepted")["status"] == "False"
    assert uses(later.composed) == {"uses-behind": USE}


def test_another_tier_behind_is_another_usage_and_the_old_one_goes() -> None:
    first = render(tier(HICACHE), [], required())
    moved = copy.deepcopy(first.composite)
    moved["spec"]["hicache"]["l3"]["tierRef"]["name"] = "other"
    other = {**copy.deepcopy(BEHIND), "metadata": {**BEHIND["metadata"], "name": "other"}}
    later = render(moved, observe(first), [*required(), other])
    assert list(uses(later.composed)) == ["uses-other"]
    names = {manifest["metadata"]["name"] for manifest in (*first.composed.values(), *later.composed.values())}
    assert len(names) == 2


def test_a_tier_without_one_behind_uses_nothing() -> None:
    alone = {**HICACHE, "hicache": {"ratio": 2}}
    assert uses(render(tier(alone), [], required()).composed) == {}
