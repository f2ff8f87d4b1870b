"""What a fleet or a tier would change is what it then does, and is said for the eye and for machines."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from function import kube, picture, plan
from function.kube import Manifest
from function.plan import Plan, Refused, Step
from function.render import EXAMPLES, load
from tests.unit.fleets import FleetStory, cluster, fleet
from tests.unit.stories import tier_story

CANARY = {"canary": {"matchLabels": {"stage": "canary"}}}


def settled(rollout: Manifest, *clusters: Manifest, **spec: Any) -> FleetStory:
    """A fleet all of whose tiers are settled."""
    story = FleetStory(fleet(rollout, **spec), *clusters)
    story.settle()
    return story


def there(story: FleetStory) -> list[Manifest]:
    """What the control plane holds of a story."""
    return copy.deepcopy([story.fleet, *story.tiers.values(), *story.clusters.values(), *story.others])


def planned(story: FleetStory, **template: Any) -> Plan:
    """Plan the story's fleet with another template, or without a status as its user writes it."""
    wanted = copy.deepcopy({name: story.fleet[name] for name in ("apiVersion", "kind", "metadata", "spec")})
    del wanted["metadata"]["uid"]
    wanted["spec"]["template"]["spec"].update(template)
    return plan.of(wanted, there(story))


def by_cluster(found: Plan) -> dict[str, Step]:
    """Steps by their clusters."""
    steps = {step.cluster: step for step in found.steps}
    assert len(steps) == len(found.steps)
    return steps


@pytest.mark.parametrize(
    "rollout", [{}, {"maxUnavailable": 2}, {"maxUnavailable": "50%", "maxColdClusters": 2}, CANARY]
)
@pytest.mark.parametrize("template", [{"lmcache": {"cpuTierGiBPerNode": 128}}, {"allowedNamespaces": {"from": "Same"}}])
def test_a_plan_has_the_waves_that_the_rollout_then_has(rollout: Manifest, template: Manifest) -> None:
    story = settled(rollout, cluster("canary", stage="canary"), *map(cluster, "abcd"))
    found = planned(story, **template)
    story.template.update(template)
    seen: list[set[str]] = []
    for _ in range(12):
        before = {n: t["metadata"]["annotations"][kube.ANNOTATION_REVISION] for n, t in story.tiers.items()}
        story.turn()
        now = {n: t["metadata"]["annotations"][kube.ANNOTATION_REVISION] for n, t in story.tiers.items()}
        if started := {n for n in now if now[n] != before[n]}:
            seen.append(started)
    assert [{s.cluster for s in found.steps if s.wave == n} for n in range(1, found.waves + 1)] == seen
    assert len(seen) > 1


def test_a_fleet_that_is_new_makes_its_tiers_the_canary_first() -> None:
    new = fleet({**CANARY, "maxUnavailable": 2})
    del new["metadata"]["uid"]
    found = plan.of(new, [cluster("canary", stage="canary"), *map(cluster, "ab"), cluster("other", gpu="l40s")])
    assert {s.cluster: (s.action, s.wave, s.canary) for s in found.steps} == {
        "canary": ("Create", 1, True),
        "a": ("Create", 2, False),
        "b": ("Create", 2, False),
    }
    assert by_cluster(found)["a"].tier == kube.tier_of_fleet("h200", "a")


def test_a_change_is_shown_with_what_it_costs() -> None:
    story = settled({}, cluster("a"))
    story.tiers["a"]["status"] |= {"agents": "7/8", "attachments": 3}
    (step,) = planned(story, lmcache={"cpuTierGiBPerNode": 64, "chunkSize": 512}).steps
    assert (step.action, step.cold, step.rolls_engines, step.engines, step.agents) == ("Change", True, True, 3, "7/8")
    assert step.fields == {"lmcache.chunkSize": (None, 512)}
    assert step.restarts == ("agents",)
    assert {"agents": "changed", "connector": "changed"}.items() <= step.parts.items()
    assert step.memory[0]["cacheGiB"] == step.memory[1]["cacheGiB"] == 64


