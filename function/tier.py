"""Composes a KVOffloadTier: resolve -> plan -> deliver -> report."""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, backends, kube, monitoring, releases, resolve, status, usage
from function.api.deployment import TierRef
from function.api.tier import TierSpec
from function.backends.base import (
    AGENTS,
    CONNECTOR,
    DRAWN,
    DRAWN_AT,
    Credential,
    CredentialError,
    Invalid,
    Plan,
    Site,
    Tier,
)
from function.backends.hicache import STORING
from function.cluster import MODELPLANE
from function.cluster import View as ClusterView
from function.conditions import FALSE, TRUE, UNKNOWN, Condition, Conditions
from function.delivery import Delivered, Delivery

ACCEPTED = "Accepted"
CLUSTER_REACHABLE = "ClusterReachable"
CREDENTIALS_RESOLVED = "CredentialsResolved"
CONTROL_PLANE_READY = "ControlPlaneReady"
AGENTS_AVAILABLE = "AgentsAvailable"
AGENTS_READY = "AgentsReady"
ROLLED_OUT = "RolledOut"

L3 = "l3"

# Warnings: True is what somebody should look at.
HOST_NETWORK = "HostNetworkUnprotected"
KEYS_NOT_DURABLE = "KeysNotDurable"
ETCD_FILLS_UP = "EtcdFillsUp"
INSUFFICIENT_NICS = "InsufficientNICs"
LEGACY = "LegacyBackend"

_STATES = (
    ACCEPTED,
    CLUSTER_REACHABLE,
    CREDENTIALS_RESOLVED,
    CONTROL_PLANE_READY,
    AGENTS_AVAILABLE,
    AGENTS_READY,
    ROLLED_OUT,
)
_WARNINGS = (HOST_NETWORK, KEYS_NOT_DURABLE, ETCD_FILLS_UP, INSUFFICIENT_NICS, LEGACY)
VOCABULARY: Mapping[str, Condition] = {
    **dict.fromkeys(_STATES, Condition(UNKNOWN, "Waiting", "Not known before the conditions above are True")),
    **dict.fromkeys(_WARNINGS, Condition(FALSE, "Nothing", "Nothing to warn of")),
}


def read(struct: structpb.Struct) -> Tier:
    """Read a KVOffloadTier.

    Args:
        struct: The composite, observed or required.

    Returns:
        The tier, with the release that it holds: its spec's, else the latched one, else the newest.

    Raises:
        api.Invalid: its spec is wrong.
    """
    spec = api.parse(TierSpec, kube.plain(kube.sub(struct, "spec") or structpb.Struct()))
    name = kube.text(struct, "metadata", "name")
    if spec.l3_ref and spec.l3_ref == name:
        raise api.Invalid(
            f"spec.hicache.l3.tierRef.name (is {name!r}) names this very tier: name one of backend Mooncake, Nixl or "
            "AIBrix"
        )
    namespace = kube.text(struct, "metadata", "namespace") or "default"
    gpus = kube.integer(struct, "status", "memory", "gpusPerNode") or None
    return Tier(namespace, name, spec, release(struct, spec.release), gpus, kube.text(struct, "metadata", "uid"))


def release(struct: structpb.Struct, wanted: str | None) -> releases.Release:
    """Give the release that a composite holds: the one that its spec wants, else the latched one, else the newest.

    Raises:
        api.Invalid: this function does not know the latched one.
    """
    latched = kube.text(struct, "status", "release")
    if latched and not wanted and latched not in releases.RELEASES:
        raise api.Invalid(
            f"status.release is {latched!r}, which this function does not know (it knows "
            f"{', '.join(releases.RELEASES)}): run a function version that does, or set spec.release"
        )
    return releases.RELEASES.get(wanted or latched, releases.NEWEST)


@dataclass(frozen=True)
class Unavailable:
    """Why a tier cannot be used now: the condition's reason and message.

    `waiting`: not yet known at all. `fits`: whether it might be used one day.
    """

    reason: str
    message: str
    waiting: bool = False
    fits: bool = True


