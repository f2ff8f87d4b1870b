"""Says what a KVOffloadFleet or a KVOffloadTier would change, before it is applied: where, in which wave, at what cost.

`python -m function.plan fleet.yaml -e there.yaml` prints a table; `-h` says the rest. What is there comes from files,
as `kubectl get kvoffloadfleets,kvoffloadtiers,inferenceclusters -A -o yaml` writes them. It goes through the decisions
of the function itself, with every tier that changes becoming ready.
"""

import argparse
import copy
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from crossplane.function import resource
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from pydantic.alias_generators import to_camel

from function import api, changes, fleet, kube, picture, rollout, tier
from function.api.fleet import FleetSpec, canonical
from function.backends.base import Site
from function.changes import Change
from function.cluster import View as ClusterView
from function.kube import Manifest
from function.render import Rendered, answered, load, outcome, render
from function.resolve import Found, State

FLEET, TIER, CLUSTER = "KVOffloadFleet", "KVOffloadTier", "InferenceCluster"
_KEY = "crossplane.io/composition-resource-name"
_REFUSED = 3


class Refused(Exception):
    """What is to be applied would be refused, or change nothing; the text says why."""


@dataclass(frozen=True)
class Step:
    """What happens to one cluster's tier.

    `wave` counts from 1; 0 is for what does not change. `action` is Create, Change, Remove, Keep or LeaveOut. `fields`
    are what changes in the tier's spec, by path: the value before and after. `parts` are what of it is made, changed or
    removed on the cluster, `restarts` those whose pods restart. `agents` and `engines` are those of the tier as it is,
    `memory` is a node's before and after, in GiB.
    """

    cluster: str
    tier: str
    action: str
    wave: int = 0
    canary: bool = False
    cold: bool = False
    rolls_engines: bool = False
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    restarts: Sequence[str] = ()
    agents: str = ""
    engines: int = 0
    memory: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What a fleet or a tier would do: a step for each cluster, in the order in which they happen."""

    subject: str
    steps: Sequence[Step]
    revision: str = ""
    notes: Sequence[str] = ()

    @property
    def waves(self) -> int:
        """How many waves there are."""
        return max((step.wave for step in self.steps), default=0)

    def counts(self) -> Mapping[str, int]:
        """Count what happens."""
        moved = [s for s in self.steps if s.wave]
        return {
            "clusters": len(self.steps),
            "change": len(moved),
            "cold": sum(s.cold for s in moved),
            "enginesRoll": sum(s.engines for s in moved if s.rolls_engines),
            "waves": self.waves,
        }


def of(subject: Manifest, there: Sequence[Manifest]) -> Plan:
    """Plan a manifest.

    Args:
        subject: The KVOffloadFleet or KVOffloadTier that is to be applied.
        there: What the control plane holds.

    Raises:
        Refused: the function would refuse it.
        ValueError: it is of another kind.
    """
    kind = subject.get("kind")
    if kind not in (FLEET, TIER):
        raise ValueError(f"a {kind} cannot be planned; give a {FLEET} or a {TIER}")
    before = next((m for m in there if _same(m, subject)), None)
    known = {"status": before["status"]} if before and "status" in before else {}
    metadata = {**(before or {}).get("metadata", {}), **subject["metadata"]}
    metadata.setdefault("uid", "planned")
    now = {**subject, **known, "metadata": metadata}
    others = [m for m in there if not _same(m, subject)]
    return _fleet(now, others) if kind == FLEET else _tier(now, before, others)


# --- one tier ---------------------------------------------------------------------------------------------------------


def _tier(new: Manifest, old: Manifest | None, there: Sequence[Manifest]) -> Plan:
    if not _accepted(rendered := render(new, [], there)):
        raise Refused(rendered.condition("Accepted")["message"])
    step = _compare(old, new, there, wave=1)
    return Plan(_name(new), [step], notes=_notes([step], there))


def _compare(old: Manifest | None, new: Manifest, there: Sequence[Manifest], wave: int) -> Step:
    """Compare a tier as it is, or is not, with what it will be."""
    cluster = new["spec"]["inferenceClusterRef"]["name"]
    fields = dict(_differences(_spec(old), _spec(new)))
    if old and not fields:
        return Step(cluster, new["metadata"]["name"], "Keep", **_seen(old))
    change = _cost(old, new, there) if old else changes.NONE
    before, after = (_parts(m, there) if m else ({}, {}) for m in (old, new))
    return Step(
        cluster,
        new["metadata"]["name"],
        "Change" if old else "Create",
        wave,
        cold=change.cold,
        rolls_engines=change.engines,
        fields=fields if old else {},
        parts=_moved(before[0], after[0]),
        restarts=change.restarts,
        memory=(before[1], after[1]),
        **_seen(old),
    )


def _seen(old: Manifest | None) -> dict[str, Any]:
    status = (old or {}).get("status", {})
    return {"agents": status.get("agents", ""), "engines": status.get("attachments", 0)}


def _spec(of_tier: Manifest | None) -> Manifest:
    """Give a tier's spec in its one form; as it is written, where it cannot be read."""
    if of_tier is None:
        return {}
    try:
        return canonical(tier.read(resource.dict_to_struct(of_tier)).spec)
    except api.Invalid:
        return dict(of_tier["spec"])


