"""Crossplane's own renderer and ours print the same, for every example, whatever is missing.

They are compared as data: the composed resources by key, the composite's status without Crossplane's own conditions,
and our results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from function import kube
from function.kube import Manifest
from function.render import EXAMPLES, Rendered, dump, load, render
from tests.examples import names
from tests.render.changes import GONE, changed
from tests.standin import observe
from tests.tools import crossplane
from tests.unit.fleets import FleetStory

STANDALONE = Path("compositions/standalone")
COMPOSITIONS = {
    "KVOffloadTier": Path("compositions/kvoffloadtier.yaml"),
    "KVOffloadFleet": Path("compositions/kvoffloadfleet.yaml"),
    "ModelDeployment": STANDALONE / "modeldeployment.yaml",
    "InferenceCluster": STANDALONE / "inferencecluster.yaml",
}
XRDS = {
    "KVOffloadTier": Path("apis/kvoffloadtier.yaml"),
    "KVOffloadFleet": Path("apis/kvoffloadfleet.yaml"),
    "ModelDeployment": Path("apis/standalone/modeldeployment.yaml"),
    "InferenceCluster": Path("apis/standalone/inferencecluster.yaml"),
}
PARTS = ("tier", "deployment")
ALL = frozenset({"InferenceCluster", "KVOffloadTier", "Secret"})

# What Crossplane writes itself.
_SYSTEM = frozenset({"Ready", "Synced", "Responsive"})
_OF_STEP = 'Pipeline step "compose": '


class World(NamedTuple):
    """What Crossplane renders from: a composite, what is observed, and what is required, if it is there."""

    composite: Manifest
    observed: Sequence[Manifest] = ()
    required: Sequence[Manifest] = ()


class Variant(NamedTuple):
    """A story: the kinds that are there, whether everything runs already, and whether Crossplane calls that Ready."""

    story: str
    there: frozenset[str]
    observed: bool = False
    ready: bool = False


VARIANTS = {
    "tier": [
        Variant("everything is there", ALL),
        Variant("the Secret is missing", ALL - {"Secret"}),
        Variant("nothing is there", frozenset()),
        Variant("everything runs", ALL, observed=True, ready=True),
        Variant("the Secret is gone while everything runs", ALL - {"Secret"}, observed=True),
        Variant("all is gone while everything runs", frozenset(), observed=True),
    ],
    "deployment": [
        Variant("everything is there", ALL),
        Variant("the tier is missing", ALL - {"KVOffloadTier"}),
        Variant("nothing is there", frozenset()),
        Variant("everything runs", ALL, observed=True, ready=True),
        Variant("the tier is gone while everything runs", ALL - {"KVOffloadTier"}, observed=True, ready=True),
        Variant("all is gone while everything runs", frozenset(), observed=True),
    ],
}


# Their tiers draw a password when they are first seen, each renderer another one.
DRAWN = frozenset({"lmcache-valkey", "aibrix-distributed"})


def tells(example: str, part: str, variant: Variant) -> bool:
    """Whether a variant is one of this example's."""
    kinds = {manifest["kind"] for manifest in load(EXAMPLES / example / "required.yaml")}
    if part == "tier" and not variant.observed and example in DRAWN:
        return False
    return "Secret" in kinds or variant.there != ALL - {"Secret"}


def world(example: str, part: str, variant: Variant) -> World:
    """Take an example's files, as a variant leaves them."""
    folder = EXAMPLES / example
    required = load(folder / "required.yaml")
    if part == "deployment":
        required += load(folder / "tier.yaml")
    return World(
        load(folder / f"{part}.yaml")[0],
        load(folder / f"observed-{part}.yaml") if variant.observed else (),
        [manifest for manifest in required if manifest["kind"] in variant.there],
    )


def run_core(of: World, functions: Path, folder: Path, *, defaults: bool = False) -> list[dict[str, Any]]:
    """Render with Crossplane; with `defaults` the XRD's reach the function, as on a cluster."""

    def write(name: str, manifests: Sequence[Manifest]) -> Path | None:
        path = folder / f"{name}.yaml"
        path.write_text(dump(manifests))
        return path if manifests else None

    composite = write("composite", [of.composite])
    assert composite
    kind = of.composite["kind"]
    return crossplane.composition_render(
        composite,
        COMPOSITIONS[kind],
        functions,
        observed=write("observed", of.observed),
        required=write("required", of.required),
        xrd=XRDS[kind] if defaults else None,
    )


def said_by_core(documents: Sequence[Manifest]) -> dict[str, Any]:
    """Take Crossplane's documents; returns what is compared."""
    composite, *others = documents
    composed = {}
    results = []
    for document in others:
        if document["kind"] == "Result":
            message: str = document["message"]
            if message.startswith(_OF_STEP):
                severity = f"SEVERITY_{document['severity'].upper()}"
                results.append({"severity": severity, "message": message.removeprefix(_OF_STEP)})
        else:
            # The owner is the composite, by a uid that Crossplane makes up.
            del document["metadata"]["ownerReferences"]
            composed[document["metadata"]["annotations"]["crossplane.io/composition-resource-name"]] = document
    return {"composed": composed, "status": _status(composite), "results": results}


def said_in_process(rendered: Rendered) -> dict[str, Any]:
    """Take what we rendered; returns what is compared."""
    return {"composed": rendered.composed, "status": _status(rendered.composite), "results": rendered.results}


def _status(composite: Manifest) -> dict[str, Any]:
    status = dict(composite["status"])
    status["conditions"] = {
        condition["type"]: {key: condition.get(key, "") for key in ("status", "reason", "message")}
        for condition in status["conditions"]
        if condition["type"] not in _SYSTEM
    }
    return status


