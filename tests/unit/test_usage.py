"""What is in use cannot be deleted: a tier while engines are attached to it, and what stands behind a tier."""

import copy
from collections.abc import Callable, Iterator

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import kube, usage
from function.fn import run
from function.kube import Manifest
from function.render import Rendered, outcome, render, request
from tests.standin import observe
from tests.unit.stories import Story, engine_story, pod, tier_story
from tests.unit.test_properties import deployment
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


# --- an engine's tier ---------------------------------------------------------------------------------------------


# sha256("kvtier/modelplane-system/lmcache-h200") begins with 987d1.
ENGINE, KEY = "engine-gke-h200-prod", "uses-kvtier-modelplane-system-lmcache-h200-987d1"
TIER = KEY.removeprefix("uses-")
OTHER: Manifest = {**tier({"inferenceClusterRef": {"name": "gke-h200-prod"}, "backend": "LMCache"}, "other")}
OTHER["spec"]["lmcache"] = {"cpuTierGiBPerNode": 64}


class Fleet(Story):
    """An engine's story beside two tiers, so that it may change from one to the other."""

    def __init__(self) -> None:
        begun = engine_story()
        super().__init__(begun.composite, list(begun.required.values()))
        self.required["other"] = copy.deepcopy(OTHER)

    def name(self, to: str | None) -> None:
        """Name another tier, or none."""
        engine = self.composite["spec"]["engine"]
        self.composite["spec"]["inferenceClusterRef"] = {"name": "gke-h200-prod"}
        engine.pop("kvCache", None)
        if to:
            engine["kvCache"] = {"tierRef": {"name": to}}

    def runs(self) -> Rendered:
        """Let the engine run, and look at it once it does."""
        self.settle()
        self.happen()
        return self.render()


def of_tier(name: str, namespace: str = "modelplane-system") -> Manifest:
    ref = {"name": name, "namespace": namespace}
    return {"apiVersion": "modelplane.ai/v1alpha1", "kind": "KVOffloadTier", "resourceRef": ref}


def tiers_used(rendered: Rendered) -> list[str]:
    return sorted(spec["of"]["resourceRef"]["name"] for spec in uses(rendered.composed).values())


def test_an_attached_engine_protects_its_tier_from_the_first_pass_on() -> None:
    rendered = engine_story().render()
    assert uses(rendered.composed) == {
        KEY: {
            "of": of_tier("lmcache-h200"),
            "by": {
                "apiVersion": "kubernetes.m.crossplane.io/v1alpha1",
                "kind": "Object",
                "resourceRef": {"name": rendered.composed[ENGINE]["metadata"]["name"]},
            },
            "reason": "ModelDeployment default/llama-70b is attached to it",
            "replayDeletion": True,
        }
    }
    metadata = rendered.composed[KEY]["metadata"]
    assert metadata["labels"]["kv-offload.modelplane.ai/tier"] == TIER
    # Who is refused reads this name, and not the reason.
    assert metadata["name"].startswith("engine-llama-70b-uses-modelplane-system-lmcach")


def test_the_label_is_the_one_that_the_tiers_engines_have() -> None:
    rendered = engine_story().render()
    labels = pod(rendered)["metadata"]["labels"]
    assert labels["kv-offload.modelplane.ai/tier"] == TIER
    assert (
        tier_story().render().composed["connector-gke-h200-prod"]["spec"]["forProvider"]["manifest"]["metadata"]["name"]
        == TIER
    )


def test_the_usage_is_ready_whatever_becomes_of_its_tier() -> None:
    story = engine_story()
    rsp = run(request(story.composite, (), [(k, story.required[v]) for k, v in WANTED.items()]))
    assert rsp.desired.resources[KEY].ready == fnv1.READY_TRUE


WANTED = {"tier": "KVOffloadTier", "cluster": "InferenceCluster"}


@pytest.mark.parametrize("lost", ["gone", "invalid", "moved"])
def test_it_stays_while_the_engine_keeps_what_attached_it(lost: str) -> None:
    story = Fleet()
    before = story.runs()
    if lost == "gone":
        del story.required["KVOffloadTier"]
    elif lost == "invalid":
        story.required["KVOffloadTier"]["spec"]["backend"] = "Nope"
    else:
        story.required["KVOffloadTier"]["spec"]["inferenceClusterRef"]["name"] = "another"
    story.composite["spec"]["replicas"] = 3
    assert uses(story.render().composed) == uses(before.composed)


def test_it_stays_when_a_tier_is_named_that_is_not_there() -> None:
    story = Fleet()
    story.runs()
    story.name("nowhere")
    assert tiers_used(story.render()) == ["lmcache-h200"]


