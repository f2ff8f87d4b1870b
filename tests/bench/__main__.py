"""`make bench`: both functions side by side on loopback, interleaved, and the ratio of each round."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from unittest import mock

import grpc
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

from function import rollout
from function.kube import Manifest
from function.render import EXAMPLES, by_key, load, render, request
from tests.standin import observe
from tests.tools.crossplane import function_server
from tests.unit.fleets import FleetStory, cluster, fleet

ROUNDS = 15
CALLS = 60
# Of requests of some MB: enough for a median.
FEW = 5
FLEETS = (10, 100, 1000)


def requests() -> Iterator[tuple[str, fnv1.RunFunctionRequest]]:
    """The requests of two examples, as Crossplane sends them in the last round of a reconcile."""
    folder = EXAMPLES / "lmcache"
    tier, deployment = load(folder / "tier.yaml")[0], load(folder / "deployment.yaml")[0]
    cluster, secret = load(folder / "required.yaml")
    for name, composite, required in (
        ("tier", tier, [("cluster", cluster), ("credentials", secret), ("attachments", None)]),
        ("engine", deployment, [("tier", tier), ("cluster", cluster)]),
    ):
        first: list[tuple[str, Manifest | None]] = [(key, found) for key, found in required]
        rendered = render(composite, [], [found for _, found in required if found])
        yield f"{name}, first", request(composite, [], first)
        yield f"{name}, steady", request(rendered.composite, observe(rendered), first)
    folder = EXAMPLES / "modelplane"
    replica, tier = (load(folder / f"{name}.yaml")[0] for name in ("replica", "tier"))
    (cluster,), desired = load(folder / "required.yaml"), by_key(load(folder / "desired.yaml"))
    found = [("tier modelplane-system/pool", tier), ("cluster eu-h100", cluster)]
    rendered = render(replica, [], [tier, cluster], desired)
    yield "step, first", request(replica, [], found, desired)
    yield "step, steady", request(rendered.composite, observe(rendered), found, desired)


def fleets() -> Iterator[tuple[str, fnv1.RunFunctionRequest]]:
    """Fleets whose tiers all run, and the same that have just got another template: as many clusters as FLEETS says."""
    for size in FLEETS:
        story = FleetStory(fleet({"maxUnavailable": "100%"}), *(cluster(f"prod-us-h200-{n:04}") for n in range(size)))
        with mock.patch.object(rollout, "AT_ONCE", size):
            story.turn()
        there = [("clusters", [*story.clusters.values()])]
        yield f"fleet of {size}, steady", request(story.fleet, list(story.tiers.values()), there)
        story.change(512)
        yield f"fleet of {size}, changed", request(story.fleet, list(story.tiers.values()), there)


def measure(stub: grpcv1.FunctionRunnerServiceStub, req: fnv1.RunFunctionRequest) -> float:
    """The median of a round of calls, in milliseconds."""
    times = []
    for _ in range(CALLS if req.ByteSize() < 1 << 18 else FEW):
        start = time.perf_counter()
        stub.RunFunction(req)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def main() -> None:
    """Print, for each request, the median ratio over all rounds, its spread, and both medians."""
    with ExitStack() as stack:
        stubs = []
        for module in ("function", "tests.bench.identity"):
            address = stack.enter_context(function_server(module))
            channel = stack.enter_context(grpc.insecure_channel(address))
            stubs.append(grpcv1.FunctionRunnerServiceStub(channel))  # type: ignore[no-untyped-call]
        ours, identity = stubs
        print(f"{'request':<24}{'KB in':>7}{'ratio':>8}{'min':>7}{'max':>7}{'ours ms':>9}{'identity ms':>13}")
        costs = {}
        for name, req in chain(requests(), fleets()):
            measure(ours, req), measure(identity, req)  # warm
            rounds = [(measure(ours, req), measure(identity, req)) for _ in range(ROUNDS)]
            ratios = [a / b for a, b in rounds]
            medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
            print(
                f"{name:<24}{req.ByteSize() / 1024:>7.0f}{statistics.median(ratios):>8.2f}{min(ratios):>7.2f}"
                f"{max(ratios):>7.2f}{medians[0]:>9.2f}{medians[1]:>13.2f}"
            )
            costs[name] = medians[0]
        small, large = FLEETS[0], FLEETS[-1]
        for state in ("steady", "changed"):
            slope = (costs[f"fleet of {large}, {state}"] - costs[f"fleet of {small}, {state}"]) / (large - small)
            print(f"a fleet, {state}: {slope:.3f} ms for each further cluster")
        # Calls are independent: an engine reads its own tier, however many others there are.
        each = costs["tier, steady"] + 10 * costs["engine, steady"]
        whole = (costs[f"fleet of {large}, steady"] + large * each) / 1000
        print(f"a fleet of {large} clusters with {10 * large} engines: {whole:.1f} s for a pass of each")


if __name__ == "__main__":
    main()