@pytest.mark.parametrize(
    ("example", "part", "variant"),
    [
        pytest.param(example, part, variant, id=f"{example}-{part}: {variant.story}")
        for example in names()
        for part in PARTS
        for variant in VARIANTS[part]
        if tells(example, part, variant)
    ],
)
def test_both_renderers_agree(example: str, part: str, variant: Variant, functions: Path, tmp_path: Path) -> None:
    of = world(example, part, variant)
    documents = run_core(of, functions, tmp_path)
    assert said_by_core(documents) == said_in_process(render(*of))
    conditions = {c["type"]: c["status"] == "True" for c in documents[0]["status"]["conditions"]}
    # A tier that runs nothing has nothing to wait for but its cluster.
    runs_nothing = part == "tier" and conditions["ClusterReachable"] and "aibrix" in of[0]["spec"]
    assert (conditions["Synced"], conditions["Ready"]) == (True, variant.ready or runs_nothing)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("example", names())
def test_defaults_change_nothing(example: str, part: str, functions: Path, tmp_path: Path) -> None:
    of = world(example, part, Variant("", ALL, observed=example in DRAWN))
    assert said_by_core(run_core(of, functions, tmp_path, defaults=True)) == said_in_process(render(*of))


@pytest.mark.parametrize("part", PARTS)
def test_both_renderers_agree_on_the_next_pass(part: str, functions: Path, tmp_path: Path) -> None:
    first = world("lmcache", part, Variant("", ALL))
    rendered = render(*first)
    then = World(rendered.composite, observe(rendered, ready=0), first.required)
    assert said_by_core(run_core(then, functions, tmp_path)) == said_in_process(render(*then))
    assert said_in_process(render(*then))["results"]


def test_both_renderers_count_what_is_attached(functions: Path, tmp_path: Path) -> None:
    of = world("lmcache", "tier", Variant("", ALL))
    (usage,) = (m for m in load(EXAMPLES / "lmcache" / "observed-deployment.yaml") if m["kind"] == "Usage")
    there = [changed(usage, {"metadata.namespace": namespace}) for namespace in ("ml", "other-team")]
    unlabelled = changed(usage, {"metadata.namespace": "unlabelled", "metadata.labels": GONE})
    of = of._replace(required=[*of.required, *there, unlabelled])
    said = said_in_process(render(*of))
    assert said["status"]["attachments"] == 2
    assert said_by_core(run_core(of, functions, tmp_path)) == said


def cluster(**spec: Any) -> Manifest:
    """Write an InferenceCluster."""
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": "gke-h200-prod"},
        "spec": {"cluster": spec},
    }


EXISTING = cluster(source="Existing", existing={"secretRef": {"name": "gke-h200-prod-kubeconfig"}})


@pytest.mark.parametrize("composite", [EXISTING, cluster(source="Local")], ids=["existing", "local"])
@pytest.mark.parametrize("seen", [False, True], ids=["at first", "once there"])
def test_both_renderers_agree_on_a_cluster(composite: Manifest, functions: Path, tmp_path: Path, *, seen: bool) -> None:
    of = World(composite, observe(render(composite)) if seen else ())
    assert said_by_core(run_core(of, functions, tmp_path)) == said_in_process(render(*of))


def fleet_world(turns: int) -> World:
    """The example's fleet after so many turns; once all have their tier, with another template and a cluster gone."""
    folder = EXAMPLES / "fleet"
    (fleet,), clusters = load(folder / "fleet.yaml"), load(folder / "required.yaml")
    story = FleetStory(fleet, *clusters)
    for _ in range(turns):
        story.turn()
    if len(story.tiers) == len(story.clusters) - 1:
        story.change(512)
        story.use("us-prod")
        del story.clusters["eu-prod"]
    # Crossplane takes no observed resource of another owner, and one without is its own.
    observed = [changed(tier, {"metadata.ownerReferences": GONE}) for tier in story.tiers.values()]
    return World(changed(story.fleet, {"metadata.uid": GONE}), observed, [*story.clusters.values()])


@pytest.mark.parametrize("turns", [0, 1, 5], ids=["at first", "in mid rollout", "when another change comes"])
@pytest.mark.parametrize("defaults", [False, True], ids=["", "with defaults"])
def test_both_renderers_agree_on_a_fleet(turns: int, functions: Path, tmp_path: Path, *, defaults: bool) -> None:
    of = fleet_world(turns)
    said = said_in_process(render(*of))
    assert said["composed"]
    assert said_by_core(run_core(of, functions, tmp_path, defaults=defaults)) == said


def changed_latch() -> World:
    """An engine that runs without its tier, by a latch that somebody has changed."""
    gone = world("lmcache", "deployment", Variant("", ALL - {"KVOffloadTier"}, observed=True))
    for manifest in gone.observed:
        if kube.ANNOTATION_PATCH in manifest["metadata"]["annotations"]:
            manifest["metadata"]["annotations"][kube.ANNOTATION_PATCH] += " "
    return gone


def test_both_renderers_stop_at_a_fatal_result(functions: Path, tmp_path: Path) -> None:
    of = changed_latch()
    rendered = render(*of)
    assert rendered.fatal
    (message,) = [r["message"] for r in rendered.results if r["severity"] == "SEVERITY_FATAL"]
    with pytest.raises(crossplane.CrossplaneError) as stopped:
        run_core(of, functions, tmp_path)
    assert message in str(stopped.value)