def test_what_stays_leaves_or_is_left_out_is_shown_too() -> None:
    overrides = [{"matchLabels": {"m": "s"}, "spec": {"lmcache": {"cpuTierGiBPerNode": 16}}}]
    story = settled({}, cluster("small", m="s"), cluster("big"), cluster("leaves"), overrides=overrides)
    story.clusters["leaves"]["metadata"]["labels"] = {}
    story.clusters["early"] = {**cluster("early"), "status": {}}
    found = by_cluster(planned(story, lmcache={"cpuTierGiBPerNode": 128}))
    assert {name: (s.action, s.wave) for name, s in found.items()} == {
        "big": ("Change", 1),
        "leaves": ("Remove", 1),
        "early": ("LeaveOut", 0),
        "small": ("Keep", 0),
    }
    assert found["early"].why == "InferenceCluster early has no status.providerConfigRef yet"


def test_a_tier_in_use_is_not_removed() -> None:
    story = settled({}, cluster("a"), cluster("leaves"))
    story.use("leaves")
    story.clusters["leaves"]["metadata"]["labels"] = {}
    assert by_cluster(planned(story))["leaves"].action == "Keep"


def test_what_a_person_holds_is_planned_and_noted() -> None:
    story = settled(CANARY, cluster("canary", stage="canary"), cluster("a"))
    story.roll(paused=True, approvedRevision=story.fleet["status"]["revision"])
    found = planned(story, lmcache={"cpuTierGiBPerNode": 128})
    assert found.waves == 2
    assert found.notes == [
        "spec.rollout.paused is true: nothing of this begins before it is false",
        f"who is no canary changes only once spec.rollout.approvedRevision is {found.revision}",
    ]


def test_a_rollout_that_is_under_way_is_planned_from_where_it_is() -> None:
    story = settled({"maxUnavailable": 1}, *map(cluster, "abc"))
    story.change(128)
    story.turn()
    (done,) = story.with_size(128)
    found = by_cluster(planned(story))
    assert found[done].action == "Keep"
    assert sorted(s.wave for s in found.values()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"lmcache": {"cpuTierGiBPerNode": 0}}, "spec.template.spec.lmcache.cpuTierGiBPerNode (is 0): "),
        ({"backend": "Mooncake"}, "spec.template.spec.lmcache does not go with "),
    ],
)
def test_a_wrong_fleet_is_refused_as_the_function_would(template: Manifest, says: str) -> None:
    with pytest.raises(Refused) as refused:
        planned(settled({}, cluster("a")), **template)
    assert str(refused.value).startswith(says)


def test_a_fleet_without_clusters_is_refused() -> None:
    with pytest.raises(Refused, match=r"No InferenceCluster has gpu=h200"):
        plan.of(fleet(), [cluster("a", gpu="l40s")])


# --- a tier -----------------------------------------------------------------------------------------------------------


def test_a_tier_is_a_wave_of_one() -> None:
    story = tier_story()
    before = story.settle().composite
    wanted = {name: copy.deepcopy(before[name]) for name in ("apiVersion", "kind", "metadata", "spec")}
    held = [*story.required.values(), before]
    (step,) = plan.of(wanted, held).steps
    assert (step.action, step.wave, step.fields) == ("Keep", 0, {})
    wanted["spec"]["lmcache"]["cpuTierGiBPerNode"] = 128
    (step,) = plan.of(wanted, held).steps
    assert (step.action, step.wave, step.cold, step.rolls_engines) == ("Change", 1, True, False)
    assert step.fields == {"lmcache.cpuTierGiBPerNode": (64, 128)}
    assert step.agents == "2/2"
    (step,) = plan.of(wanted, [*story.required.values()]).steps
    assert (step.action, step.cold, step.parts["agents"]) == ("Create", False, "made")


def test_a_tier_whose_cluster_is_in_no_file_is_noted() -> None:
    (tier,) = load(EXAMPLES / "lmcache" / "tier.yaml")
    assert plan.of(tier, []).notes == ["InferenceCluster gke-h200-prod is in none of the files"]


