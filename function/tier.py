"""Composes a KVOffloadTier: resolve -> plan -> deliver -> report."""

from collections.abc import Mapping
from typing import Any

from crossplane.function import resource
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, backends, kube, releases, resolve
from function.api.tier import TierSpec
from function.backends.base import AGENTS, Credential, CredentialError, Invalid, Plan, Site, Tier
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

_WAITING = Condition(UNKNOWN, "Waiting", "Waiting for what comes before")
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
    return Tier(namespace, kube.text(struct, "metadata", "name"), spec, release)


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
        moved = self.delivery.exists and self.delivery.cluster != tier.spec.inference_cluster_ref.name
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
        name = tier.spec.inference_cluster_ref.name
        for part in plan.parts:
            self.delivery.put(part, name, provider_config)
        for part_name in plan.held:
            self.delivery.keep(part_name, name)
        self.plan = plan
        self.check_cluster(cluster)

    def resolve_cluster(self, tier: Tier) -> ClusterView:
        """Require the InferenceCluster, and say what is known of it."""
        cluster = ClusterView.require(self.req, self.rsp, tier.spec.inference_cluster_ref.name)
        status, reason, message = cluster.verdict(self.delivery.provider_config)
        self.conditions.set(CLUSTER_REACHABLE, status, reason, message, warn=cluster.act and status == FALSE)
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
            kept = "; the copy on the cluster stays" if self.delivery.exists else ""
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
        status, reason, message = cluster.answers(self.delivery.delivered.values())
        self.conditions.set(CLUSTER_REACHABLE, status, reason, message, warn=status == FALSE)

    # --- report -----------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Write conditions, status and readiness."""
        delivered = self.delivery.delivered
        plan = self.plan
        if plan:
            self.conditions.set(CONTROL_PLANE_READY, TRUE, "NotNeeded", "This backend needs no control plane")
            self.report_agents(plan, delivered.get(AGENTS, Delivered(AGENTS)))
            self.report_rolled_out(plan)
        self.conditions.write(self.req, self.rsp)
        self.write_status(delivered)
        ready = plan is not None and all(self.conditions.is_true(t) for t in VOCABULARY)
        ready = ready and all(d.ready for d in delivered.values())
        self.rsp.desired.composite.ready = fnv1.READY_TRUE if ready else fnv1.READY_FALSE

    def report_agents(self, plan: Plan, agents: Delivered) -> None:
        """Say how many agents there are, from the DaemonSet as the cluster last showed it."""
        if not plan.agents:
            for type_ in (AGENTS_AVAILABLE, AGENTS_READY):
                self.conditions.set(type_, TRUE, "NotNeeded", "Engines hold the cache in their own processes")
            return
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

    def report_rolled_out(self, plan: Plan) -> None:
        """Say whether the cluster holds what this spec asks for, down to the last agent."""
        behind = sorted(p.name for p in plan.parts if not self.delivery.delivered[p.name].current)
        agents = self.delivery.delivered.get(AGENTS)
        wanted, updated = (
            (_counts(agents)[0], kube.integer(agents.remote, "status", "updatedNumberScheduled")) if agents else (0, 0)
        )
        if behind:
            self.conditions.set(
                ROLLED_OUT, FALSE, "Applying", f"The cluster does not show these yet: {', '.join(behind)}"
            )
        elif updated < wanted:
            self.conditions.set(ROLLED_OUT, FALSE, "Rolling", f"{updated} of {wanted} agents run the newest revision")
        else:
            self.conditions.set(ROLLED_OUT, TRUE, "RolledOut", "The cluster shows what this spec asks for")

    def write_status(self, delivered: Mapping[str, Delivered]) -> None:
        """Write the whole status, since it is replaced as a whole; what is not known now stays as it was."""
        tier, plan = self.tier, self.plan
        was = kube.sub(self.xr, "status")
        status: dict[str, Any] = {"observedGeneration": kube.integer(self.xr, "metadata", "generation") or None}
        if plan is None or tier is None:
            for name in ("revision", "release", "agents", "controlPlane", "connector", "memory"):
                value = kube.at(was, name)
                status[name] = kube.plain(value) if value is not None else None
        else:
            agents = delivered.get(AGENTS)
            reported = agents is not None and kube.sub(agents.remote, "status") is not None
            wanted, ready = _counts(agents) if agents else (0, 0)
            connector = next(p for p in plan.parts if p.name == backends.base.CONNECTOR)
            status |= {
                "revision": self.delivery.revision,
                "release": tier.release.name,
                "agents": (f"{ready}/{wanted}" if reported else None) if plan.agents else "n/a",
                "controlPlane": "n/a",
                "connector": {
                    "namespace": tier.spec.target_namespace,
                    "configMap": connector.manifest["metadata"]["name"],
                    "hash": kube.digest(connector.manifest["data"])[:12],
                },
                "memory": dict(plan.memory),
                "pendingDisruption": self.pending_disruption(tier, agents),
            }
        resource.update_status(self.rsp.desired.composite, kube.prune(status))

    def pending_disruption(self, tier: Tier, agents: Delivered | None) -> str | None:
        """Say what the agents have before them: a restart empties its node's memory and disk tier."""
        if agents is None or agents.remote is None:
            return None
        wanted, _ = _counts(agents)
        left = wanted - kube.integer(agents.remote, "status", "updatedNumberScheduled") if agents.current else wanted
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