def _cost(old: Manifest, new: Manifest, there: Sequence[Manifest]) -> Change:
    cluster = _cluster(_where(new), there)
    found = Found(State.PRESENT, resource.dict_to_struct(cluster)) if cluster else Found(State.ABSENT)
    try:
        before, after = (tier.read(resource.dict_to_struct(m)) for m in (old, new))
    except api.Invalid:
        return Change(cold=True, engines=True)
    gpus = before.gpus_per_node or ClusterView(_where(new), found).gpus_per_node
    return changes.between(before, after, Site(gpus))


def _parts(of_tier: Manifest, there: Sequence[Manifest]) -> tuple[dict[str, Manifest], dict[str, int]]:
    """Render a tier: what it puts on its cluster by part, and a node's memory in GiB."""
    rendered = render(of_tier, [], there)
    suffix = f"-{_where(of_tier)}"
    composed = {
        key.removesuffix(suffix): m["spec"]["forProvider"]["manifest"]
        for key, m in rendered.composed.items()
        if m["kind"] == "Object"
    }
    return composed, rendered.composite["status"].get("memory", {})


def _moved(before: Mapping[str, Manifest], after: Mapping[str, Manifest]) -> dict[str, str]:
    names = sorted({*before, *after})
    found = {n: "made" if n not in before else "removed" if n not in after else "changed" for n in names}
    return {n: what for n, what in found.items() if before.get(n) != after.get(n)}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield path, (old, new)


# --- a fleet ----------------------------------------------------------------------------------------------------------


