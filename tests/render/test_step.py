"""As a later step of a pipeline, in the real core: what an earlier function desires comes out attached."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from function.render import EXAMPLES, dump, load, render_example
from tests.tools import crossplane

FOLDER = EXAMPLES / "modelplane"
KEY = "crossplane.io/composition-resource-name"


def _function(name: str, address: str) -> dict[str, Any]:
    annotations = {
        "render.crossplane.io/runtime": "Development",
        "render.crossplane.io/runtime-development-target": f"dns:///{address}",
    }
    return {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "Function",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"package": name},
    }


@pytest.fixture(scope="module")
def pipeline(crossplane_tools: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A Composition of both steps, and the Functions behind it."""
    assert crossplane_tools
    folder = tmp_path_factory.mktemp("pipeline")
    steps = ("earlier", "function-kv-offload")
    composition = {
        "apiVersion": "apiextensions.crossplane.io/v1",
        "kind": "Composition",
        "metadata": {"name": "modelreplicas"},
        "spec": {
            "compositeTypeRef": {"apiVersion": "modelplane.ai/v1alpha1", "kind": "ModelReplica"},
            "mode": "Pipeline",
            "pipeline": [{"step": name, "functionRef": {"name": name}} for name in steps],
        },
    }
    with crossplane.function_server("tests.tools.earlier") as first, crossplane.function_server() as second:
        (folder / "composition.yaml").write_text(dump([composition]))
        (folder / "functions.yaml").write_text(
            dump([_function(*f) for f in zip(steps, (first.address, second.address), strict=True)])
        )
        yield folder / "composition.yaml", folder / "functions.yaml"


def _render(pipeline: tuple[Path, Path], folder: Path, required: list[dict[str, Any]]) -> list[dict[str, Any]]:
    composition, functions = pipeline
    path = folder / "required.yaml"
    path.write_text(dump(required))
    return crossplane.composition_render(FOLDER / "replica.yaml", composition, functions, required=path)


def _by_key(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    own = [d for d in documents if KEY in d.get("metadata", {}).get("annotations", {})]
    return {d["metadata"]["annotations"][KEY]: d for d in own}


def test_the_real_core_and_our_renderer_agree(pipeline: tuple[Path, Path], tmp_path: Path) -> None:
    documents = _render(pipeline, tmp_path, [*load(FOLDER / "required.yaml"), *load(FOLDER / "tier.yaml")])
    ours = render_example("modelplane")["replica"]
    theirs = _by_key(documents)
    assert theirs.keys() == ours.composed.keys()
    for key, manifest in ours.composed.items():
        assert theirs[key]["spec"] == manifest["spec"]
        added = {n: v for n, v in manifest["metadata"]["annotations"].items() if n != KEY}
        assert added.items() <= theirs[key]["metadata"]["annotations"].items()
    (replica,) = [d for d in documents if d["kind"] == "ModelReplica"]
    conditions = {c["type"]: c["status"] for c in replica["status"]["conditions"]}
    assert conditions["TierAttached"] == "True"


def test_without_its_tier_the_real_core_starts_nothing_and_says_why(
    pipeline: tuple[Path, Path], tmp_path: Path
) -> None:
    documents = _render(pipeline, tmp_path, load(FOLDER / "required.yaml"))
    assert _by_key(documents) == {}
    (replica,) = [d for d in documents if d["kind"] == "ModelReplica"]
    (attached,) = [c for c in replica["status"]["conditions"] if c["type"] == "TierAttached"]
    assert (attached["status"], attached["reason"]) == ("False", "TierNotFound")