def test_a_wrong_tier_is_refused() -> None:
    (tier,) = load(EXAMPLES / "lmcache" / "tier.yaml")
    tier["spec"]["backend"] = "Redis"
    with pytest.raises(Refused, match=r"spec\.backend"):
        plan.of(tier, [])


# --- how it is said ---------------------------------------------------------------------------------------------------


def files(folder: Path, story: FleetStory, gib: int) -> list[str]:
    """Write a story's files, what is there as kubectl lists it, and give the arguments to plan a change."""
    held = folder / "there.yaml"
    held.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": there(story)}))
    story.change(gib)
    wanted = folder / "fleet.yaml"
    wanted.write_text(yaml.safe_dump({n: story.fleet[n] for n in ("apiVersion", "kind", "metadata", "spec")}))
    return [str(wanted), "-e", str(held)]


def test_the_table_has_a_line_for_each_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = settled(CANARY, cluster("canary", stage="canary"), cluster("a"))
    assert plan.main(files(tmp_path, story, 128)) == 0
    head, empty, columns, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("KVOffloadFleet modelplane-system/h200, revision ")
    assert head.endswith(": 2 of 2 clusters change; waves: 2, cold caches: 2, engines that roll: 0")
    assert not empty
    assert columns.split() == ["WAVE", "CLUSTER", "ACTION", "CACHE", "ENGINES", "AGENTS", "WHAT"]
    assert first.split(maxsplit=7) == [
        *["1", "canary", "canary", "Change", "cold", "0", "-"],
        "lmcache.cpuTierGiBPerNode: 64 -> 128",
    ]
    assert second.split(maxsplit=6) == [*["2", "a", "Change", "cold", "0", "-"], "lmcache.cpuTierGiBPerNode: 64 -> 128"]


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = settled({}, cluster("a"))
    assert plan.main([*files(tmp_path, story, 128), "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (step,) = said["steps"]
    assert said["counts"] == {"clusters": 1, "change": 1, "cold": 1, "enginesRoll": 0, "waves": 1}
    assert step["fields"] == {"lmcache.cpuTierGiBPerNode": [64, 128]}
    assert step["rollsEngines"] is False
    assert step["memory"][1]["cacheGiB"] == 128


class Page(HTMLParser):
    """Reads a page: its text, and that everything that is opened is closed."""

    VOID = frozenset({"meta", "circle", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_picture_shows_waves_clusters_agents_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = settled(CANARY, cluster("canary", stage="canary"), cluster("a"))
    story.tiers["a"]["status"]["agents"] = "3/4"
    assert plan.main([*files(tmp_path, story, 128), "-o", "html"]) == 0
    page = Page(capsys.readouterr().out)
    for text in ("Wave 1 (canaries)", "Wave 2", "canary", "h200-a-", "cold cache", "64 of 104 GiB", "128 of 200 GiB"):
        assert text in page.text, text
    dots = [attributes["fill"] for tag, attributes in page.tags if tag == "circle"]
    assert dots == [*3 * ["currentColor"], "none"]
    # Nothing of it comes from elsewhere.
    assert not {"src", "href"} & {name for _, attributes in page.tags for name in attributes}


def test_what_a_user_wrote_is_no_markup_of_the_page() -> None:
    story = settled({}, cluster("a"))
    found = planned(story, placement={"nodeSelector": {"a": "<script>"}})
    page = Page(picture.page(found, ""))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>" in page.text


@pytest.mark.parametrize(
    ("text", "code"),
    [("kind: ConfigMap\nmetadata: {name: a}\n", 2), ("a: [", 2), ("", 2)],
    ids=["kind", "yaml", "empty"],
)
def test_what_cannot_be_planned_is_said_without_a_trace(
    text: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        plan.main([str(tmp_path / "x.yaml")])
    assert stopped.value.code == code
    assert "Traceback" not in capsys.readouterr().err


def test_what_would_be_refused_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = settled({}, cluster("a"))
    assert plan.main(files(tmp_path, story, 0)) == 3
    assert capsys.readouterr().err.startswith("refused: spec.template.spec.lmcache.cpuTierGiBPerNode (is 0)")