def _fleet(new: Manifest, there: Sequence[Manifest]) -> Plan:
    new = copy.deepcopy(new)
    rollout_ = new["spec"].setdefault("rollout", {})
    # What a person holds, a person lets go: the plan goes on, and says so.
    paused, approved = rollout_.pop("paused", False), rollout_.pop("approvedRevision", None)
    before = {_where(m): _observed(m, new) for m in there if m["kind"] == TIER and _owns(new, m)}
    others = [m for m in there if not (m["kind"] == TIER and _owns(new, m))]
    req, rsp = answered(new, [*before.values()], [*others, *before.values()])
    rendered = outcome(new, rsp)
    if rendered.fatal:
        raise Refused(rendered.results[-1]["message"])
    for type_ in ("Accepted", "ClustersMatched"):
        if (found := rendered.condition(type_))["status"] != "True":
            raise Refused(found["message"])
    composer = fleet.Composer(req, fnv1.RunFunctionResponse())
    spec, release = fleet.read(req.observed.composite.resource)
    places = composer.match(spec, release) or {}
    steps = [
        replace(_compare(before.get(name), _tier_of(new, name, places[name], before), there, wave), canary=canary)
        for wave, started in enumerate(_waves(composer, spec, release, places), 1)
        for name in started
        for canary in [places[name].canary]
    ]
    moved = {s.cluster for s in steps}
    # What `match` has not kept goes, unless it is selected.
    kept = {key.removeprefix("tier-") for key in composer.rsp.desired.resources} | places.keys()
    steps += [_gone(name, m) for name, m in before.items() if name not in kept]
    steps += [
        Step(n, kube.tier_of_fleet(new["metadata"]["name"], n), "LeaveOut", why=p.why)
        for n, p in places.items()
        if p.member is None
    ]
    rest = [(n, m) for n, m in before.items() if n in kept and n not in moved]
    steps += [Step(n, m["metadata"]["name"], "Keep", **_seen(m)) for n, m in rest]
    revision = composer.revision(spec, release)
    notes = ["spec.rollout.paused is true: nothing of this begins before it is false"] if paused else []
    if approved not in (None, revision) and any(s.wave and not s.canary for s in steps):
        notes.append(f"who is no canary changes only once spec.rollout.approvedRevision is {revision}")
    return Plan(_name(new), steps, revision, [*notes, *_notes(steps, there)])


def _waves(
    composer: fleet.Composer, spec: FleetSpec, release: str, places: Mapping[str, fleet.Place]
) -> Iterator[list[str]]:
    """Go through the rollout's own decisions, while every tier that starts becomes ready; gives who starts."""
    members = composer.members(places)
    limits = replace(composer.limits(spec, release, len(members)), starts=len(members))
    while True:
        members = [replace(m, settled=True) if m.started else m for m in members]
        start = rollout.decide(members, limits).start
        if not start:
            return
        yield sorted(start)
        members = [replace(m, applied=m.target, ready=True) if m.cluster in start else m for m in members]


def _owns(of_fleet: Manifest, of_tier: Manifest) -> bool:
    labels = of_tier["metadata"].get("labels", {})
    namespaces = {m["metadata"].get("namespace", "default") for m in (of_fleet, of_tier)}
    return labels.get(kube.LABEL_FLEET) == kube.label(of_fleet["metadata"]["name"]) and len(namespaces) == 1


def _observed(of_tier: Manifest, of_fleet: Manifest) -> Manifest:
    """Give a tier as Crossplane observes it of its owner."""
    found = copy.deepcopy(of_tier)
    found["metadata"].setdefault("annotations", {})[_KEY] = f"tier-{_where(of_tier)}"
    found["metadata"]["ownerReferences"] = [{"uid": of_fleet["metadata"]["uid"]}]
    return found


def _tier_of(of_fleet: Manifest, name: str, place: fleet.Place, before: Mapping[str, Manifest]) -> Manifest:
    """Give a cluster's tier as it will be, with what it has latched."""
    metadata = {"name": kube.tier_of_fleet(of_fleet["metadata"]["name"], name)}
    metadata["namespace"] = of_fleet["metadata"].get("namespace", "default")
    spec = {**canonical(place.form.spec), "inferenceClusterRef": {"name": name}}
    status = before.get(name, {}).get("status", {})
    return {"apiVersion": of_fleet["apiVersion"], "kind": TIER, "metadata": metadata, "spec": spec, "status": status}


def _gone(name: str, old: Manifest) -> Step:
    why = "its cluster is no longer selected"
    return Step(name, old["metadata"]["name"], "Remove", 1, cold=True, why=why, **_seen(old))


# --- what both have ---------------------------------------------------------------------------------------------------


def _cluster(name: str, there: Sequence[Manifest]) -> Manifest | None:
    return next((m for m in there if m["kind"] == CLUSTER and m["metadata"]["name"] == name), None)


