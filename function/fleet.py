"""Composes a KVOffloadFleet: match clusters -> decide who changes -> deliver tiers -> report.

Each cluster has a KVOffloadTier of its own, which is observed as a composed resource; a tier that is not to change now
is desired as it is. `rollout` decides who changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, changes, kube, releases, resolve, rollout, status, tier, usage
from function.api.fleet import FleetSpec, canonical
from function.api.tier import TierSpec
from function.backends.base import Site, Tier
from function.changes import Change
from function.cluster import MODELPLANE
from function.cluster import View as ClusterView
from function.conditions import FALSE, TRUE, UNKNOWN, Condition, Conditions

KIND = "KVOffloadFleet"
CHILD = "KVOffloadTier"

ACCEPTED = "Accepted"
CLUSTERS_MATCHED = "ClustersMatched"
TIERS_READY = "TiersReady"
ROLLED_OUT = "RolledOut"
# Warnings: True is what somebody should look at.
NAME_TAKEN = "NameTaken"
CLUSTER_MISSING = "ClusterMissing"
TIER_LEAVING = "TierLeaving"

VOCABULARY: Mapping[str, Condition] = {
    **dict.fromkeys(
        (ACCEPTED, CLUSTERS_MATCHED, TIERS_READY, ROLLED_OUT),
        Condition(UNKNOWN, "Waiting", "Not known before the conditions above are True"),
    ),
    **dict.fromkeys((NAME_TAKEN, CLUSTER_MISSING, TIER_LEAVING), Condition(FALSE, "Nothing", "Nothing to warn of")),
}

CLUSTERS = "clusters"
_KEY = "tier-"
# How many clusters a message names, and how many status lists with a reason of so many characters.
_NAMED, _LISTED, _LONGEST = 3, 20, 200
# Crossplane receives no response of 4 MiB.
_LARGEST = 4 * 1024 * 1024 - 64 * 1024
# What of status stays as it was where nothing may change.
_CARRIED = (
    *("revision", "release", "clusters", "updated", "ready", "waiting", "failed", "attachments"),
    *("notWell", "notListed"),
)
# What a tier says of itself, the causes before what follows from them.
_STATES = (
    tier.ACCEPTED,
    tier.CLUSTER_REACHABLE,
    tier.CREDENTIALS_RESOLVED,
    tier.CONTROL_PLANE_READY,
    tier.AGENTS_READY,
    tier.ROLLED_OUT,
)
# What time alone does not mend.
_FAILS = frozenset({tier.ACCEPTED, tier.CLUSTER_REACHABLE, tier.CREDENTIALS_RESOLVED})


class TooLarge(kube.Malformed):
    """A fleet of more clusters than one response can have tiers for."""


def compose(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Compose a KVOffloadFleet; see Composer."""
    Composer(req, rsp).compose()


def read(struct: structpb.Struct) -> tuple[FleetSpec, str]:
    """Read a KVOffloadFleet.

    Args:
        struct: The composite.

    Returns:
        Its spec, and the release that all its tiers have: its spec's, else the latched one, else the newest.

    Raises:
        api.Invalid: its spec is wrong, or that of a tier without overrides would be.
    """
    spec = api.parse(FleetSpec, kube.plain(kube.sub(struct, "spec") or structpb.Struct()))
    release = tier.release(struct, spec.release).name
    hicache = spec.tier((), release).hicache
    behind = hicache.l3.tier_ref if hicache and hicache.l3 else None
    if behind and behind.name == kube.text(struct, "metadata", "name"):
        raise api.Invalid(
            f"spec.template.spec.hicache.l3.tierRef.name (is {behind.name!r}) names this very fleet: name one of "
            "backend Mooncake, Nixl or AIBrix"
        )
    return spec, release


@dataclass(frozen=True)
class Form:
    """A tier's spec without its cluster, as it is read and as it is sent."""

    spec: TierSpec
    sent: structpb.Struct
    revision: str

    @classmethod
    def of(cls, spec: TierSpec) -> "Form":
        """Write a spec in its one form."""
        plain = canonical(spec)
        sent = structpb.Struct()
        kube.write(plain, to=sent)
        return cls(spec, sent, kube.digest(plain)[:12])


