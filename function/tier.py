"""Composes a KVOffloadTier: resolve -> plan -> deliver -> report."""

from collections.abc import Mapping
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, backends, kube, releases, resolve, status
from function.api.tier import TierSpec
from function.backends.base import (
    AGENTS,
    CONNECTOR,
    CREDENTIALS,
    Credential,
    CredentialError,
    Invalid,
    Plan,
    Site,
    Tier,
)
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

_WAITING = Condition(UNKNOWN, "Waiting", "Not known before the conditions above are True")
VOCABULARY: Mapping[str, Condition] = {
    ACCEPTED: _WAITING,
    CLUSTER_REACHABLE: _WAITING,
    CREDENTIALS_RESOLVED: _WAITING,
    CONTROL_PLANE_READY: _WAITING,
    AGENTS_AVAILABLE: _WAITING,
    AGENTS_READY: _WAITING,
    ROLLED_OUT: _WAITING,
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
    latched = kube.text(struct, "status", "release")
    if latched and not spec.release and latched not in releases.RELEASES:
        raise api.Invalid(
            f"status.release is {latched!r}, which this function does not know (it knows "
            f"{', '.join(releases.RELEASES)}): run a function version that does, or set spec.release"
        )
    release = releases.RELEASES.get(spec.release or latched, releases.NEWEST)
    namespace = kube.text(struct, "metadata", "namespace") or "default"
    gpus = kube.integer(struct, "status", "memory", "gpusPerNode") or None
    return Tier(namespace, kube.text(struct, "metadata", "name"), spec, release, gpus)


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
        # Empty where everything that runs stays as it is observed.
        self.plan: Plan | None = None

    def compose(self) -> None:
        """Compose, and report whatever came of it."""
        self.accept()
        if self.tier:
            self.resolve_and_deliver(self.tier)
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
        site = Site(cluster.gpus_per_node)
        credential = self.resolve_credential(tier)
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
            plan = self.make_plan(tier, site, credential)
        except Invalid as e:
            if cluster.found.present:
                self.conditions.set(ACCEPTED, FALSE, "InvalidSpec", str(e), warn=True)
            return
        self.plan = plan
        missing = {name for name in plan.held if not self.delivery.keep(name, cluster.name).observed}
        for part in plan.parts:
            if part.after in missing and self.delivery.observed(part.name, cluster.name) is not None:
                self.delivery.keep(part.name, cluster.name)
            else:
                self.delivery.put(part, cluster.name, provider_config)
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

    def resolve_credential(self, tier: Tier) -> Credential | None:
        """Require the Secret, where there is one to read, and say what is known of it."""
        name = backends.of(tier.spec).credentials(tier)
        if name is None:
            self.conditions.set(CREDENTIALS_RESOLVED, TRUE, "NotRequired", "No Secret has to be read")
            return None
        ref = resolve.Reference("v1", "Secret", name, tier.namespace)
        found = resolve.require(self.req, self.rsp, "credentials", ref)
        if found.resource is None:
            absent = found.state is resolve.State.ABSENT
            copy = self.delivery.observed(CREDENTIALS, tier.spec.inference_cluster_ref.name)
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
        self.conditions.set(CREDENTIALS_RESOLVED, TRUE, "Resolved", f"{ref} is read")
        data = kube.sub(found.resource, "data")
        return Credential(
            {k: v.string_value for k, v in (data.fields.items() if data else ())},
            kube.text(found.resource, "metadata", "uid") + kube.text(found.resource, "metadata", "resourceVersion"),
        )

    def make_plan(self, tier: Tier, site: Site, credential: Credential | None) -> Plan:
        """Plan with the Secret, or, where it lacks something, as if it were not there."""
        backend = backends.of(tier.spec)
        try:
            return backend.plan(tier, site, credential)
        except CredentialError as e:
            self.conditions.set(CREDENTIALS_RESOLVED, FALSE, e.reason, str(e), warn=True)
            return backend.plan(tier, site, None)

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
            self.conditions.set(CONTROL_PLANE_READY, TRUE, "NotNeeded", "This backend needs no control plane")
            if self.plan.agents if self.plan else agents:
                self.report_agents(agents or Delivered(AGENTS))
            else:
                for type_ in (AGENTS_AVAILABLE, AGENTS_READY):
                    self.conditions.set(type_, TRUE, "NotNeeded", "Engines hold the cache in their own processes")
            self.report_rolled_out(agents)
        self.conditions.write(self.req, self.rsp)
        # Parts say themselves whether they are rolled out; with OnDelete, agents of an older revision are no fault.
        ready = self.plan is not None and all(self.conditions.is_true(t) for t in VOCABULARY if t != ROLLED_OUT)
        ready = ready and all(d.ready for d in delivered.values())
        status.write(self.req, self.rsp, self.status(agents), ready=ready)

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
        elif updated < wanted:
            self.conditions.set(ROLLED_OUT, FALSE, "Rolling", f"{updated} of {wanted} agents run the newest revision")
        else:
            self.conditions.set(ROLLED_OUT, TRUE, "RolledOut", "The cluster shows what this spec asks for")

    def status(self, agents: Delivered | None) -> dict[str, Any]:
        """Say what was found; what is not known now stays as it was."""
        tier, plan = self.tier, self.plan
        found: dict[str, Any] = {}
        if agents and kube.sub(agents.remote, "status") is not None:
            wanted, ready = _counts(agents)
            found["agents"] = f"{ready}/{wanted}"
        if plan is None or tier is None:
            names = ("revision", "release", "agents", "controlPlane", "connector", "memory")
            return {**status.carried(self.req, names), **found}
        connector = next(p for p in plan.parts if p.name == CONNECTOR)
        return {
            "revision": self.delivery.revision,
            "release": tier.release.name,
            "agents": None if plan.agents else "n/a",
            **found,
            "controlPlane": "n/a",
            "connector": {
                "namespace": tier.spec.target_namespace,
                "configMap": connector.manifest["metadata"]["name"],
                "hash": kube.digest(connector.manifest["data"])[:12],
            },
            "memory": dict(plan.memory),
            "pendingDisruption": self.pending_disruption(tier, agents),
        }

    def pending_disruption(self, tier: Tier, agents: Delivered | None) -> str | None:
        """Say what the agents have before them: a restart empties its node's memory and disk tier."""
        if agents is None or agents.remote is None:
            return None
        wanted, _ = _counts(agents)
        left = wanted - _updated(agents) if agents.current else wanted
        if left <= 0:
            return None
        strategy = tier.spec.update_strategy
        how = (
            f"{strategy.max_unavailable} at a time"
            if strategy.type == "RollingUpdate"
            else "when their pods are deleted"
        )
        return f"{left} agents restart {how}, each with an empty cache"


def _counts(agents: Delivered) -> tuple[int, int]:
    """How many agents there should be, and how many are ready."""
    remote = agents.remote
    return kube.integer(remote, "status", "desiredNumberScheduled"), kube.integer(remote, "status", "numberReady")


def _updated(agents: Delivered) -> int:
    """How many agents are of the newest revision."""
    return kube.integer(agents.remote, "status", "updatedNumberScheduled")
