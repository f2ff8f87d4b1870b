"""Whatever happens to a fleet, in whatever order: what it never does, and what it always comes to."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from function import kube
from function.kube import Manifest
from tests.unit.fleets import FleetStory, cluster, fleet

NAMES = ("canary", "a", "b", "c", "d", "e")
SIZES = (64, 96, 128)
Event = Callable[[FleetStory], None]


def _leave(name: str) -> Event:
    def event(story: FleetStory) -> None:
        story.clusters.pop(name, None)

    return event


def _join(name: str) -> Event:
    def event(story: FleetStory) -> None:
        story.clusters.setdefault(name, made(name))

    return event


def _ail(name: str) -> Event:
    def event(story: FleetStory) -> None:
        story.ill = {*story.ill, name}  # type: ignore[misc]

    return event


def _recover(name: str) -> Event:
    def event(story: FleetStory) -> None:
        story.ill = {other for other in story.ill if other != name}  # type: ignore[union-attr]

    return event


def _change(gib: int) -> Event:
    return lambda story: story.change(gib)


def _allow(who: str) -> Event:
    """Change what costs nobody anything."""

    def event(story: FleetStory) -> None:
        story.template["allowedNamespaces"] = {"from": who}

    return event


def _move(name: str, labels: str) -> Event:
    def event(story: FleetStory) -> None:
        if name in story.clusters:
            story.clusters[name]["metadata"]["labels"]["memory"] = labels

    return event


def _roll(field: str, value: object) -> Event:
    return lambda story: story.roll(**{field: value})


def _look(name: str) -> Event:
    return lambda story: story.tier_pass(name)


def made(name: str) -> Manifest:
    """A cluster of that name; the canary is one."""
    return cluster(name, **({"stage": "canary"} if name == "canary" else {}))


ONE = st.sampled_from(NAMES)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(_leave, ONE),
    st.builds(_join, ONE),
    st.builds(_ail, ONE),
    st.builds(_recover, ONE),
    st.builds(_change, st.sampled_from(SIZES)),
    st.builds(_allow, st.sampled_from(["All", "Same"])),
    st.builds(_move, ONE, st.sampled_from(["small", "large"])),
    st.builds(_roll, st.just("paused"), st.booleans()),
    # A tier's own pass comes when it comes.
    st.builds(_look, ONE),
    *(2 * [st.just(lambda story: story.tier_pass())]),
)
LIMITS = st.fixed_dictionaries(
    {"maxUnavailable": st.sampled_from([1, 2, "50%"]), "maxColdClusters": st.integers(1, 3)},
    optional={"canary": st.just({"matchLabels": {"stage": "canary"}})},
)
OVERRIDE = {"matchLabels": {"memory": "small"}, "spec": {"lmcache": {"cpuTierGiBPerNode": 16}}}


def begin(limits: Manifest) -> FleetStory:
    """Begin with all clusters, whose tiers are settled."""
    story = FleetStory(fleet(limits, overrides=[OVERRIDE]), *map(made, NAMES))
    story.settle()
    return story


def wanted(story: FleetStory) -> dict[str, int]:
    """The memory that each cluster that is there should come to have."""
    template = story.template["lmcache"]["cpuTierGiBPerNode"]
    small = {name for name, made in story.clusters.items() if made["metadata"]["labels"].get("memory") == "small"}
    return {name: 16 if name in small else template for name in story.clusters}


def take_a_pass(story: FleetStory, limits: Manifest) -> bool:
    """Let the fleet have a pass, and look at what it may never do; whether it changed a tier."""
    most = {1: 1, 2: 2, "50%": 3}[limits["maxUnavailable"]]
    there, before = set(story.tiers), set(story.left)
    specs = {name: tier["spec"] for name, tier in story.tiers.items()}
    story.fleet_pass()
    assert there <= set(story.tiers), "a cluster has lost its tier by not being seen"
    # A tier that is new has left nothing, and who comes back after having been gone was not sent away by the fleet.
    new = (story.left - before) & story.served
    away = story.left & story.served & story.clusters.keys()
    assert not new or len(away) <= most, "more are away than may be"
    marks = {name: story.tiers[name]["metadata"]["annotations"] for name in new}
    cold = {name for name, mark in marks.items() if "cold" in mark[kube.ANNOTATION_CHANGE]}
    assert len(cold) <= limits["maxColdClusters"], "more caches are cold than may be"
    return specs != {name: tier["spec"] for name, tier in story.tiers.items()}


@settings(deadline=None, max_examples=60)
@given(LIMITS, st.lists(EVENTS, max_size=20))
def test_whatever_happens_to_a_fleet(limits: Manifest, events: list[Event]) -> None:
    story = begin(limits)
    for event in events:
        event(story)
        take_a_pass(story, limits)
        # Who was left away has a change first, and a wave with them in it may follow; then nothing is to be done.
        take_a_pass(story, limits)
        assert not take_a_pass(story, limits), "it goes on without anything having happened"
    story.roll(paused=False)
    story.ill = set()
    story.settle()
    sizes = story.sizes()
    assert {name: sizes.get(name) for name in story.clusters} == wanted(story), "it does not finish"