def test_an_engine_of_before_gets_one() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    story.observed = [o for o in story.observed if o["kind"] != "Usage"]
    assert story.render().composed == before.composed


@pytest.mark.parametrize(
    ("to", "rolling", "then"), [(None, ["lmcache-h200"], []), ("other", ["lmcache-h200", "other"], ["other"])]
)
def test_the_tier_that_an_engine_leaves_is_in_use_until_its_last_pod_has_gone(
    to: str | None, rolling: list[str], then: list[str]
) -> None:
    story = Fleet()
    story.runs()
    story.name(to)
    assert tiers_used(story.render()) == rolling
    story.happen(surge=1)
    assert tiers_used(story.render()) == rolling
    story.happen(reachable=False)
    assert tiers_used(story.render()) == rolling
    story.happen()
    assert tiers_used(story.render()) == then


def test_an_engine_that_comes_back_while_it_leaves_is_attached_as_before() -> None:
    story = Fleet()
    before = story.runs()
    story.name("other")
    story.render()
    story.happen(surge=1)
    story.name("lmcache-h200")
    story.render()
    story.happen()
    after = story.render()
    assert uses(after.composed) == uses(before.composed)


def test_one_that_somebody_changed_is_mended_while_the_engine_rolls() -> None:
    story = Fleet()
    before = story.runs()
    story.composite["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.12.0"
    story.render()
    story.happen(surge=1)
    (observed,) = (o for o in story.observed if o["kind"] == "Usage")
    observed["spec"]["reason"] = "none"
    del observed["metadata"]["labels"][kube.LABEL_TIER]
    assert story.render().composed[KEY] == before.composed[KEY]


def test_only_usages_by_what_is_named_are_kept() -> None:
    story = engine_story()
    story.settle()
    story.happen()
    req, name = request(story.composite, story.observed), story.observed[0]["metadata"]["name"]
    for by, kept in ((None, {KEY}), ([name], {KEY}), (["another"], set()), ((), set())):
        rsp = fnv1.RunFunctionResponse()
        usage.keep(req, rsp, by)
        assert set(rsp.desired.resources) == kept, by


def test_the_users_own_wiring_lets_go_of_the_tier() -> None:
    story = Fleet()
    story.runs()
    story.composite["spec"]["engine"]["args"].append("--kv-offloading-size=8")
    assert tiers_used(story.runs()) == []


def written_by_crossplane(usage: Manifest) -> None:
    """Add what Crossplane's own controllers write to a Usage."""
    usage["metadata"] |= {"uid": "u", "finalizers": ["usage.apiextensions.crossplane.io"], "resourceVersion": "7"}
    usage["metadata"]["annotations"]["crossplane.io/usage-details"] = usage["spec"]["reason"]
    usage["metadata"]["ownerReferences"] = [{"kind": "Object", "name": "x", "uid": "v"}]
    usage["status"] = {"conditions": [{"type": "Ready", "status": "True", "reason": "Available"}]}


def wrong(story: Story) -> None:
    story.composite["spec"]["engine"]["image"] = ""


def no_cluster(story: Story) -> None:
    del story.required["InferenceCluster"]


def nothing_is_there(story: Story) -> None:
    story.required.clear()


@pytest.mark.parametrize("happens", [wrong, no_cluster, nothing_is_there])
def test_what_is_held_keeps_it_and_writes_nothing_that_is_crossplanes(happens: Callable[[Story], None]) -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    for observed in story.observed:
        if observed["kind"] == "Usage":
            written_by_crossplane(observed)
    happens(story)
    assert story.render().composed[KEY] == before.composed[KEY]


def test_before_anything_is_read_it_is_kept() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    rsp = run(request(story.composite, story.observed))
    assert uses(outcome(story.composite, rsp).composed) == uses(before.composed)


def waits(story: Story) -> None:
    del story.required["KVOffloadTier"]


def serves_without(story: Story) -> None:
    waits(story)
    story.composite["spec"]["engine"]["kvCache"]["onUnavailable"] = "ServeWithout"
    story.composite["spec"]["inferenceClusterRef"] = {"name": "gke-h200-prod"}


def refused(story: Story) -> None:
    serves_without(story)
    story.required["KVOffloadTier"] = copy.deepcopy(tier_story().composite)
    story.composite["spec"]["engine"]["image"] = "vllm/vllm-openai:latest"


@pytest.mark.parametrize("happens", [wrong, waits, serves_without, refused])
def test_an_engine_that_is_not_attached_uses_nothing(happens: Callable[[Story], None]) -> None:
    story = engine_story()
    happens(story)
    assert uses(story.render().composed) == {}


def test_an_engine_of_a_hicache_tier_uses_that_and_the_tier_uses_what_is_behind_it() -> None:
    hosts = render(tier(HICACHE), [], required())
    engine = {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23", "args": ["--model-path=Q/Q", "--tp-size=8"]}
    attached = render(deployment(engine), [], [*required(), hosts.composite])
    assert attached.condition("TierAttached")["reason"] == "Attached"
    assert (tiers_used(hosts), tiers_used(attached)) == (["behind"], ["shared"])


def test_names_are_short_enough_and_differ_where_tiers_do() -> None:
    rsp = fnv1.RunFunctionResponse()
    by = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
    long = 63 * "x"
    for ref in (f"{long}/{long}", f"{long}/{long[1:]}y", "a-b/c", "a/b-c"):
        for engine in ("", "prefill", "decode"):
            usage.attach(rsp, ref, by, owner=f"replica/{long}", user="ModelReplica ml/chat", of=engine)
    usage.attach(rsp, "a/b-c", by, owner="engine/chat", user="ModelDeployment ml/chat", of="again")
    composed = [kube.plain(r.resource)["metadata"] for r in rsp.desired.resources.values()]
    assert len(composed) == len({m["name"] for m in composed}) == 13
    assert all(len(m["name"]) <= 52 and len(m["labels"][kube.LABEL_TIER]) <= 45 for m in composed)


# --- what a tier sees of it ---------------------------------------------------------------------------------------


def attached(name: str, namespace: str = "ml", to: str = "lmcache-h200") -> Manifest:
    """The Usage that a deployment of this name composes."""
    story = Fleet()
    story.composite["metadata"] |= {"name": name, "namespace": namespace}
    story.name(to)
    (found,) = [m for m in story.render().composed.values() if m["kind"] == "Usage"]
    return found


def attachments(*there: Manifest) -> object:
    story = tier_story()
    story.required |= {f"usage-{number}": usage for number, usage in enumerate(there)}
    return story.render().composite["status"]["attachments"]


def test_a_tier_counts_its_engines_in_all_namespaces() -> None:
    one, two = attached("chat"), attached("chat", "other-team")
    assert (attachments(), attachments(one), attachments(one, two)) == (0, 1, 2)


def test_it_counts_no_other_tiers() -> None:
    # Hashes may be the same, and a label is quickly copied.
    other = attached("chat", to="other")
    other["metadata"]["labels"][kube.LABEL_TIER] = TIER
    elsewhere = attached("chat")
    elsewhere["spec"]["of"]["resourceRef"]["namespace"] = "ml"
    assert attachments(other, elsewhere, attached("chat", to="other")) == 0


def test_it_counts_one_of_its_own_namespace_that_does_not_say_so() -> None:
    near = attached("chat", "modelplane-system")
    del near["spec"]["of"]["resourceRef"]["namespace"]
    assert attachments(near) == 1


def test_it_does_not_count_what_is_being_deleted() -> None:
    going = attached("chat")
    going["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    assert attachments(going, attached("code")) == 1


def test_the_number_follows_and_is_kept_while_nobody_has_looked() -> None:
    story = tier_story()
    story.required |= {"one": attached("chat"), "two": attached("code")}
    story.settle()
    story.happen()
    unread = outcome(story.composite, run(request(story.composite, story.observed)))
    assert unread.composite["status"]["attachments"] == 2
    del story.required["two"]
    assert story.render().composite["status"]["attachments"] == 1


def test_a_tier_whose_spec_is_wrong_still_counts() -> None:
    story = tier_story(lambda t: t["spec"].update(backend="Nope"))
    story.required["one"] = attached("chat")
    rendered = story.render()
    assert rendered.condition("Accepted")["status"] == "False"
    assert rendered.composite["status"]["attachments"] == 1


def test_what_a_tier_asks_for_depends_on_its_name_alone() -> None:
    story = tier_story()
    asked = [run(request(c, o)).requirements.resources["attachments"] for c, o in passes(story)]
    assert all(selector == asked[0] for selector in asked)
    assert dict(asked[0].match_labels.labels) == {kube.LABEL_TIER: TIER}
    assert not asked[0].HasField("namespace")


def passes(story: Story) -> Iterator[tuple[Manifest, list[Manifest]]]:
    yield story.composite, story.observed
    story.settle()
    story.happen()
    yield story.composite, story.observed
    story.composite["spec"]["backend"] = "Nope"
    yield story.composite, story.observed
