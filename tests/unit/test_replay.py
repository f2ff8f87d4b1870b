"""The fast path: the same answers as the reference, whatever the encoding, and no stale one, whatever has changed."""

import ast
import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1beta1 import run_function_pb2 as fnv1beta1
from google.protobuf import struct_pb2 as structpb
from google.protobuf.message import DecodeError

from function import fn, kube, lazy
from function.render import EXAMPLES, by_key, load, request
from function.replay import Replay
from tests.standin import states
from tests.unit.conftest import Checked
from tests.unit.fleets import FleetStory, cluster, fleet
from tests.wire import shuffled

MIB = 1 << 20
# A field that no message here has: number 999, a string.
UNKNOWN = b"\xba\x3e\x03new"


def requests() -> Iterator[tuple[str, fnv1.RunFunctionRequest]]:
    """Every kind of composite, when it is new and when all is well."""
    for example, name in (
        ("lmcache", "tier"),
        ("lmcache", "deployment"),
        ("modelplane", "replica"),
        ("fleet", "fleet"),
    ):
        folder = EXAMPLES / example
        composite, found = load(folder / f"{name}.yaml")[0], load(folder / "required.yaml")
        desired = by_key(load(folder / "desired.yaml")) if name == "replica" else {}
        if name in {"deployment", "replica"}:
            found += load(folder / "tier.yaml")
        first, steady = states(composite, found, desired)
        yield f"{name}, first", first
        yield f"{name}, steady", steady
    story = FleetStory(fleet(), cluster("a"), cluster("b"))
    story.settle()
    there = [("clusters", list(story.clusters.values()))]
    yield "fleet of two, steady", request(story.fleet, list(story.tiers.values()), there)
    standalone = next(m for m in load(EXAMPLES / "lmcache" / "required.yaml") if m["kind"] == "InferenceCluster")
    yield "cluster", request(standalone)


REQUESTS = dict(requests())
each = pytest.mark.parametrize("req", REQUESTS.values(), ids=list(REQUESTS))


@pytest.fixture(autouse=True)
def _plain(checked: Checked) -> Iterator[None]:
    """Let `fn.run` be the reference alone."""
    with mock.patch.object(fn, "run", checked.run):
        yield


def ask(replay: Replay, raw: bytes) -> fnv1.RunFunctionResponse:
    return fnv1.RunFunctionResponse.FromString(replay.answer(lazy.Request(raw)))


def replayed(replay: Replay, raw: bytes) -> fnv1.RunFunctionResponse:
    """Ask for what has to be known already."""
    with mock.patch.object(fn, "run", side_effect=AssertionError("composed")):
        return ask(replay, raw)


@each
def test_what_comes_again_is_answered_again_in_any_encoding_and_with_its_own_tag(req: fnv1.RunFunctionRequest) -> None:
    replay, order = Replay(MIB), random.Random(1)
    assert ask(replay, req.SerializeToString()) == fn.run(req)
    for n in range(20):
        again = copy.deepcopy(req)
        again.meta.tag = f"tag {n}"
        assert replayed(replay, shuffled(again, order)) == fn.run(again)


