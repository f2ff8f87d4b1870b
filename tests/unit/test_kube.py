"""What is written by hand where a library would be slower: the same as the library writes."""

import json
from typing import Any

import pytest
from google.protobuf import struct_pb2 as structpb
from hypothesis import given, settings
from hypothesis import strategies as st

from function import kube

WHOLE = st.integers(-(1 << 53), 1 << 53)
TEXT = st.text()
PLAIN = st.none() | st.booleans() | WHOLE | TEXT
VALUES = st.recursive(
    PLAIN | st.floats(allow_nan=False, allow_infinity=False), lambda v: st.lists(v) | st.dictionaries(TEXT, v)
)
# Of these, every writer of JSON makes the same.
EXACT = st.recursive(PLAIN, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4))
MANIFESTS = st.dictionaries(TEXT, VALUES)


@given(manifest=MANIFESTS)
@settings(max_examples=50, deadline=None)
def test_write_gives_what_update_gives_in_an_empty_struct(manifest: dict[str, Any]) -> None:
    expected, written = structpb.Struct(), structpb.Struct()
    expected.update(manifest)
    written.update({"": {"before": [1]}, "before": "this"})
    kube.write(manifest, to=written)
    assert written == expected


@pytest.mark.parametrize("value", [(), ("a", 1), [{}], {"a": []}, [[], [{}]]])
def test_write_keeps_what_is_empty(value: Any) -> None:
    expected, written = structpb.Struct(), structpb.Struct()
    expected.update({"value": value})
    kube.write({"value": value}, to=written)
    assert written.SerializeToString() == expected.SerializeToString()


def test_write_takes_nothing_but_json() -> None:
    with pytest.raises(TypeError):
        kube.write({"value": object()}, to=structpb.Struct())


@given(value=EXACT)
def test_compact_is_json_of_one_form(value: Any) -> None:
    """Hashes of it are on clusters: by another form of it, a release would change every Object."""
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert kube.compact(value) == expected


@given(manifest=MANIFESTS)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_again_and_is_json(manifest: dict[str, Any]) -> None:
    struct = structpb.Struct()
    kube.write(manifest, to=struct)
    found = kube.plain(struct)
    assert found == manifest
    assert json.loads(kube.compact(found)) == manifest
