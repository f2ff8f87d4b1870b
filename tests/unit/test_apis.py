"""A fleet's template is a tier's spec, and its overrides are parts of that."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function import api
from function.api.fleet import OVERRIDABLE, canonical
from function.api.tier import BACKENDS, TierSpec
from function.kube import Manifest
from function.render import load
from tests.tools import apis
from tests.unit.specs import of_backend


def test_the_fleets_xrd_is_as_the_tool_makes_it() -> None:
    text = apis.FLEET.read_text()
    assert apis.made(text) == text


def spec_of(path: Any) -> Manifest:
    (version,) = load(path)[0]["spec"]["versions"]
    found: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def walk(node: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    for name, inner in node.get("properties", {}).items():
        yield f"{path}{name}", inner
        yield from walk(inner, f"{path}{name}.")


def test_an_override_has_what_can_be_overridden_and_requires_nothing() -> None:
    override = spec_of(apis.FLEET)["properties"]["overrides"]["items"]["properties"]["spec"]
    fields = dict(walk(override))
    blocks = {o[:at] for o in OVERRIDABLE for at, letter in enumerate(o) if letter == "."}
    beneath = {p for p in fields if any(p.startswith(f"{o}.") for o in OVERRIDABLE)}
    assert fields.keys() - beneath == blocks | set(OVERRIDABLE)
    for path, field in [("", override), *fields.items()]:
        assert not {"default", "required", "x-kubernetes-validations"} & field.keys(), path


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_the_one_form_of_a_spec_reads_as_the_same_spec(backend: str, data: st.DataObject) -> None:
    read = api.parse(TierSpec, data.draw(of_backend(backend)))
    plain = canonical(read)
    again = api.parse(TierSpec, {**plain, "inferenceClusterRef": {"name": read.inference_cluster_ref.name}})
    assert again == read
    assert canonical(again) == plain


@pytest.mark.parametrize("path", OVERRIDABLE)
def test_what_can_be_overridden_is_a_field_of_a_tier(path: str) -> None:
    assert path in dict(walk(spec_of(apis.TIER)))