@each
def test_what_came_in_stays_and_unknown_fields_are_no_matter(req: fnv1.RunFunctionRequest) -> None:
    req = copy.deepcopy(req)
    req.context.update({"apiextensions.crossplane.io/environment": {"region": "eu", "zones": [1, 2.5, None, True]}})
    earlier = req.desired.resources["of-an-earlier-step"]
    earlier.resource.update({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": "value"}})
    earlier.ready = fnv1.READY_TRUE
    earlier.connection_details["password"] = b"\x00\xff"
    req.desired.composite.resource.update({"status": {"theirs": 1}})
    raw = req.SerializeToString() + UNKNOWN
    resource = req.observed.composite.SerializeToString() + UNKNOWN
    raw += fnv1.RunFunctionRequest(
        observed=fnv1.State(composite=fnv1.Resource.FromString(resource))
    ).SerializeToString()
    expected = fn.run(fnv1.RunFunctionRequest.FromString(raw))
    replay = Replay(MIB)
    assert ask(replay, raw) == replayed(replay, raw) == expected
    assert expected.desired.resources["of-an-earlier-step"] == earlier
    assert expected.context == req.context
    for change in (req.desired.resources["of-an-earlier-step"].resource, req.context):
        change["key"] = "other"
        assert ask(replay, req.SerializeToString()) == fn.run(req)


@each
def test_v1beta1_is_the_same_on_the_wire(req: fnv1.RunFunctionRequest) -> None:
    raw = fnv1beta1.RunFunctionRequest.FromString(req.SerializeToString()).SerializeToString()
    answer = fnv1beta1.RunFunctionResponse.FromString(Replay(MIB).answer(lazy.Request(raw)))
    assert answer.SerializeToString(deterministic=True) == fn.run(req).SerializeToString(deterministic=True)


@each
@pytest.mark.parametrize("trusting", [False, True], ids=["by what is seen", "by versions"])
def test_nothing_stale_is_answered_whatever_has_changed(req: fnv1.RunFunctionRequest, trusting: bool) -> None:
    """Each field is changed, and taken away, and each answer is asked for by those who know the other one."""
    known, version = Replay(4 * MIB, trusting=trusting), written if trusting else versioned
    req = version(req)
    raw, whole = req.SerializeToString(), fn.run(req)
    count = 0
    for changed in changes(req):
        count += 1
        other = version(changed) if trusting else changed
        assert ask(known, other.SerializeToString()) == fn.run(other)
        assert ask(known, raw) == whole
    assert count > 20


def versioned(
    req: fnv1.RunFunctionRequest, version: Callable[[structpb.Struct], str] = lambda _: "1"
) -> fnv1.RunFunctionRequest:
    """Give everything that is no composite a uid and a version, which is the same one by default."""
    req = copy.deepcopy(req)
    found = [r.resource for r in req.observed.resources.values()]
    found += [item.resource for r in req.required_resources.values() for item in r.items]
    for struct in found:
        if struct.fields["metadata"].HasField("struct_value"):
            struct.fields["metadata"].struct_value.update({"uid": "u", "resourceVersion": version(struct)})
    return req


def written(req: fnv1.RunFunctionRequest) -> fnv1.RunFunctionRequest:
    """Give everything the version that an API server would: another one for another content."""
    return versioned(req, lambda struct: kube.digest(struct.SerializeToString(deterministic=True).hex()))


def test_by_versions_only_those_are_looked_at() -> None:
    req, order = versioned(REQUESTS["tier, steady"]), random.Random(1)
    replay = Replay(MIB, trusting=True)
    ask(replay, req.SerializeToString())
    with mock.patch.object(lazy.Request, "others_facts", side_effect=AssertionError("looked at")):
        replayed(replay, shuffled(req, order))
    with mock.patch.object(lazy.Request, "versions", side_effect=AssertionError("trusted")):
        ask(Replay(MIB), req.SerializeToString())


def newer(req: fnv1.RunFunctionRequest, version: int) -> bytes:
    """The same request, whose observed resources have another version; a Secret's version is more than that."""
    req = versioned(req)
    for resource in req.observed.resources.values():
        resource.resource.fields["metadata"].struct_value["resourceVersion"] = f"{version}"
    return req.SerializeToString()


def test_looks_are_noted_only_once_new_versions_mean_nothing() -> None:
    req, replay = REQUESTS["tier, steady"], Replay(MIB, trusting=True)
    with mock.patch.object(lazy.Request, "others_shape", side_effect=AssertionError("noted")):
        for version in range(2):
            # Nobody knows yet what the version is worth.
            assert ask(replay, newer(req, version)) == replayed(replay, newer(req, version)) == fn.run(versioned(req))
    ask(replay, newer(req, 2))
    replayed(replay, newer(req, 3))
    with mock.patch.object(lazy.Request, "others_facts", side_effect=AssertionError("looked at")):
        replayed(replay, newer(req, 3))


def test_what_was_noted_is_seen_to_change_and_then_versions_count_again() -> None:
    req, replay = REQUESTS["tier, steady"], Replay(MIB, trusting=True)
    for version in range(4):
        ask(replay, newer(req, version))
    changed = copy.deepcopy(req)
    (agents,) = (r.resource for key, r in changed.observed.resources.items() if key.startswith("agents"))
    status = kube.sub(agents, "status", "atProvider", "manifest", "status")
    assert status is not None
    status.fields["numberReady"].number_value -= 1
    assert ask(replay, newer(changed, 4)) == fn.run(versioned(changed)) != fn.run(versioned(req))
    with mock.patch.object(lazy.Request, "others_shape", side_effect=AssertionError("noted")):
        assert ask(replay, newer(req, 5)) == fn.run(versioned(req))


def test_a_field_that_comes_without_a_new_version_is_seen() -> None:
    """A CRD's new default is in every object at once, and in no new version."""
    req, replay = versioned(REQUESTS["deployment, steady"]), Replay(MIB, trusting=True)
    ask(replay, req.SerializeToString())
    (tier,) = req.required_resources["tier"].items
    tier.resource.fields["spec"].struct_value.fields["targetNamespace"].string_value = "another-namespace"
    assert ask(replay, req.SerializeToString()) == fn.run(req)


def test_what_has_no_version_is_looked_at() -> None:
    req, replay = copy.deepcopy(REQUESTS["tier, steady"]), Replay(MIB, trusting=True)
    ask(replay, req.SerializeToString())
    (agents,) = (r.resource for key, r in req.observed.resources.items() if key.startswith("agents"))
    status = kube.sub(agents, "status", "atProvider", "manifest", "status")
    assert status is not None
    # Of the same size.
    status.fields["numberReady"].number_value -= 1
    assert ask(replay, req.SerializeToString()) == fn.run(req)


def test_the_same_version_under_another_name_is_another() -> None:
    req, replay = versioned(REQUESTS["tier, steady"]), Replay(MIB, trusting=True)
    ask(replay, req.SerializeToString())
    for key in sorted(req.observed.resources):
        req.observed.resources[f"{key[:-1]}0"].CopyFrom(req.observed.resources[key])
        del req.observed.resources[key]
    assert ask(replay, req.SerializeToString()) == fn.run(req)


def changes(req: fnv1.RunFunctionRequest) -> Iterator[fnv1.RunFunctionRequest]:
    """Every request that differs in one place from this one, which holds each change until the next."""
    req = copy.deepcopy(req)
    yield from _other_values(req, req.observed.composite.resource)
    maps: tuple[Any, ...] = (req.observed.resources, req.required_resources, req.desired.resources)
    for resources in maps:
        for key in sorted(resources):
            kept = copy.deepcopy(resources[key])
            del resources[key]
            yield req
            resources[key].CopyFrom(kept)
            for item in kept.items if isinstance(kept, fnv1.Resources) else [kept]:
                place = resources[key].items[list(kept.items).index(item)] if item is not kept else resources[key]
                yield from _other_values(req, place.resource)
    for key in sorted(req.required_resources):
        items = req.required_resources[key].items
        kept = copy.deepcopy(items)
        items.add().resource.update({"metadata": {"name": "further"}})
        yield req
        del items[:]
        yield req
        items.extend(kept)


def _other_values(req: fnv1.RunFunctionRequest, struct: structpb.Struct) -> Iterator[fnv1.RunFunctionRequest]:
    for name in sorted(struct.fields):
        value = struct.fields[name]
        kept = copy.deepcopy(value)
        del struct.fields[name]
        yield req
        struct.fields[name].CopyFrom(kept)
        yield from _others(req, struct.fields[name])


def _others(req: fnv1.RunFunctionRequest, value: structpb.Value) -> Iterator[fnv1.RunFunctionRequest]:
    kept = copy.deepcopy(value)
    match value.WhichOneof("kind"):
        case "struct_value":
            value.string_value = "no object"
            yield req
            value.list_value.values.add().string_value = "no object"
            yield req
            value.struct_value.Clear()
            yield req
            value.CopyFrom(kept)
            yield from _other_values(req, value.struct_value)
        case "list_value":
            value.list_value.values.add().string_value = "further"
            yield req
            del value.list_value.values[:]
            yield req
            value.struct_value["no"] = "list"
            yield req
            value.CopyFrom(kept)
            for item in value.list_value.values:
                yield from _others(req, item)
        case "string_value":
            value.string_value += "x"
            yield req
        case "number_value":
            value.number_value += 1
            yield req
        case "bool_value":
            value.bool_value = not value.bool_value
            yield req
    value.CopyFrom(kept)


def test_a_fatal_result_is_never_replayed_and_logged_once() -> None:
    req = request({"kind": "KVOffloadTier", "metadata": {}})
    req.meta.tag = "tag"
    replay = Replay(MIB)
    with mock.patch("crossplane.function.logging.get_logger") as logger:
        for n in range(2):
            assert fn.fatal(ask(replay, req.SerializeToString()))
            assert len(logger().warning.mock_calls) == n + 1
    assert logger().warning.mock_calls[0].kwargs["tag"] == "tag"


def test_what_the_fast_path_cannot_do_the_reference_does() -> None:
    req = REQUESTS["tier, steady"]
    with mock.patch.object(lazy._View, "items", side_effect=AttributeError):
        assert ask(Replay(MIB), req.SerializeToString()) == fn.run(req)


def test_each_round_of_a_reconcile_is_known() -> None:
    req, replay = copy.deepcopy(REQUESTS["tier, steady"]), Replay(MIB)
    before = copy.deepcopy(req)
    before.required_resources.clear()
    for _ in range(2):
        for round_ in (before, req):
            ask(replay, round_.SerializeToString())
    replayed(replay, before.SerializeToString())
    replayed(replay, req.SerializeToString())


def test_what_is_read_as_a_whole_is_known_in_any_order() -> None:
    req, order = REQUESTS["tier, steady"], random.Random(1)
    first = lazy.Request(req.SerializeToString())
    assert kube.plain(cast(structpb.Struct, first.observed.composite.resource)) == kube.plain(
        req.observed.composite.resource
    )
    shape = first.own_shape()
    assert {lazy.Request(shuffled(req, order)).own_facts(shape) for _ in range(20)} == {first.own_facts(shape)}


def named(number: int, size: int = 0) -> bytes:
    """A request of a composite of its own, whose answer is as long as its context."""
    req = request({"apiVersion": "v1", "kind": "Any", "metadata": {"name": f"n{number}", "uid": f"{number}"}})
    req.context["long"] = "x" * size
    return req.SerializeToString()


def test_what_is_remembered_has_a_bound() -> None:
    replay = Replay(100_000)
    for number in range(1000):
        ask(replay, named(number, 5000))
        held = sum(answer.size for answer in replay._answers.values())
        assert held == 100_000 - replay._left <= 100_000
        assert sorted(map(repr, replay._keys)) == sorted(map(repr, replay._answers))
    assert len(replay._answers) > 10
    for size in (5000, 100, 5000, 50):
        ask(replay, named(1, size))
        assert sum(answer.size for answer in replay._answers.values()) == 100_000 - replay._left
    ask(replay, named(1, 200_000))
    assert sum(answer.size for answer in replay._answers.values()) <= 100_000


def test_of_more_than_fit_some_are_replayed_in_every_turn() -> None:
    replay, requests = Replay(100_000), [named(number, 5000) for number in range(26)]
    run = fn.run
    with mock.patch.object(fn, "run", side_effect=run) as composed:
        for _ in range(50):
            for raw in requests:
                ask(replay, raw)
    assert composed.call_count < 0.8 * 50 * 26


def test_a_composite_of_another_uid_shares_nothing() -> None:
    req = copy.deepcopy(REQUESTS["tier, first"])
    replay = Replay(MIB)
    for uid in "abc":
        req.observed.composite.resource.fields["metadata"].struct_value["uid"] = uid
        ask(replay, req.SerializeToString())
    assert len(replay._answers) == 3


def test_bytes_that_are_no_request_are_an_error() -> None:
    with pytest.raises(DecodeError):
        lazy.Request(b"\xff\xff\xff")


def test_a_reader_of_the_function_does_not_meet_the_fast_path() -> None:
    """From fn.py on, a request is read in the plain way: only what serves it knows of another one."""
    fast = {"lazy", "replay", "server"}
    knows = set()
    for path in Path("function").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                if fast & {*node.module.split("."), *(alias.name for alias in node.names)}:
                    knows.add(path.stem)
            elif isinstance(node, ast.Import):
                assert not any("function" in alias.name for alias in node.names), path
    assert knows == {"main", "server", "replay"}