def _same(one: Manifest, other: Manifest) -> bool:
    return one.get("kind") == other.get("kind") and _name(one) == _name(other)


def _name(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return f"{manifest['kind']} {metadata.get('namespace', 'default')}/{metadata['name']}"


def _where(of_tier: Manifest) -> str:
    return str(of_tier["spec"]["inferenceClusterRef"]["name"])


def _accepted(rendered: Rendered) -> bool:
    return rendered.condition("Accepted")["status"] == "True"


def _notes(steps: Sequence[Step], there: Sequence[Manifest]) -> list[str]:
    unknown = sorted(s.cluster for s in steps if not _cluster(s.cluster, there))
    return [f"InferenceCluster {name} is in none of the files" for name in unknown]


def read(paths: Sequence[Path]) -> list[Manifest]:
    """Read what a control plane holds from files, lists of kubectl's among them."""
    found: list[Manifest] = []
    for path in paths:
        for manifest in load(path):
            found += manifest["items"] if manifest.get("kind") == "List" else [manifest]
    return found


def as_json(plan: Plan) -> str:
    """Write a plan for machines."""
    steps = [{to_camel(name): value for name, value in kube.prune(asdict(step)).items()} for step in plan.steps]
    return json.dumps({**asdict(plan), "counts": plan.counts(), "steps": steps}, indent=2) + "\n"


def as_table(plan: Plan) -> str:
    """Write a plan for the eye."""
    rows = [("WAVE", "CLUSTER", "ACTION", "CACHE", "ENGINES", "AGENTS", "WHAT")]
    rows += [
        (
            f"{step.wave}{' canary' if step.canary else ''}" if step.wave else "-",
            step.cluster,
            step.action,
            "cold" if step.cold else "kept" if step.wave and step.action == "Change" else "-",
            f"{step.engines} roll" if step.rolls_engines else str(step.engines),
            step.agents or "-",
            what(step),
        )
        for step in plan.steps
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    head = f"{plan.subject}{f', revision {plan.revision}' if plan.revision else ''}: {summary(plan)}"
    return "\n".join([head, *(f"! {note}" for note in plan.notes), "", *lines]) + "\n"


def summary(plan: Plan) -> str:
    """Say in a line how much happens."""
    counts = plan.counts()
    return (
        f"{counts['change']} of {counts['clusters']} clusters change; waves: {counts['waves']}, cold caches: "
        f"{counts['cold']}, engines that roll: {counts['enginesRoll']}"
    )


def what(step: Step) -> str:
    """Say in a line what changes of a tier."""
    shown = [f"{path}: {_short(old)} -> {_short(new)}" for path, (old, new) in step.fields.items()]
    return step.why or "; ".join(shown) or ("a new tier" if step.action == "Create" else "")


def _short(value: Any) -> str:
    return "(none)" if value is None else kube.compact(value) if isinstance(value, dict | list) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Plan a manifest; returns 3 where it would be refused."""
    parser = argparse.ArgumentParser(prog="python -m function.plan", description=__doc__)
    parser.add_argument("subject", type=Path, help="the KVOffloadFleet or KVOffloadTier that is to be applied")
    parser.add_argument("-e", "--existing", type=Path, action="append", default=[], help="what is there; repeatable")
    parser.add_argument("-o", "--output", choices=("table", "json", "html"), default="table", help="table by default")
    args = parser.parse_args(argv)
    try:
        plan = of(load(args.subject)[0], read(args.existing))
    except Refused as e:
        sys.stderr.write(f"refused: {e}\n")
        return _REFUSED
    except (OSError, yaml.YAMLError, ValueError, KeyError, IndexError) as e:
        parser.error(f"{type(e).__name__}: {e}")
    if args.output == "html":
        sys.stdout.write(picture.page(plan, summary(plan)))
    else:
        sys.stdout.write(as_json(plan) if args.output == "json" else as_table(plan))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