def require(  # noqa: PLR0917
    req: fnv1.RunFunctionRequest,
    rsp: fnv1.RunFunctionResponse,
    ref: TierRef,
    namespace: str,
    cluster: str,
    key: str = "tier",
) -> Tier | Unavailable:
    """Require the tier that an engine names, or that the fleet has which it names.

    Args:
        req: The request.
        rsp: The response.
        ref: The tier's name, or the fleet's.
        namespace: The namespace of whoever names it.
        cluster: The engine's InferenceCluster, as far as it is known; a fleet has a tier on each of its clusters.
        key: The requirement's name.

    Returns:
        The tier, or why it cannot be used.
    """
    wanted, fix = resolve.Reference(MODELPLANE, "KVOffloadTier", ref.name, ref.namespace), ""
    if ref.of_fleet:
        fleet = f"{ref.kind} {ref.namespace}/{ref.name}"
        if not cluster:
            return Unavailable(
                "ClusterUnknown",
                f"{fleet} has a tier on each of its clusters, and nothing says on which one this engine is: set the "
                "composite's spec.clusterName or label modelplane.ai/cluster to the InferenceCluster's name, or name a "
                "KVOffloadTier",
            )
        wanted = replace(wanted, name=kube.tier_of_fleet(ref.name, cluster))
        fix = f"; {fleet} has it once it selects InferenceCluster {cluster} and the turn of that has come"
    got = _get(resolve.require(req, rsp, key, wanted), wanted, "Tier", fix)
    if isinstance(got, Unavailable):
        return got
    if got.spec.allowed_namespaces.from_ == "Same" and namespace != got.namespace:
        return Unavailable(
            "NamespaceNotAllowed",
            f"{wanted} may be named from namespace {got.namespace} only (its allowedNamespaces.from is Same)",
        )
    return got


def l3(
    req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, tier: Tier, key: str = L3
) -> Tier | Unavailable | None:
    """Require the tier that stands behind another one.

    Args:
        req: The request.
        rsp: The response.
        tier: The tier whose `spec.hicache.l3.tierRef` is followed.
        key: The requirement's name.

    Returns:
        The tier behind it, why it cannot be used, or None where there is none. A tier that itself has one behind it is
        refused, so that no chain ever closes to a cycle.
    """
    if tier.spec.l3_ref is None:
        return None
    wanted = resolve.Reference(MODELPLANE, "KVOffloadTier", tier.spec.l3_ref, tier.namespace)
    fix = "; create it, or name another tier in spec.hicache.l3.tierRef"
    behind = _get(resolve.require(req, rsp, key, wanted), wanted, "L3", fix)
    if isinstance(behind, Unavailable):
        return behind
    wrong = _mismatch(tier, behind)
    if wrong:
        reason, why = wrong
        return Unavailable(reason, f"{wanted} {why}; name another tier in spec.hicache.l3.tierRef", fits=False)
    return behind


def _get(found: resolve.Found, wanted: resolve.Reference, what: str, fix: str = "") -> Tier | Unavailable:
    """Read a required tier; `what` begins the reasons, and `fix` says what to do where it does not exist."""
    if found.state is resolve.State.UNRESOLVED:
        return Unavailable("Waiting", f"{wanted} is not read yet", waiting=True)
    if found.resource is None:
        return Unavailable(f"{what}NotFound", f"{wanted} does not exist{fix}")
    try:
        return read(found.resource)
    except api.Invalid as e:
        return Unavailable(f"{what}Invalid", f"{wanted} cannot be used: {e}")


def _mismatch(tier: Tier, behind: Tier) -> tuple[str, str] | None:
    """Say why a tier can never stand behind another one, as reason and message; None where it can."""
    cluster, namespace = tier.spec.inference_cluster_ref.name, tier.spec.target_namespace
    if behind.spec.storeless:
        return "L3NotSupported", f"has {behind.spec.storeless}, which stores nothing for it"
    if behind.spec.backend not in STORING:
        *most, last = STORING
        allowed = f"{', '.join(most)} or {last}"
        return "L3NotSupported", f"is of backend {behind.spec.backend}, and behind HiCache stands {allowed}"
    if behind.spec.inference_cluster_ref.name != cluster:
        there = behind.spec.inference_cluster_ref.name
        return "L3OnOtherCluster", f"is on InferenceCluster {there}, this tier on {cluster}"
    if behind.spec.target_namespace != namespace:
        there = behind.spec.target_namespace
        return "L3InOtherNamespace", f"is in namespace {there} of the cluster, this tier in {namespace}"
    return None