@dataclass(frozen=True)
class Child:
    """A fleet's tier, as it is observed.

    `applied` is the fleet's revision of it, `count` the number of changes up to that, `settled` whether it was ready
    with that since, and `ready` whether it is; `change` is what the change cost, `before` how the tier was then.
    """

    observed: structpb.Struct
    applied: str
    count: int
    settled: bool
    ready: bool
    change: Change
    before: str
    in_use: bool

    @classmethod
    def of(cls, observed: structpb.Struct) -> "Child":
        """Look at a tier."""
        mark = kube.text(observed, "metadata", "annotations", kube.ANNOTATION_REVISION)
        applied, _, count = mark.partition(".")
        return cls(
            observed,
            applied or "unknown",
            int(count) if count.isdecimal() else 0,
            settled=bool(mark) and kube.text(observed, "status", "settledRevision") == mark,
            ready=kube.condition(observed, "Ready", current=True)[0] == TRUE,
            change=Change.read(kube.text(observed, "metadata", "annotations", kube.ANNOTATION_CHANGE)),
            before=kube.text(observed, "metadata", "annotations", kube.ANNOTATION_BEFORE) or rollout.READY,
            in_use=usage.in_use(observed),
        )

    @property
    def mark(self) -> str:
        """Its revision as its annotation has it, by which one and the same is told from itself at another time."""
        return f"{self.applied}.{self.count}"

    @property
    def now(self) -> str:
        """How it is before another change: away for the last one's sake, it counts as ready until it was."""
        away = not self.settled and self.before == rollout.READY
        # Of whatever spec: what Crossplane itself writes into it makes nobody less ready.
        ready = kube.condition(self.observed, "Ready")[0] == TRUE
        return rollout.READY if ready or away else rollout.NOT_READY

    @property
    def ails(self) -> tuple[bool, str]:
        """What keeps it from being ready: whether somebody has to act, and what it says."""
        synced, _, why = kube.condition(self.observed, "Synced", current=True)
        if synced == FALSE:
            return True, f"Synced: {why}"
        for type_ in _STATES:
            found, reason, message = kube.condition(self.observed, type_, current=True)
            if found not in (TRUE, ""):
                return type_ in _FAILS and found == FALSE, f"{type_} ({reason}): {message}"
        return False, "it has not said yet"


@dataclass
class Place:
    """A selected cluster, and what is there of the fleet's.

    `form` is what its tier should be. `why` says why it is left out, for now or until somebody acts (`failed`).
    """

    cluster: ClusterView
    canary: bool
    form: Form
    child: Child | None = None
    why: str = ""
    failed: bool = False
    change: Change = changes.NONE
    member: rollout.Member | None = None


@dataclass(frozen=True)
class Ail:
    """What ails a cluster's tier, and whether that makes the change to it a failure."""

    reason: str
    message: str
    failed: bool = False


@dataclass
class Report:
    """What is said of the clusters: counts, and who is not well, by name."""

    updated: int = 0
    ready: int = 0
    failed: int = 0
    ails: dict[str, Ail] = field(default_factory=dict)


