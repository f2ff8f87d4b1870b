"""What is asked: the requests of the examples, as Crossplane sends them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import kube, rollout
from function.kube import Manifest
from function.render import EXAMPLES, by_key, load, render, request
from tests.bench.served import served
from tests.standin import states
from tests.unit.fleets import FleetStory, cluster, fleet
from tests.wire import shuffled

Vary = Callable[[fnv1.RunFunctionRequest, int], None]

FLEETS = (10, 100, 1000)
ATTACHMENTS = (10, 100, 1000)
# From this size on a few encodings have to do.
LARGE = 1 << 18


@dataclass
class Load:
    """Requests of one sort: each is the same in another encoding, as Go sends it, or another one, by `vary`."""

    name: str
    request: fnv1.RunFunctionRequest
    vary: Vary | None = None
    _encodings: list[bytes] = field(default_factory=list)

    def encode(self, number: int) -> bytes:
        """Give the bytes of one of them."""
        if self.vary:
            self.vary(self.request, number)
            return self.request.SerializeToString()
        count = 16 if self.request.ByteSize() < LARGE else 2
        if not self._encodings:
            order = random.Random(number)
            self._encodings = [shuffled(self.request, order) for _ in range(count)]
        return self._encodings[number % count]

    def forget(self) -> None:
        """Keep nothing that was encoded."""
        self._encodings.clear()


def _part(req: fnv1.RunFunctionRequest, *path: str) -> structpb.Struct:
    found = kube.sub(req.observed.composite.resource, *path)
    assert found is not None
    return found


def another(req: fnv1.RunFunctionRequest, number: int) -> None:
    """Make it a request of another composite."""
    _part(req, "metadata")["uid"] = f"{number:08x}"


def _new(req: fnv1.RunFunctionRequest, number: int) -> None:
    """Make it a request of a composite of another name, by which each of its parts is another one."""
    another(req, number)
    _part(req, "metadata")["name"] = f"composite-{number}"


def _elsewhere(req: fnv1.RunFunctionRequest, number: int) -> None:
    """Move a tier to another namespace, by which each of its parts is another one."""
    _part(req, "spec")["targetNamespace"] = f"namespace-{number}"


def _renamed(req: fnv1.RunFunctionRequest, number: int) -> None:
    """Give an engine another argument."""
    _part(req, "spec", "engine")["args"] = [f"--model=some/model-{number}"]


def loads(*, small: bool = False) -> Iterator[Load]:
    """All of them, from small to large, or only the small."""
    yield from _tier("lmcache")
    yield from _tier("mooncake-ha")
    yield from _engine()
    yield from _step()
    if small:
        return
    for count in ATTACHMENTS:
        yield _attached(count)
    for size in FLEETS:
        yield from _fleet(size)


def _tier(example: str) -> Iterator[Load]:
    folder = EXAMPLES / example
    tier, found = load(folder / "tier.yaml")[0], load(folder / "required.yaml")
    yield from _three(f"tier {example}", tier, found, _elsewhere)


def _engine() -> Iterator[Load]:
    folder = EXAMPLES / "lmcache"
    tier, deployment = load(folder / "tier.yaml")[0], load(folder / "deployment.yaml")[0]
    found = [*load(folder / "required.yaml"), render(tier, [], load(folder / "required.yaml")).composite]
    yield from _three("engine lmcache", deployment, found, _renamed)


def _three(name: str, composite: Manifest, found: list[Manifest], change: Vary) -> Iterator[Load]:
    first, steady = states(composite, found, kept=served)
    yield Load(f"{name}, first", first, _new)
    yield Load(f"{name}, steady", steady)
    changed = fnv1.RunFunctionRequest()
    changed.CopyFrom(steady)
    yield Load(f"{name}, changed", changed, change)


def _step() -> Iterator[Load]:
    folder = EXAMPLES / "modelplane"
    replica, tier = (load(folder / f"{name}.yaml")[0] for name in ("replica", "tier"))
    desired = by_key(load(folder / "desired.yaml"))
    first, steady = states(replica, [*load(folder / "required.yaml"), tier], desired, served)
    yield Load("step modelplane, first", first, _new)
    yield Load("step modelplane, steady", steady)


def _attached(count: int) -> Load:
    """A tier that so many engines are attached to, each of which it reads."""
    folder = EXAMPLES / "lmcache"
    tier, found = load(folder / "tier.yaml")[0], load(folder / "required.yaml")
    engine = load(folder / "deployment.yaml")[0]
    attached = render(engine, [], [*found, render(tier, [], found).composite])
    (usage,) = [m for m in attached.composed.values() if m["kind"] == "Usage"]
    usages = [{**usage, "metadata": {**usage["metadata"], "name": f"{n}"}} for n in range(count)]
    _, steady = states(tier, [*found, *usages], kept=served)
    return Load(f"tier lmcache, {count} engines", steady)


def _fleet(size: int) -> Iterator[Load]:
    """A fleet whose tiers all run, and the same that has just got another template."""
    story = FleetStory(fleet({"maxUnavailable": "100%"}), *(cluster(f"prod-us-h200-{n:04}") for n in range(size)))
    with mock.patch.object(rollout, "AT_ONCE", size):
        story.turn()
    there = [("clusters", [served(found) for found in story.clusters.values()])]
    tiers = [served(tier) for tier in story.tiers.values()]
    yield Load(f"fleet of {size}, steady", request(served(story.fleet), tiers, there))
    story.change(512)
    changed = request(served(story.fleet), tiers, there)
    yield Load(f"fleet of {size}, changed", changed, another)
