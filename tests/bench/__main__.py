"""`make bench`: this function and the SDK's identity function side by side, interleaved, and the ratios of rounds."""

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf.struct_pb2 import Struct

from function import fn, kube
from function.kube import Manifest
from function.render import dump
from tests.bench.loads import FLEETS, LARGE, Load, loads
from tests.bench.servers import IDENTITY, OURS, Target, certificates, compile_servers, serve

DOCUMENT = Path("docs/performance.md")
_MARKS = "<!-- results -->", "<!-- end of results -->"
# Calls of a round: of large requests, enough for a median.
CALLS, FEW = 60, 5
CONCURRENCY = (1, 8, 32)
STEADY = "tier mooncake-ha, steady"
# Goals of a steady request's CPU to the identity function's; CI allows this much for noise.
GATE, SLACK = 1.3, 1.15
CHECKED_ROUNDS = 9
_TEMPLATING = "gotemplating.fn.crossplane.io"
# Where they begin among the targets.
_PEERS = 2
_LARGE = "--max-recv-message-size=64"
# As package/install/control-plane.yaml has it, but for TLS and the memory for answers.
_INSTALLED = ("--insecure", _LARGE, "--trust-resource-versions")


class Ratio(NamedTuple):
    """The median of all rounds' ratios, and the least and the greatest of them."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare two targets, round by round."""
    ratios = [a / b if b else 0 for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


class Measured(NamedTuple):
    """One load's rounds: for each target its medians in ms, and its CPU per request in ms."""

    times: list[list[float]]
    cpu: list[list[float]]


def template(answer: fnv1.RunFunctionResponse) -> bytes:
    """Give an answer as an input for function-go-templating, to go behind a request's bytes; others ignore it."""
    documents = []
    for key, desired in sorted(answer.desired.resources.items()):
        manifest = kube.plain(desired.resource)
        annotations = manifest["metadata"].get("annotations", {})
        manifest["metadata"]["annotations"] = {**annotations, f"{_TEMPLATING}/composition-resource-name": key}
        # What is a template in it stays as it is.
        documents.append(dump([manifest]).replace("{{", '{{ "{{" }}'))
    source: Manifest = {"source": "Inline", "inline": {"template": "".join(documents)}}
    req = fnv1.RunFunctionRequest()
    req.input.update({"apiVersion": f"{_TEMPLATING}/v1beta1", "kind": "GoTemplate", **source})
    return req.SerializeToString()


def measure(targets: Sequence[Target], load: Load, rounds: int, further: bytes = b"") -> Measured:
    """Ask all targets the same, in turns, peers with something more; the first round warms up and does not count."""
    calls = CALLS if load.request.ByteSize() < LARGE else FEW
    found = Measured([[] for _ in targets], [[] for _ in targets])
    for turn in range(rounds + 1):
        requests = [load.encode(turn * calls + n) for n in range(calls)]
        for n, target in enumerate(targets):
            median, cpu = target.calls([r + further for r in requests] if n >= _PEERS else requests)
            if turn:
                found.times[n].append(median)
                found.cpu[n].append(cpu)
    load.forget()
    return found


class Report:
    """Prints tables as they are measured, and keeps them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, *columns: str) -> None:
        """Begin a table; every column but the first holds numbers."""
        self.say()
        self.row(*columns)
        self.row("---", *["---:"] * (len(columns) - 1))

    def row(self, *cells: object) -> None:
        self.say(f"| {' | '.join(map(str, cells))} |")


def latencies(report: Report, targets: Sequence[Target], which: Iterable[Load], rounds: int) -> dict[str, float]:
    """Measure one request at a time; returns our medians in ms, by load."""
    ours, _, *peers = targets
    extra = [f"against {peer.name}" for peer in peers]
    report.table("request", "KB in", "KB out", "p50", "CPU", "ours, ms", "identity, ms", *extra)
    medians = {}
    for load in which:
        request = load.encode(0)
        answer = ours.answer(request)
        size = answer.ByteSize()
        found = measure(targets, load, rounds, template(answer) if peers else b"")
        times = [statistics.median(column) for column in found.times]
        report.row(
            load.name,
            len(request) >> 10,
            size >> 10,
            ratio(found.times[0], found.times[1]),
            ratio(found.cpu[0], found.cpu[1]),
            f"{times[0]:.2f}",
            f"{times[1]:.2f}",
            *(ratio(found.times[0], column) for column in found.times[2:]),
        )
        medians[load.name] = times[0]
    return medians


def throughputs(report: Report, targets: Sequence[Target], load: Load, rounds: int) -> None:
    """Measure several requests at a time."""
    report.table("requests at a time", "requests per second", "ours", "identity")
    requests = [load.encode(n) for n in range(400)]
    for concurrency in CONCURRENCY:
        columns = [[t.throughput(requests, concurrency) for t in targets] for _ in range(rounds)]
        ours, theirs = zip(*columns, strict=True)
        report.row(
            concurrency, ratio(ours, theirs), f"{statistics.median(ours):.0f}", f"{statistics.median(theirs):.0f}"
        )


def cold_start(module: str) -> float:
    """The seconds from a process' start to its first answer."""
    start = time.perf_counter()
    with serve(module, poll=0.002) as server:
        Target(module, server.address).answer(b"")
        return time.perf_counter() - start


def starts(report: Report, rounds: int) -> None:
    """Measure cold starts."""
    found = [(cold_start(OURS), cold_start(IDENTITY)) for _ in range(rounds)]
    ours, theirs = zip(*found, strict=True)
    report.row(
        "cold start, s", ratio(ours, theirs), f"{statistics.median(ours):.2f}", f"{statistics.median(theirs):.2f}"
    )


def slopes(report: Report, medians: dict[str, float]) -> None:
    """Say what a fleet costs for each cluster, and all its composites together."""
    small, large = FLEETS[0], FLEETS[-1]
    report.say()
    for state in ("steady", "changed"):
        slope = (medians[f"fleet of {large}, {state}"] - medians[f"fleet of {small}, {state}"]) / (large - small)
        report.say(f"A fleet, {state}: {slope:.3f} ms for each further cluster.")
    # Calls are independent: an engine reads its own tier, however many others there are.
    each = medians["tier lmcache, steady"] + 10 * medians["engine lmcache, steady"]
    whole = (medians[f"fleet of {large}, steady"] + large * each) / 1000
    report.say(f"A fleet of {large} clusters with {10 * large} engines: {whole:.1f} s for a pass of each.")


def writing(report: Report, load: Load, rounds: int) -> None:
    """Compare what we write by hand, or by a faster library, with what one would take first."""
    answer = fn.run(load.request)
    manifests = [kube.plain(desired.resource) for desired in answer.desired.resources.values()]

    def seconds(write: Callable[[Manifest], object]) -> float:
        start = time.process_time()
        for manifest in manifests:
            write(manifest)
        return time.process_time() - start

    pairs: dict[str, tuple[Callable[[Manifest], object], Callable[[Manifest], object]]] = {
        "`kube.write` to `Struct.update`": (lambda m: kube.write(m, to=Struct()), lambda m: Struct().update(m)),
        "`kube.compact` to `json.dumps`": (kube.compact, lambda m: json.dumps(m, sort_keys=True)),
    }
    report.table(f"CPU for manifests of {load.name}", "ratio", "ours, ms")
    for name, pair in pairs.items():
        ours, theirs = zip(*[[seconds(write) for write in pair] for _ in range(rounds)], strict=True)
        report.row(name, ratio(ours, theirs), f"{statistics.median(ours) * 1e3:.2f}")


def compare(report: Report, args: argparse.Namespace) -> None:
    """Run everything."""
    with ExitStack() as stack:

        def target(module: str, *options: str, certificates: Path | None = None) -> Target:
            server = stack.enter_context(serve(module, *options))
            return Target(module, server.address, server.pid, certificates)

        targets = [target(OURS, *_INSTALLED), target(IDENTITY, "--insecure", _LARGE)]
        fresh = [t.memory() for t in targets]
        peers = [Target(*peer.split("=", 1)) for peer in args.peer]
        chosen = [load for load in loads() if re.search(args.only, load.name)]
        medians = latencies(report, [*targets, *peers], chosen, args.rounds)
        if args.only:
            return
        slopes(report, medians)
        steady = next(load for load in chosen if load.name == STEADY)
        report.say(f"\n{STEADY}:")
        throughputs(report, targets, steady, args.rounds)
        writing(report, steady, args.rounds)
        folder = certificates(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        tls = f"--tls-server-certs-dir={folder}"
        secured = [target(OURS, tls, *_INSTALLED[1:], certificates=folder), target(IDENTITY, tls, certificates=folder)]
        found = measure(secured, steady, args.rounds)
        times = [statistics.median(column) for column in found.times]
        report.table("", "ratio", "ours", "identity")
        report.row("over mTLS, ms", ratio(*found.times), f"{times[0]:.2f}", f"{times[1]:.2f}")
        starts(report, args.rounds)
        for when, (ours, theirs) in (("at first", fresh), ("after all this", [t.memory() for t in targets])):
            report.row(f"MiB {when}", f"{ours / theirs:.2f}", f"{ours:.0f}", f"{theirs:.0f}")


def check() -> int:
    """Hold the CPU of steady requests to its gate; returns 1 where it is missed."""
    missed = []
    with serve(OURS, *_INSTALLED) as ours, serve(IDENTITY) as theirs:
        targets = [Target(OURS, *ours), Target(IDENTITY, *theirs)]
        for load in loads(small=True):
            if load.vary is None:
                found = ratio(*measure(targets, load, CHECKED_ROUNDS).cpu)
                print(f"{load.name}: CPU {found} of the identity function's, and {GATE} is allowed")
                missed += [load.name] if found.median > GATE * SLACK else []
    return 1 if missed else 0


def write(report: Report) -> None:
    """Put the results into the document, in the place of the last ones."""
    begin, end = _MARKS
    before, _, rest = DOCUMENT.read_text().partition(begin)
    DOCUMENT.write_text("\n".join([before + begin, *report.lines, "", end + rest.partition(end)[2]]))


def machine() -> str:
    """Say on what it is measured."""
    packages = ("crossplane-function-sdk-python", "grpcio", "protobuf")
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    return ", ".join(
        [
            time.strftime("%Y-%m-%d"),
            f"{cores} cores",
            f"Python {platform.python_version()}",
            *(f"{p} {version(p)}" for p in packages),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", metavar="REGEX", help="only these requests, and nothing else")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT",
        help="a further function, which is given what we answer as a go-templating input",
    )
    parser.add_argument("--check", action="store_true", help="only hold steady requests' CPU to the gate")
    parser.add_argument("--write", action="store_true", help=f"write the results into {DOCUMENT}")
    args = parser.parse_args()
    compile_servers()
    if args.check:
        return check()
    report = Report()
    report.say(f"{machine()}, {args.rounds} rounds. Ratios to the SDK's identity function: median (least-most).")
    compare(report, args)
    if args.write:
        write(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