class Composer:
    """One run over one KVOffloadFleet."""

    def __init__(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
        """Look at the composite; raises Malformed for one without a name."""
        self.req, self.rsp = req, rsp
        self.xr = req.observed.composite.resource
        self.name = kube.required_text(self.xr, "metadata", "name")
        self.namespace = kube.text(self.xr, "metadata", "namespace") or "default"
        self.conditions = Conditions(VOCABULARY)
        self.children = {
            key.removeprefix(_KEY): Child.of(observed.resource)
            for key, observed in sorted(req.observed.resources.items())
            if key.startswith(_KEY) and kube.text(observed.resource, "kind") == CHILD
        }
        # Forms by which overrides a cluster has, and of what is observed by its bytes.
        self.forms: dict[tuple[int, ...], Form] = {}
        self.held: dict[bytes, Form | None] = {}
        self.costs: dict[tuple[str, str, int | None], Change] = {}
        # Crossplane names three of those that the API server has refused in the pass before.
        synced, _, unsynced = kube.condition(self.xr, "Synced")
        self.refused = unsynced if synced == FALSE and unsynced.startswith("Unsynced resources: ") else ""

    def compose(self) -> None:
        """Compose, and report whatever came of it."""
        spec, release = self.accept()
        places = self.match(spec, release) if spec else None
        if spec is None or places is None:
            for cluster, child in self.children.items():
                self.keep(cluster, child)
            self.guard()
            self.finish(status.carried(self.req, _CARRIED), ready=False)
            return
        members = self.members(places)
        decision = rollout.decide(members, self.limits(spec, release, len(members)))
        self.deliver(places, decision)
        self.guard()
        self.report(spec, release, places, decision)

    def accept(self) -> tuple[FleetSpec | None, str]:
        """Read the spec, and which release its tiers have; a wrong one changes nothing."""
        try:
            spec, release = read(self.xr)
        except api.Invalid as e:
            self.conditions.set(ACCEPTED, FALSE, "InvalidSpec", f"{e}; nothing is changed", warn=True)
            return None, ""
        self.conditions.set(ACCEPTED, TRUE, "Accepted", "The spec can be composed")
        return spec, release

    # --- match ------------------------------------------------------------------------------------------------

    def match(self, spec: FleetSpec, release: str) -> dict[str, Place] | None:
        """Find the clusters that get a tier, by name; None where nothing may change now.

        What is not among them, and has a tier, is looked up by name: it may have left, or only not have been seen.
        """
        labels = spec.cluster_selector.match_labels
        found = resolve.require_all(self.req, self.rsp, CLUSTERS, MODELPLANE, "InferenceCluster", labels)
        if found is None:
            self.conditions.set(CLUSTERS_MATCHED, UNKNOWN, "Waiting", "InferenceClusters are not read yet")
            return None
        there = {kube.text(c, "metadata", "name"): c for c in found}
        for name in self.children:
            if name not in there:
                looked = ClusterView.require(self.req, self.rsp, name, f"cluster {name}").found
                if looked.resource is not None:
                    there[name] = looked.resource
        try:
            places = self.select(spec, release, there)
        except api.Invalid as e:
            self.conditions.set(ACCEPTED, FALSE, "InvalidOverride", f"{e}; nothing is changed", warn=True)
            return None
        if not places:
            kept = "; its tiers stay as they are, delete the fleet to remove them" if self.children else ""
            shown = ", ".join(f"{k}={v}" for k, v in labels.items()) or "any labels"
            message = f"No InferenceCluster has {shown}{kept}"
            self.conditions.set(CLUSTERS_MATCHED, FALSE, "NoClusters", message, warn=True)
            return None
        self.conditions.set(CLUSTERS_MATCHED, TRUE, "Matched", f"{_count(len(places), 'cluster')} selected")
        self.leave_out(places)
        self.part(spec, places, there)
        return places

    def select(self, spec: FleetSpec, release: str, there: Mapping[str, structpb.Struct]) -> dict[str, Place]:
        """Give those of the clusters that are selected, by name, with what their tiers should be; raises Invalid."""
        places = {}
        for name, cluster in sorted(there.items()):
            labels = _labels(cluster)
            if spec.cluster_selector.matches(labels) and not _ends(cluster):
                view = ClusterView(name, resolve.Found(resolve.State.PRESENT, cluster))
                form, canary = self.form(spec, release, labels), spec.rollout.is_canary(labels)
                places[name] = Place(view, canary, form, self.children.get(name))
        return places

    def form(self, spec: FleetSpec, release: str, labels: Mapping[str, str]) -> Form:
        """Give what the tier of a cluster with these labels should be; raises Invalid."""
        overrides = spec.overridden_by(labels)
        if overrides not in self.forms:
            self.forms[overrides] = Form.of(spec.tier(overrides, release))
        return self.forms[overrides]

    def leave_out(self, places: Mapping[str, Place]) -> None:
        """Leave out clusters that cannot have a tier now: a name that is taken is never taken over."""
        names: dict[str, str] = {}
        taken = []
        uid = kube.text(self.xr, "metadata", "uid")
        for cluster, place in places.items():
            name = kube.tier_of_fleet(self.name, cluster)
            first = names.setdefault(name, cluster)
            if place.child is not None:
                continue
            ref = resolve.Reference(MODELPLANE, CHILD, name, self.namespace)
            found = resolve.require(self.req, self.rsp, f"tier {cluster}", ref)
            owners = kube.objects(found.resource, "metadata", "ownerReferences")
            if first != cluster:
                place.why, place.failed = f"NameTaken: its tier would be {name}, as that of {first}", True
            elif found.present and not (uid and any(kube.text(o, "uid") == uid for o in owners)):
                place.why, place.failed = f"NameTaken: {ref} is there, and not this fleet's; delete or rename it", True
            elif found.state is resolve.State.UNRESOLVED:
                place.why = f"{ref} is not looked up yet"
            elif not place.cluster.provider_config:
                place.why = f"InferenceCluster {cluster} has no status.providerConfigRef yet"
            if place.failed:
                taken.append(f"{cluster} ({name})")
        if taken:
            message = f"No tier for {_some(taken)}: the name of it is taken by another tier, which stays as it is"
            self.conditions.set(NAME_TAKEN, TRUE, "NameTaken", message, warn=True)

    def part(self, spec: FleetSpec, places: dict[str, Place], there: Mapping[str, structpb.Struct]) -> None:
        """Part with clusters that have left, and keep what is there of those that are not seen."""
        missing, leaving = [], []
        for cluster, child in self.children.items():
            if cluster in places:
                continue
            if cluster not in there:
                self.keep(cluster, child)
                missing.append(cluster)
            elif child.in_use or spec.rollout.paused:
                self.keep(cluster, child)
                leaving.append(cluster)
        if missing:
            message = (
                f"InferenceCluster {_some(missing)} does not exist; its tier stays as it is. If it is gone for good, "
                "delete the tier"
            )
            self.conditions.set(CLUSTER_MISSING, TRUE, "ClusterNotFound", message, warn=True)
        if leaving:
            why = "the rollout is paused" if spec.rollout.paused else "engines are attached to it"
            message = f"{_some(leaving)} no longer selected; the tier stays while {why}"
            self.conditions.set(TIER_LEAVING, TRUE, "Paused" if spec.rollout.paused else "InUse", message, warn=True)

    # --- decide -----------------------------------------------------------------------------------------------

    def members(self, places: Mapping[str, Place]) -> list[rollout.Member]:
        """See the clusters that count as a rollout does, and note of each what its change costs."""
        members = []
        for cluster, place in places.items():
            if place.why:
                continue
            child, target = place.child, place.form.revision
            if child and child.applied != target:
                place.change = self.cost(child, place)
            place.member = rollout.Member(
                cluster,
                target,
                applied=child.applied if child else "",
                settled=bool(child and child.settled),
                ready=bool(child and child.ready),
                before=child.before if child else rollout.NEW,
                canary=place.canary,
                cold=place.change.cold,
                was_cold=bool(child and child.change.cold),
            )
            members.append(place.member)
        # Nobody says yet that its cluster is gone for good, so it may come back, and still be away.
        members += [
            rollout.Member(cluster, child.applied, child.applied, child.settled, child.ready, child.before)
            for cluster, child in self.children.items()
            if cluster not in places and self.unseen(cluster, child)
        ]
        return members

    def limits(self, spec: FleetSpec, release: str, members: int) -> rollout.Limits:
        """Say how much may be done at once, of so many clusters."""
        return rollout.Limits(
            spec.rollout.most(members),
            spec.rollout.max_cold_clusters,
            starts=rollout.AT_ONCE,
            approved=spec.rollout.approved_revision in (None, self.revision(spec, release)),
            paused=spec.rollout.paused,
        )

    def unseen(self, cluster: str, child: Child) -> bool:
        """Whether a cluster is not there, and its tier has not found the same."""
        key = f"cluster {cluster}"
        absent = key in self.req.required_resources and not self.req.required_resources[key].items
        return absent and kube.condition(child.observed, tier.CLUSTER_REACHABLE)[1] != "ClusterNotFound"

    def cost(self, child: Child, place: Place) -> Change:
        """Say what it costs to change a tier to what it should be, and to what it has not come yet."""
        old, new = self.form_of(child), place.form
        gpus = kube.integer(child.observed, "status", "memory", "gpusPerNode") or place.cluster.gpus_per_node
        if old is None:
            return Change(cold=True, engines=True)
        key = (old.revision, new.revision, gpus)
        if key not in self.costs:
            before, after = (
                Tier(self.namespace, self.name, f.spec, releases.RELEASES.get(f.spec.release or "", releases.NEWEST))
                for f in (old, new)
            )
            self.costs[key] = changes.between(before, after, Site(gpus))
        return self.costs[key] if child.settled else self.costs[key].after(child.change)

    def form_of(self, child: Child) -> Form | None:
        """Read the spec that a tier has; None where this function cannot."""
        held = _spec(child)
        key = held.SerializeToString(deterministic=True)
        if key not in self.held:
            try:
                spec = api.parse(TierSpec, {**kube.plain(held), "inferenceClusterRef": {"name": "-"}})
                self.held[key] = Form.of(spec)
            except api.Invalid:
                self.held[key] = None
        return self.held[key]

    # --- deliver ----------------------------------------------------------------------------------------------

    def deliver(self, places: Mapping[str, Place], decision: rollout.Decision) -> None:
        """Desire each tier as it should be, where it is so or starts now; else as it is."""
        for cluster, place in places.items():
            member, child = place.member, place.child
            if member and cluster in decision.start:
                mark = f"{member.target}.{child.count + 1 if child else 1}"
                self.desire(cluster, place.form.sent, mark, place.change, child.now if child else rollout.NEW)
            elif member and member.started and child:
                self.desire(cluster, place.form.sent, child.mark, child.change, child.before)
            elif child:
                self.keep(cluster, child)

    def keep(self, cluster: str, child: Child) -> None:
        """Desire a tier as it is."""
        form = self.form_of(child)
        self.desire(cluster, form.sent if form else _spec(child), child.mark, child.change, child.before)

    def desire(self, cluster: str, spec: structpb.Struct, mark: str, change: Change, before: str) -> None:
        """Desire a cluster's tier, which is ready where it is observed to be."""
        target = self.rsp.desired.resources[f"{_KEY}{cluster}"]
        target.Clear()
        child = self.children.get(cluster)
        if child and child.ready:
            target.ready = fnv1.READY_TRUE
        labels = {kube.LABEL_FLEET: kube.label(self.name), kube.LABEL_CLUSTER: kube.label(cluster)}
        metadata = {
            "name": kube.tier_of_fleet(self.name, cluster),
            "labels": {**labels, **kube.MANAGED_BY},
            "annotations": {
                kube.ANNOTATION_REVISION: mark,
                kube.ANNOTATION_CHANGE: str(change),
                kube.ANNOTATION_BEFORE: before,
            },
        }
        kube.write({"apiVersion": MODELPLANE, "kind": CHILD, "metadata": metadata}, to=target.resource)
        desired = target.resource.get_or_create_struct("spec")
        desired.CopyFrom(spec)
        desired.get_or_create_struct("inferenceClusterRef")["name"] = cluster

    def guard(self) -> None:
        """Keep the fleet from being deleted while engines use its tiers, which would wait for them one by one."""
        if any(child.in_use for child in self.children.values()):
            fleet = {"apiVersion": MODELPLANE, "kind": KIND, "name": self.name}
            usage.protect(self.rsp, fleet, self.name, "An engine on one of its clusters")

    # --- report -----------------------------------------------------------------------------------------------

    def report(self, spec: FleetSpec, release: str, places: Mapping[str, Place], decision: rollout.Decision) -> None:
        """Say how far it is, and who is not well."""
        found = Report()
        for cluster, place in places.items():
            self.look_at(cluster, place, found)
        total = len(places)
        revision = self.revision(spec, release)
        self.report_ready(found, total)
        self.report_rollout(found, places, decision, revision)
        attached = sum(kube.integer(c.observed, "status", "attachments") for c in self.children.values())
        listed = sorted(found.ails.items(), key=lambda ail: (not ail[1].failed, ail[0]))
        self.finish(
            {
                "revision": revision,
                "release": release,
                "clusters": total,
                "updated": found.updated,
                "ready": found.ready,
                "waiting": total - found.updated - found.failed,
                "failed": found.failed,
                "attachments": attached,
                "notWell": [
                    {"cluster": cluster, "reason": ail.reason, "message": ail.message[:_LONGEST]}
                    for cluster, ail in listed[:_LISTED]
                ],
                "notListed": max(0, len(listed) - _LISTED) or None,
            },
            ready=found.ready == total,
        )

    def look_at(self, cluster: str, place: Place, found: Report) -> None:
        """Count a cluster, and say what ails it."""
        member, child = place.member, place.child
        if member and member.done:
            found.updated += 1
        elif self.is_refused(cluster):
            message = f"the API server refuses its tier; `kubectl describe` of the fleet shows why ({self.refused})"
            found.ails[cluster] = Ail("Refused", message, failed=True)
        elif place.why:
            found.ails[cluster] = Ail("NameTaken" if place.failed else "Waiting", place.why, failed=place.failed)
        if child and child.ready:
            found.ready += 1
        elif child and cluster not in found.ails:
            acts, message = child.ails
            updating = member is not None and member.started and not member.settled
            reason = "Failed" if acts and updating else "Updating" if updating else "NotReady"
            found.ails[cluster] = Ail(reason, message, failed=reason == "Failed")
        found.failed += cluster in found.ails and found.ails[cluster].failed

    def is_refused(self, cluster: str) -> bool:
        """Whether the API server has refused its tier in the pass before."""
        names = self.refused.removeprefix("Unsynced resources: ").replace(", and ", ", ").split(", ")
        return f"{_KEY}{cluster}" in names

    def report_ready(self, found: Report, total: int) -> None:
        """Say whether all clusters have a tier that is ready."""
        message = f"{found.ready} of {_count(total, 'tier')} are ready"
        done = found.ready == total
        if not done and found.ails:
            message += f"; not those of {_some(sorted(found.ails))}"
        self.conditions.set(TIERS_READY, TRUE if done else FALSE, "AllReady" if done else "NotReady", message)

    def report_rollout(
        self, found: Report, places: Mapping[str, Place], decision: rollout.Decision, revision: str
    ) -> None:
        """Say how far the revision has come, and what keeps it."""
        total = len(places)
        message = f"{found.updated} of {_count(total, 'cluster')} run revision {revision}"
        now = [m.cluster for m in decision.wave if not m.done]
        failed = [cluster for cluster in now if cluster in found.ails and found.ails[cluster].failed]
        waiting = total - found.updated - len(now)
        others = f"; {_count(waiting, 'other cluster')} wait" if waiting else ""
        if failed:
            ail = found.ails[failed[0]]
            message += (
                f"; {_some(failed)} failed: {ail.message[:_LONGEST]}{others}. Change the template, or the cluster's "
                "labels so that it is not selected"
            )
            self.conditions.set(ROLLED_OUT, FALSE, "Halted", message, warn=True)
        elif decision.held == "Paused":
            self.conditions.set(ROLLED_OUT, FALSE, "Paused", f"{message}; spec.rollout.paused is true")
        elif decision.held:
            message += f"; to go on with {_some(now)}, set spec.rollout.approvedRevision to {revision}"
            self.conditions.set(ROLLED_OUT, FALSE, decision.held, message)
        elif now:
            self.conditions.set(ROLLED_OUT, FALSE, "Progressing", f"{message}; now: {_some(now)}{others}")
        elif found.updated < total:
            self.conditions.set(ROLLED_OUT, FALSE, "LeftOut", f"{message}; left out: {_some(sorted(found.ails))}")
        else:
            self.conditions.set(ROLLED_OUT, TRUE, "RolledOut", message)

    def revision(self, spec: FleetSpec, release: str) -> str:
        """Hash what the clusters get: the template, and how they differ from it."""
        overrides = [o.model_dump(mode="json") for o in spec.overrides]
        return kube.digest([canonical(spec.tier((), release)), overrides])[:12]

    def finish(self, found: Mapping[str, Any], *, ready: bool) -> None:
        """Write conditions, status and readiness; raises TooLarge."""
        self.conditions.write(self.req, self.rsp)
        status.write(self.req, self.rsp, dict(found), ready=ready)
        size = self.rsp.ByteSize()
        if size > _LARGEST:
            raise TooLarge(
                f"the tiers of {_count(len(self.rsp.desired.resources), 'cluster')} come to {size / 2**20:.1f} MiB, "
                "and Crossplane receives no more than 4 MiB at once; make several fleets, each of fewer clusters by "
                "spec.clusterSelector"
            )


def _labels(cluster: structpb.Struct) -> Mapping[str, str]:
    labels = kube.sub(cluster, "metadata", "labels")
    return {name: value.string_value for name, value in labels.fields.items()} if labels else {}


def _ends(cluster: structpb.Struct) -> bool:
    return bool(kube.text(cluster, "metadata", "deletionTimestamp"))


def _spec(child: Child) -> structpb.Struct:
    """Give a tier's spec without its cluster, and without what Crossplane keeps in it."""
    found = structpb.Struct()
    if held := kube.sub(child.observed, "spec"):
        kube.copy(held, to=found)
    for name in ("crossplane", "inferenceClusterRef"):
        found.fields.pop(name, None)
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    """Name a few, and count the rest."""
    listed = list(names)
    rest = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
