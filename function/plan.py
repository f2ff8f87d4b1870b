"""Says what a KVOffloadFleet or a KVOffloadTier would change, before it is applied: where, in which wave, at what cost.

`python -m function.plan fleet.yaml -e there.yaml` prints a table; `-h` says the rest. What is there comes from files,
as `kubectl get kvoffloadfleets,kvoffloadtiers,inferenceclusters -A -o yaml` writes them. It goes through the passes of
the function itself, with every tier that changes becoming ready.
"""

import argparse
import copy
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from crossplane.function import resource
from pydantic.alias_generators import to_camel

from function import api, changes, kube, picture, tier
from function.api.fleet import canonical
from function.backends.base import Site
from function.changes import Change
from function.cluster import View as ClusterView
from function.kube import Manifest
from function.render import Rendered, load, render
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
    return _Fleet(now, others).plan() if kind == FLEET else _tier(now, before, others)


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
    cluster = next((m for m in there if m["kind"] == CLUSTER and m["metadata"]["name"] == _where(new)), None)
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


class _Fleet:
    """A fleet that goes through its passes in memory."""

    def __init__(self, fleet: Manifest, there: Sequence[Manifest]) -> None:
        self.fleet = copy.deepcopy(fleet)
        self.rollout = self.fleet["spec"].setdefault("rollout", {})
        # What a person holds, a person lets go: the plan goes on, and says so.
        self.paused = self.rollout.pop("paused", False)
        self.approved = self.rollout.pop("approvedRevision", None)
        self.there = there
        mine = [m for m in there if m["kind"] == TIER and self._owns(m)]
        self.tiers = {_where(m): self._marked(m) for m in mine}
        self.before = copy.deepcopy(self.tiers)

    def plan(self) -> Plan:
        """Go through passes until nothing happens any more."""
        waves: list[set[str]] = []
        while True:
            rendered = self._pass()
            desired = {_where(m): m for m in rendered.composed.values() if m["kind"] == TIER}
            started = {name for name, m in desired.items() if _mark(m) != _mark(self.tiers.get(name))}
            settled = self._take(desired)
            if started:
                waves.append(started)
            elif not settled:
                break
        steps = [self._step(name, wave + 1) for wave, started in enumerate(waves) for name in sorted(started)]
        steps = self._joined(steps)
        moved = {s.cluster for s in steps}
        left = {
            a["cluster"]: a for a in rendered.composite["status"].get("notWell", ()) if a["cluster"] not in self.tiers
        }
        steps += [self._gone(name) for name in sorted(self.before.keys() - self.tiers.keys())]
        steps += [
            Step(n, kube.tier_of_fleet(self.name, n), "LeaveOut", why=a["message"]) for n, a in sorted(left.items())
        ]
        steps += [
            Step(n, m["metadata"]["name"], "Keep", **_seen(m)) for n, m in sorted(self.tiers.items()) if n not in moved
        ]
        revision = rendered.composite["status"].get("revision", "")
        return Plan(_name(self.fleet), steps, revision, [*self._holds(revision, steps), *_notes(steps, self.there)])

    @property
    def name(self) -> str:
        """The fleet's name."""
        return str(self.fleet["metadata"]["name"])

    def _owns(self, of_tier: Manifest) -> bool:
        labels, namespace = of_tier["metadata"].get("labels", {}), of_tier["metadata"].get("namespace", "default")
        mine = self.fleet["metadata"].get("namespace", "default")
        return bool(labels.get(kube.LABEL_FLEET) == kube.label(self.name) and namespace == mine)

    def _marked(self, of_tier: Manifest) -> Manifest:
        """Give a tier as Crossplane observes it of its owner."""
        found = copy.deepcopy(of_tier)
        found["metadata"].setdefault("annotations", {})[_KEY] = f"tier-{_where(of_tier)}"
        found["metadata"]["ownerReferences"] = [{"uid": self.fleet["metadata"]["uid"]}]
        found.setdefault("status", {})
        return found

    def _pass(self) -> Rendered:
        others = [m for m in self.there if not (m["kind"] == TIER and self._owns(m))]
        rendered = render(self.fleet, [*self.tiers.values()], [*others, *self.tiers.values()])
        if rendered.fatal:
            raise Refused(rendered.results[-1]["message"])
        if not _accepted(rendered):
            raise Refused(rendered.condition("Accepted")["message"])
        if rendered.condition("ClustersMatched")["status"] != "True":
            raise Refused(rendered.condition("ClustersMatched")["message"])
        self.fleet["status"] = rendered.composite["status"]
        return rendered

    def _take(self, desired: Mapping[str, Manifest]) -> bool:
        """Let every tier become ready with what is desired; whether one was not before."""
        was = {name: m["status"].get("settledRevision") for name, m in self.tiers.items()}
        new: dict[str, Manifest] = {}
        for name, manifest in desired.items():
            before = self.tiers.get(name, {})
            status = {**before.get("status", {}), "settledRevision": _mark(manifest)}
            if _mark(manifest) != _mark(before):
                status["conditions"] = [{"type": "Ready", "status": "True"}]
            metadata = {**before.get("metadata", {}), **manifest["metadata"]}
            metadata["labels"] = {**before.get("metadata", {}).get("labels", {}), **manifest["metadata"]["labels"]}
            new[name] = self._marked({**manifest, "metadata": metadata, "status": status})
        self.tiers = new
        return was != {name: m["status"].get("settledRevision") for name, m in new.items()}

    def _step(self, name: str, wave: int) -> Step:
        return _compare(self.before.get(name), self.tiers[name], self.there, wave)

    def _joined(self, steps: Sequence[Step]) -> list[Step]:
        canary = (self.rollout.get("canary") or {}).get("matchLabels") or {}
        clusters = {m["metadata"]["name"]: m["metadata"].get("labels", {}) for m in self.there if m["kind"] == CLUSTER}
        first = {n for n, labels in clusters.items() if canary and canary.items() <= labels.items()}
        return [Step(**{**_shallow(s), "canary": s.cluster in first}) for s in steps if s.action != "Keep"]

    def _gone(self, name: str) -> Step:
        old = self.before[name]
        return Step(
            name, old["metadata"]["name"], "Remove", 1, cold=True, why="its cluster is no longer selected", **_seen(old)
        )

    def _holds(self, revision: str, steps: Sequence[Step]) -> list[str]:
        found = []
        if self.paused:
            found.append("spec.rollout.paused is true: nothing of this begins before it is false")
        if self.approved not in (None, revision) and any(s.wave and not s.canary for s in steps):
            found.append(f"who is no canary changes only once spec.rollout.approvedRevision is {revision}")
        return found


# --- what both have ---------------------------------------------------------------------------------------------------


def _shallow(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__dataclass_fields__}


def _same(one: Manifest, other: Manifest) -> bool:
    return one.get("kind") == other.get("kind") and _name(one) == _name(other)


def _name(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return f"{manifest['kind']} {metadata.get('namespace', 'default')}/{metadata['name']}"


def _where(of_tier: Manifest) -> str:
    return str(of_tier["spec"]["inferenceClusterRef"]["name"])


def _mark(of_tier: Manifest | None) -> str:
    found: str = (of_tier or {}).get("metadata", {}).get("annotations", {}).get(kube.ANNOTATION_REVISION, "")
    return found


def _accepted(rendered: Rendered) -> bool:
    return rendered.condition("Accepted")["status"] == "True"


def _notes(steps: Sequence[Step], there: Sequence[Manifest]) -> list[str]:
    known = {m["metadata"]["name"] for m in there if m["kind"] == CLUSTER}
    unknown = sorted({s.cluster for s in steps} - known)
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