def compose(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Compose a KVOffloadTier; see Composer."""
    Composer(req, rsp).compose()


class Composer:
    """One run over one KVOffloadTier."""

    def __init__(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
        """Look at the composite; raises Malformed for one without a name."""
        self.req, self.rsp = req, rsp
        self.xr = req.observed.composite.resource
        self.name = kube.required_text(self.xr, "metadata", "name")
        self.delivery = Delivery(req, rsp, f"kvtier/{self.name}")
        self.conditions = Conditions(VOCABULARY)
        self.tier: Tier | None = None
        self.behind: Unavailable | None = None
        # Empty where everything that runs stays as it is observed.
        self.plan: Plan | None = None
        # Planned parts that stay as they are observed until a Secret is there.
        self.waiting: list[str] = []
        # None while nobody has looked.
        self.attachments: int | None = None

    def compose(self) -> None:
        """Compose, and report whatever came of it."""
        self.attachments = usage.count(self.req, self.rsp)
        self.accept()
        if self.tier:
            self.resolve_and_deliver(self.tier)
        else:
            usage.keep(self.req, self.rsp)
        if not self.plan:
            self.delivery.keep_all()
        self.report()

    def accept(self) -> None:
        """Read the spec; a wrong one changes nothing that runs."""
        try:
            self.tier = read(self.xr)
            self.conditions.set(ACCEPTED, TRUE, "Accepted", "The spec can be composed")
        except api.Invalid as e:
            self.conditions.set(ACCEPTED, FALSE, "InvalidSpec", f"{e}", warn=True)

    def resolve_and_deliver(self, tier: Tier) -> None:
        """Resolve what is required, plan, and deliver; leaves plan empty where everything stays as it is."""
        cluster = self.resolve_cluster(tier)
        provider_config = self.delivery.provider_config or cluster.provider_config
        site = Site(cluster.gpus_per_node, self.resolve_l3(tier), pools=cluster.pools)
        credentials = self.resolve_credentials(tier)
        moved = self.delivery.cluster not in ("", tier.spec.inference_cluster_ref.name)
        if moved:
            self.conditions.set(
                CLUSTER_REACHABLE,
                FALSE,
                "ClusterMoved",
                f"this tier runs on InferenceCluster {self.delivery.cluster} and stays there; "
                f"for {tier.spec.inference_cluster_ref.name} make another tier",
                warn=True,
            )
        if moved or not provider_config:
            return
        try:
            plan = self.make_plan(tier, site, credentials)
        except Invalid as e:
            if cluster.found.present:
                self.conditions.set(ACCEPTED, FALSE, "InvalidSpec", str(e), warn=True)
            return
        self.plan = plan
        for notice in plan.notices:
            self.conditions.set(notice.type, TRUE, notice.reason, notice.message, warn=True)
        held = {name: self.delivery.keep(name, cluster.name).observed for name in plan.held}
        for part in plan.parts:
            if held.get(part.name):
                self.waiting.append(part.name)
            elif held.get(part.after) is False and self.delivery.observed(part.name, cluster.name) is not None:
                self.delivery.keep(part.name, cluster.name)
                self.waiting.append(part.name)
            else:
                self.delivery.put(part, cluster.name, provider_config)
        if any(part.maker and not self.delivery.delivered[part.name].current for part in plan.parts):
            self.delivery.keep_claimed()
        self.check_cluster(cluster)
        self.check_pools(tier, plan, cluster)

    def check_pools(self, tier: Tier, plan: Plan, cluster: ClusterView) -> None:
        """Say when the cluster's pools now have other GPUs than the share of a rank was worked out for."""
        held, now = plan.memory.get("gpusPerNode"), cluster.gpus_per_node
        if held and now and now != held and not tier.spec.placement.gpus_per_node:
            self.conditions.set(
                ACCEPTED,
                TRUE,
                "GPUPoolsChanged",
                f"InferenceCluster {cluster.name} now has nodes of {now} GPUs; each rank keeps its share of {held}, "
                "since another one would restart every engine. To change it, set spec.placement.gpusPerNode",
                warn=True,
            )

    def resolve_cluster(self, tier: Tier) -> ClusterView:
        """Require the InferenceCluster, and say what is known of it."""
        cluster = ClusterView.require(self.req, self.rsp, tier.spec.inference_cluster_ref.name)
        verdict, reason, message = cluster.verdict(self.delivery.provider_config)
        self.conditions.set(CLUSTER_REACHABLE, verdict, reason, message, warn=cluster.resolved and verdict == FALSE)
        return cluster

    def resolve_credentials(self, tier: Tier) -> dict[str, Credential]:
        """Require the Secrets that have to be read, and say what is known of them; the result is by part."""
        wanted = backends.of(tier.spec).secrets(tier)
        if not wanted:
            self.conditions.set(CREDENTIALS_RESOLVED, TRUE, "NotRequired", "No Secret has to be read")
            return {}
        self.conditions.set(CREDENTIALS_RESOLVED, TRUE, "Resolved", "The password of the tier's store is drawn")
        found = {
            part: self.resolve_credential(tier, part, name) if name else self.drawn(tier, part)
            for part, name in wanted.items()
        }
        return {part: credential for part, credential in found.items() if credential}

    def resolve_credential(self, tier: Tier, part: str, name: str) -> Credential | None:
        """Require a Secret; where it cannot be read, the condition says so."""
        ref = resolve.Reference("v1", "Secret", name, tier.namespace)
        found = resolve.require(self.req, self.rsp, part, ref)
        if found.resource is None:
            absent = found.state is resolve.State.ABSENT
            copy = self.delivery.observed(part, tier.spec.inference_cluster_ref.name)
            kept = "; the copy on the cluster stays" if copy is not None else ""
            message = f"{ref} {'does not exist' if absent else 'is not read yet'}{kept}"
            self.conditions.set(
                CREDENTIALS_RESOLVED,
                FALSE if absent else UNKNOWN,
                "SecretNotFound" if absent else "Waiting",
                message,
                warn=absent,
            )
            return None
        if self.conditions.is_true(CREDENTIALS_RESOLVED):
            self.conditions.set(CREDENTIALS_RESOLVED, TRUE, "Resolved", f"{ref} is read")
        data = kube.sub(found.resource, "data")
        return Credential(
            {k: v.string_value for k, v in (data.fields.items() if data else ())},
            kube.text(found.resource, "metadata", "uid") + kube.text(found.resource, "metadata", "resourceVersion"),
        )

    def drawn(self, tier: Tier, part: str) -> Credential | None:
        """Read back what was drawn, or draw it: once, since engines and store must go on to agree."""
        observed = self.delivery.observed(part, tier.spec.inference_cluster_ref.name)
        data = kube.sub(observed, "spec", "forProvider", "manifest", "data")
        held = {k: v.string_value for k, v in data.fields.items()} if data else {}
        if held.get(DRAWN_AT):
            return Credential(held, held[DRAWN_AT])
        # What holds something else was a copy of the user's Secret, before the spec asked for a drawn one.
        if _secret_drawn(self.xr):
            fix = (
                f"kubectl patch kvoffloadtier {tier.name} -n {tier.namespace} --subresource=status --type=merge "
                '-p \'{"status":{"secretGenerated":false}}\''
            )
            self.conditions.set(
                CREDENTIALS_RESOLVED,
                FALSE,
                "PasswordLost",
                f"the Object with the drawn password is not observed. If somebody deleted it, draw another: {fix}",
                warn=True,
            )
            return None
        password, version = secrets.token_urlsafe(32), secrets.token_hex(8)
        return Credential(
            {"password": _base64(password), DRAWN_AT: _base64(version)},
            _base64(version),
        )

    def resolve_l3(self, tier: Tier) -> Tier | None:
        """Require the tier behind this one, where there is one, and say what is known of it."""
        if tier.spec.l3_ref is None:
            return None
        found = l3(self.req, self.rsp, tier)
        if not isinstance(found, Unavailable) or found.fits:
            used = {"apiVersion": MODELPLANE, "kind": "KVOffloadTier", "name": tier.spec.l3_ref}
            usage.protect(self.rsp, used, tier.name, f"KVOffloadTier {tier.ref}")
        if isinstance(found, Unavailable):
            self.behind = found
            return None
        return found

    def make_plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan with the Secrets, or, where one lacks something, as if none of them were there."""
        backend = backends.of(tier.spec)
        try:
            plan = backend.plan(tier, site, credentials)
        except CredentialError as e:
            self.conditions.set(CREDENTIALS_RESOLVED, FALSE, e.reason, str(e), warn=True)
            plan = backend.plan(tier, site, {})
        return replace(plan, parts=[*plan.parts, *monitoring.parts(tier, plan)])

    def check_cluster(self, cluster: ClusterView) -> None:
        """Say when the cluster does not take what we send, or has not answered yet."""
        if not self.conditions.is_true(CLUSTER_REACHABLE):
            return
        answer, reason, message = cluster.answers(self.delivery.delivered.values())
        self.conditions.set(CLUSTER_REACHABLE, answer, reason, message, warn=answer == FALSE)

    # --- report -----------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Write conditions, status and readiness, of what was delivered or of what was kept."""
        delivered = self.delivery.delivered
        agents = delivered.get(AGENTS)
        if self.plan or self.delivery.exists:
            self.report_control_plane()
            if self.plan.part(AGENTS) if self.plan else agents:
                self.report_agents(agents or Delivered(AGENTS))
            else:
                for type_ in (AGENTS_AVAILABLE, AGENTS_READY):
                    self.conditions.set(type_, TRUE, "NotNeeded", "This backend needs no agents as it is set")
            self.report_rolled_out(agents)
        self.mirror_l3()
        if self.plan is None:
            self.keep_warnings()
        self.conditions.write(self.req, self.rsp)
        # Parts say themselves whether they are rolled out; with OnDelete, agents of an older revision are no fault.
        ready = self.plan is not None and all(self.conditions.is_true(t) for t in _STATES if t != ROLLED_OUT)
        ready = ready and all(d.ready for d in delivered.values())
        status.write(self.req, self.rsp, {**self.status(agents), **self.settled(ready=ready)}, ready=ready)

    def settled(self, *, ready: bool) -> dict[str, Any]:
        """Say with which revision of its fleet this tier was last ready and rolled out.

        A fleet reads it to tell a tier that its change has broken from one that something else did.
        """
        if ready and self.conditions.is_true(ROLLED_OUT):
            return {"settledRevision": kube.text(self.xr, "metadata", "annotations", kube.ANNOTATION_REVISION) or None}
        return status.carried(self.req, ["settledRevision"])

    def keep_warnings(self) -> None:
        """Say again what was warned of: it holds for what is kept."""
        for type_ in _WARNINGS:
            held, reason, message = kube.condition(self.xr, type_)
            if held == TRUE:
                self.conditions.set(type_, held, reason, message)

    def control_plane(self) -> list[Delivered]:
        """Give the tier's Deployments and StatefulSets, as the cluster last showed them."""
        return [d for d in self.delivery.delivered.values() if d.kind in ("Deployment", "StatefulSet")]

    def members(self, workload: Delivered) -> tuple[int, int]:
        """How many pods of a workload of the control plane are ready, and how many there should be."""
        planned = self.plan.part(workload.name) if self.plan else None
        wanted = planned.manifest.get("spec", {}).get("replicas", 0) if planned else 0
        remote = workload.remote
        return kube.integer(remote, "status", "readyReplicas"), wanted or kube.integer(remote, "spec", "replicas")

    def report_control_plane(self) -> None:
        """Say how many members of the control plane are ready."""
        members = self.control_plane()
        if not members:
            self.conditions.set(CONTROL_PLANE_READY, TRUE, "NotNeeded", "This backend needs no control plane")
            return
        # Nobody has said yet how many there are of what others make.
        counted = [d for d in members if any(self.members(d))]
        counts = ", ".join(f"{d.name} {'{}/{}'.format(*self.members(d))}" for d in counted)
        if missing := next((d.missing for d in members if d.missing), ""):
            self.conditions.set(CONTROL_PLANE_READY, FALSE, "NotMade", missing)
        elif all(d.ready and _all_ready(self.members(d)) for d in members):
            self.conditions.set(CONTROL_PLANE_READY, TRUE, "Ready", counts)
        elif all(d.ready for d in members):
            message = f"{counts}; the others start beside engines"
            self.conditions.set(CONTROL_PLANE_READY, TRUE, "WaitsForEngines", message)
        elif any(kube.sub(d.remote, "status") is None for d in members):
            self.conditions.set(CONTROL_PLANE_READY, FALSE, "Creating", f"Not all have reported yet: {counts}")
        else:
            behind = [d.name for d in members if not d.ready and d.remote is not None and _all_ready(self.members(d))]
            rolling = f"; not all of {', '.join(behind)} runs this spec yet" if behind else ""
            self.conditions.set(CONTROL_PLANE_READY, FALSE, "NotReady", counts + rolling)

    def mirror_l3(self) -> None:
        """Let this tier be no better than the one behind it."""
        if self.tier is None or self.tier.spec.l3_ref is None:
            return
        if self.behind:
            unknown = self.behind.waiting
            self.conditions.set(
                CONTROL_PLANE_READY,
                UNKNOWN if unknown else FALSE,
                self.behind.reason,
                self.behind.message,
                warn=not unknown,
            )
            return
        there = self.req.required_resources[L3].items[0].resource
        name = f"KVOffloadTier {self.tier.namespace}/{self.tier.spec.l3_ref}"
        for type_ in (CREDENTIALS_RESOLVED, CONTROL_PLANE_READY, AGENTS_AVAILABLE, AGENTS_READY, *_WARNINGS):
            found, reason, message = kube.condition(there, type_)
            if found:
                self.conditions.set(type_, found, reason, f"{name}: {message}")
            elif type_ not in _WARNINGS:
                self.conditions.set(type_, UNKNOWN, "Waiting", f"{name} has not said yet")

    def report_agents(self, agents: Delivered) -> None:
        """Say how many agents there are, from the DaemonSet as the cluster last showed it."""
        wanted, ready = _counts(agents)
        if agents.remote is None or kube.sub(agents.remote, "status") is None:
            for type_ in (AGENTS_AVAILABLE, AGENTS_READY):
                self.conditions.set(type_, FALSE, "Creating", "The agents' DaemonSet has not reported yet")
        elif wanted == 0 and agents.ready:
            for type_ in (AGENTS_AVAILABLE, AGENTS_READY):
                self.conditions.set(
                    type_, TRUE, "NoNodes", "No node matches spec.placement; agents start when one joins"
                )
        else:
            counts = f"{ready} of {wanted} agents are ready"
            available = ready > 0
            self.conditions.set(
                AGENTS_AVAILABLE, TRUE if available else FALSE, "Available" if available else "NoneReady", counts
            )
            done = agents.ready and ready == wanted
            counts += "" if done or ready < wanted else "; not all run this spec yet"
            self.conditions.set(AGENTS_READY, TRUE if done else FALSE, "AllReady" if done else "Rolling", counts)

    def report_rolled_out(self, agents: Delivered | None) -> None:
        """Say whether the cluster holds what this spec asks for, down to the last agent."""
        behind = sorted(d.name for d in self.delivery.delivered.values() if not d.current)
        wanted, updated = (_counts(agents)[0], _updated(agents)) if agents else (0, 0)
        if self.plan is None:
            self.conditions.set(ROLLED_OUT, FALSE, "Held", "What runs stays as it is; another condition says why")
        elif behind:
            message = f"The cluster does not show these yet: {', '.join(behind)}"
            self.conditions.set(ROLLED_OUT, FALSE, "Applying", message)
        elif self.waiting:
            message = f"These stay as they are until a Secret is there: {', '.join(sorted(self.waiting))}"
            self.conditions.set(ROLLED_OUT, FALSE, "Held", message)
        elif updated < wanted:
            self.conditions.set(ROLLED_OUT, FALSE, "Rolling", f"{updated} of {wanted} agents run the newest revision")
        else:
            self.conditions.set(ROLLED_OUT, TRUE, "RolledOut", "The cluster shows what this spec asks for")

    def status(self, agents: Delivered | None) -> dict[str, Any]:
        """Say what was found; what is not known now stays as it was."""
        tier, plan = self.tier, self.plan
        found: dict[str, Any] = {"attachments": self.attachments}
        if self.attachments is None:
            found = status.carried(self.req, ["attachments"])
        if agents and kube.sub(agents.remote, "status") is not None:
            wanted, ready = _counts(agents)
            found["agents"] = f"{ready}/{wanted}"
        if plan is None or tier is None:
            names = ("revision", "release", "agents", "controlPlane", "connector", "memory", "secretGenerated")
            return {**status.carried(self.req, names), **found}
        connector = plan.part(CONNECTOR)
        members = [self.members(d) for d in self.control_plane()]
        drawn = [part for part, name in backends.of(tier.spec).secrets(tier).items() if name == DRAWN]
        return {
            "revision": self.delivery.revision,
            "release": tier.release.name,
            "agents": None if plan.part(AGENTS) else "n/a",
            **found,
            "controlPlane": f"{sum(r for r, _ in members)}/{sum(w for _, w in members)}" if members else "n/a",
            "connector": {
                "namespace": tier.spec.target_namespace,
                "configMap": connector.manifest["metadata"]["name"],
                "hash": kube.digest(connector.manifest["data"])[:12],
            }
            if connector
            else None,
            "secretGenerated": any(plan.part(p) or _secret_drawn(self.xr) for p in drawn) or None,
            "memory": dict(plan.memory),
            "pendingDisruption": self.pending_disruption(tier, plan, agents),
        }

    def pending_disruption(self, tier: Tier, plan: Plan, agents: Delivered | None) -> str | None:
        """Say what is about to restart and what that loses: an agent its node's cache, a store perhaps all of it."""
        delivered = self.delivery.delivered
        changed = [
            f"{part.name} restarts, {part.loses}"
            for part in plan.parts
            if part.loses
            and part.name != AGENTS
            and delivered[part.name].remote is not None
            and not delivered[part.name].current
        ]
        wanted, left = (_counts(agents)[0], _updated(agents)) if agents and agents.remote is not None else (0, 0)
        left = wanted - left if agents and agents.current else wanted
        if left > 0:
            strategy = tier.spec.update_strategy
            rolling = strategy.type == "RollingUpdate"
            how = f"{strategy.max_unavailable} at a time" if rolling else "when their pods are deleted"
            agent = plan.part(AGENTS)
            loses = f", {agent.loses}" if agent and agent.loses else ""
            changed.append(f"{left} {'agent restarts' if left == 1 else 'agents restart'} {how}{loses}")
        return "; ".join(changed) or None


def _all_ready(members: tuple[int, int]) -> bool:
    ready, wanted = members
    return ready == wanted


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _secret_drawn(composite: structpb.Struct) -> bool:
    value = kube.at(composite, "status", "secretGenerated")
    return value is not None and value.bool_value


def _counts(agents: Delivered) -> tuple[int, int]:
    """How many agents there should be, and how many are ready."""
    remote = agents.remote
    return kube.integer(remote, "status", "desiredNumberScheduled"), kube.integer(remote, "status", "numberReady")


def _updated(agents: Delivered) -> int:
    """How many agents are of the newest revision."""
    return kube.integer(agents.remote, "status", "updatedNumberScheduled")
