"""`crossplane resource validate` accepts every example, and everything that is composed for it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from function.kube import Manifest
from function.render import EXAMPLES, Rendered, dump, load, render, render_example
from tests.examples import names
from tests.render.changes import GONE, changed
from tests.tools import crossplane


def rendered(name: str) -> list[Rendered]:
    """Render an example: its cluster, its tier and its engine, at first and once everything runs."""
    clusters = [r for r in load(EXAMPLES / name / "required.yaml") if r["kind"] == "InferenceCluster"]
    first, later = (render_example(name, observed=observed).values() for observed in (False, True))
    return [*map(render, clusters), *first, *later]


def composed(name: str) -> list[Manifest]:
    """Give what an example's renders compose, and the composites with their new status.

    Conditions are left out: Crossplane adds the times that their schema asks for. A generation is added, as it is where
    an API server has stored the composite: status tells it.
    """
    manifests = []
    for one in rendered(name):
        status = {"observedGeneration": 1, **one.composite["status"]}
        status.pop("conditions")
        manifests += [{**one.composite, "status": status}, *one.composed.values()]
    return manifests


def written(name: str) -> list[Manifest]:
    """Read an example's own manifests."""
    folder = EXAMPLES / name
    return [manifest for file in ("tier", "deployment", "required") for manifest in load(folder / f"{file}.yaml")]


def validate(manifests: Sequence[Manifest], folder: Path, crds: Path) -> tuple[int, str]:
    """Validate manifests against our XRDs and the provider's CRDs; a kind that none of them defines is an error."""
    resources = folder / "resources.yaml"
    resources.write_text(dump(manifests))
    return crossplane.resource_validate([Path("apis"), crds], resources)


def custom(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Leave out what Kubernetes itself serves, of which Crossplane has no schema."""
    return [manifest for manifest in manifests if manifest["apiVersion"] != "v1"]


@pytest.mark.usefixtures("validator")
def test_every_example_and_what_it_composes_is_valid(tmp_path: Path, provider_crds: Path) -> None:
    manifests = [manifest for name in names() for manifest in custom([*written(name), *composed(name)])]
    code, said = validate(manifests, tmp_path, provider_crds)
    assert code == 0, said
    assert f"Total {len(manifests)} resources: 0 missing schemas, {len(manifests)} success cases, 0 failure" in said


@pytest.mark.usefixtures("validator")
def test_what_is_wrong_is_refused(tmp_path: Path, provider_crds: Path) -> None:
    tier, deployment = (load(EXAMPLES / "lmcache" / f"{part}.yaml")[0] for part in ("tier", "deployment"))
    (first, *_), (*_, usage) = (rendered.composed.values() for rendered in render_example("lmcache").values())
    wrong = [
        changed(tier, {"spec.lmcache.cpuTierGiBPerNode": 0}),
        changed(deployment, {"spec.engine.typo": "x"}),
        changed(first, {"spec.readiness.policy": "Sometimes"}),
        changed(first, {"kind": "Unheard"}),
        changed(usage, {"spec.by": GONE}),
    ]
    code, said = validate(wrong, tmp_path, provider_crds)
    assert code != 0
    for words in (
        "spec.lmcache.cpuTierGiBPerNode",
        "spec.engine.typo",
        "spec.readiness.policy",
        "Unheard",
        "cross-namespace",
    ):
        assert words in said
    assert "1 missing schemas, 0 success cases, 4 failure" in said
