"""Composes a standalone ModelDeployment: resolve -> engine -> attach -> deliver -> report."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, attachment, claims, kube, status, tier, usage, workloads
from function.api.deployment import DeploymentSpec
from function.attachment import (
    TIER_ATTACHED,
    WARNINGS,
    Attachment,
    Consumer,
)
from function.backends.base import EnginePatch, Part, Site, Tier
from function.cluster import View as ClusterView
from function.conditions import FALSE, TRUE, UNKNOWN, Condition, Conditions
from function.delivery import Delivered, Delivery
from function.engines import Engine, pod
from function.tier import Unavailable

ACCEPTED = "Accepted"
CLUSTER_REACHABLE = "ClusterReachable"
ENGINE_READY = "EngineReady"
ROLLED_OUT = "RolledOut"

_STATES = (ACCEPTED, CLUSTER_REACHABLE, TIER_ATTACHED, ENGINE_READY, ROLLED_OUT)
VOCABULARY: Mapping[str, Condition] = {
    **dict.fromkeys(_STATES, Condition(UNKNOWN, "Waiting", "Not known before the conditions above are True")),
    **dict.fromkeys(WARNINGS, Condition(FALSE, "Nothing", "Nothing to warn of")),
}

ENGINE = "engine"
SERVICE = "service"
DEFAULT_NAMESPACE = "default"


def compose(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Compose a ModelDeployment; see Composer."""
    Composer(req, rsp).compose()


class Composer:
    """One run over one ModelDeployment."""

    def __init__(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
        """Look at the composite; raises Malformed for one without a name."""
        self.req, self.rsp = req, rsp
        self.xr = req.observed.composite.resource
        self.name = kube.required_text(self.xr, "metadata", "name")
        self.namespace = kube.text(self.xr, "metadata", "namespace") or "default"
        self.instance = kube.child_name("engine", self.namespace, self.name)
        self.selector = {"app.kubernetes.io/instance": self.instance, "app.kubernetes.io/component": "engine"}
        self.delivery = Delivery(req, rsp, f"engine/{self.name}")
        self.conditions = Conditions(VOCABULARY)
        self.parts: list[Part] = []
        self.patch: EnginePatch | None = None
        # What stands behind the tier that the engine names.
        self.behind: Tier | Unavailable | None = None
        self.cluster = ""
        self.namespace_there = DEFAULT_NAMESPACE

    def compose(self) -> None:
        """Compose, and report whatever came of it."""
        spec = self.accept()
        if spec:
            self.resolve_and_deliver(spec)
        if not self.parts:
            self.delivery.keep_all()
        self.use_tier()
        self.report()

    def accept(self) -> DeploymentSpec | None:
        """Read the spec; a wrong one changes nothing that runs."""
        try:
            spec = api.parse(DeploymentSpec, kube.plain(kube.sub(self.xr, "spec") or structpb.Struct()))
        except api.Invalid as e:
            self.conditions.set(ACCEPTED, FALSE, "InvalidSpec", str(e), warn=True)
            return None
        self.conditions.set(ACCEPTED, TRUE, "Accepted", "The spec can be composed")
        return spec

    # --- resolve ----------------------------------------------------------------------------------------------

    def resolve_and_deliver(self, spec: DeploymentSpec) -> None:
        """Resolve tier and cluster, attach, and deliver; leaves parts empty where everything stays as it is."""
        ref = spec.engine.kv_cache.tier_ref if spec.engine.kv_cache else None
        placed = spec.inference_cluster_ref.name if spec.inference_cluster_ref else ""
        on = self.delivery.cluster or placed
        found = tier.require(self.req, self.rsp, ref, self.namespace, on) if ref else None
        self.behind = tier.l3(self.req, self.rsp, found) if isinstance(found, Tier) else None
        name = self.resolve_cluster_name(spec, found)
        if not name:
            self.no_cluster(spec, found)
            return
        self.cluster = name
        if isinstance(found, Tier):
            # The engine mounts its tier's ConfigMap, so it runs beside it.
            self.namespace_there = found.spec.target_namespace
        cluster = ClusterView.require(self.req, self.rsp, name)
        verdict, reason, message = cluster.verdict(self.delivery.provider_config)
        self.conditions.set(CLUSTER_REACHABLE, verdict, reason, message, warn=cluster.resolved and verdict == FALSE)
        engine = pod.read(spec.engine, namespace=self.namespace, name=self.name)
        template = pod.pod_template(spec.engine, engine.line, self.selector | kube.MANAGED_BY)
        decision = self.decide(spec, found, cluster, engine, template)
        self.conditions.put(TIER_ATTACHED, decision.condition)
        self.patch = decision.patch
        if self.patch:
            self.warn(attachment.notices(self.patch, engine))
        provider_config = self.delivery.provider_config or cluster.provider_config
        if self.patch and not provider_config:
            message = f"{decision.condition.message}, once {CLUSTER_REACHABLE} is True: nothing is composed before"
            self.conditions.set(TIER_ATTACHED, UNKNOWN, "Waiting", message)
        if decision.hold or not provider_config:
            return
        self.deliver(spec, engine, template, cluster, provider_config)
        self.check_cluster(spec, cluster)

    def resolve_cluster_name(self, spec: DeploymentSpec, found: Tier | Unavailable | None) -> str:
        """Name the cluster: where the engine runs, else where the spec says, else the tier's; empty if unknown."""
        if self.delivery.cluster:
            return self.delivery.cluster
        if spec.inference_cluster_ref:
            return spec.inference_cluster_ref.name
        return found.spec.inference_cluster_ref.name if isinstance(found, Tier) else ""

    def no_cluster(self, spec: DeploymentSpec, found: Tier | Unavailable | None) -> None:
        """Say that without its tier nobody knows which cluster this engine is for."""
        assert isinstance(found, Unavailable)  # the spec names a cluster or a tier, and a tier that is there has one
        message = f"{found.message}; the engine waits for it, since it would run on the tier's cluster"
        if spec.engine.kv_cache and spec.engine.kv_cache.on_unavailable == "ServeWithout":
            message += "; set spec.inferenceClusterRef to start it without"
        held = UNKNOWN if found.waiting else FALSE
        self.conditions.set(TIER_ATTACHED, held, found.reason, message, warn=not found.waiting)

    # --- attach -----------------------------------------------------------------------------------------------

    def decide(
        self,
        spec: DeploymentSpec,
        found: Tier | Unavailable | None,
        cluster: ClusterView,
        engine: Engine,
        template: kube.Manifest,
    ) -> Attachment:
        """Decide what attaches the engine, from what was asked for, what is known, and what was attached before."""
        if spec.engine.kv_cache is None or found is None:
            return attachment.NOT_REQUESTED
        if isinstance(found, Tier):
            found = self.same_place(found, cluster)
        consumer = Consumer(
            engine,
            spec.engine.kv_cache.on_unavailable,
            [template],
            observed=self.delivery.observed(ENGINE, self.cluster),
        )
        site = Site(cluster.gpus_per_node, known=cluster.resolved, pools=cluster.pools)
        decision = attachment.decide(consumer, found, site, self.behind)
        if isinstance(found, Tier):
            decision = attachment.lacking(decision, self.req.required_resources["tier"].items[0].resource)
        return decision

    def same_place(self, found: Tier, cluster: ClusterView) -> Tier | Unavailable:
        """Check that the tier is where the engine runs: an engine never moves."""
        there = found.spec.inference_cluster_ref.name
        if there != cluster.name:
            return Unavailable(
                "TierOnOtherCluster",
                f"KVOffloadTier {found.ref} is on InferenceCluster {there}, the engine on {cluster.name}",
            )
        namespace = self.running_namespace(cluster.name)
        if namespace and namespace != found.spec.target_namespace:
            return Unavailable(
                "TierInOtherNamespace",
                f"KVOffloadTier {found.ref} is in namespace {found.spec.target_namespace} of {cluster.name}, "
                f"the engine in {namespace}; recreate the ModelDeployment to move it",
            )
        return found

    def running_namespace(self, cluster: str) -> str:
        """The namespace that the engine runs in; empty before it does."""
        observed = self.delivery.observed(ENGINE, cluster)
        return kube.text(observed, "spec", "forProvider", "manifest", "metadata", "namespace")

    # --- deliver ----------------------------------------------------------------------------------------------

    def deliver(
        self,
        spec: DeploymentSpec,
        engine: Engine,
        template: kube.Manifest,
        cluster: ClusterView,
        provider_config: str,
    ) -> None:
        """Deliver the engine's Deployment, by its pod template as the user asked for it, and its Service."""
        namespace = self.running_namespace(cluster.name) or self.namespace_there
        annotations: Mapping[str, str] = {}
        claim = self.claim(namespace)
        if self.patch:
            template, warnings = attachment.apply(template, self.patch, engine, pod.CONTAINER, claim=claim)
            annotations = attachment.latch(self.patch)
            self.warn(warnings)
        metadata = {"name": self.instance, "namespace": namespace, "labels": self.selector | kube.MANAGED_BY}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": spec.replicas,
                "selector": {"matchLabels": self.selector},
                "template": pod.finish(template),
            },
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": self.selector, "ports": [pod.service_port(engine.kind, engine.line)]},
        }
        self.parts = [
            Part(ENGINE, deployment, ready=workloads.DEPLOYMENT_READY, annotations=annotations),
            Part(SERVICE, service),
        ]
        if claim:
            # A template is immutable, so another one has another part.
            name = claim.template["metadata"]["name"]
            self.parts.append(Part(name.removeprefix(f"{self.instance}-"), claim.template))
        for part in self.parts:
            self.delivery.put(part, cluster.name, provider_config)

    def claim(self, namespace: str) -> claims.Claim | None:
        """Give what the engine claims its tier's NICs by; None where it needs no claim.

        The template of its own claims is the user's, on the inference cluster, so that none can be joined.
        """
        if self.patch is None or not self.patch.devices:
            return None
        metadata = {"name": self.instance, "namespace": namespace}
        why = "its GPUs are claimed by a template of yours that is not read, or not by DRA"
        return claims.own(self.patch.devices, metadata, why)

    def use_tier(self) -> None:
        """Keep the tier that the engine is attached to from being deleted, and one that it was, while a pod may be."""
        if not self.parts:
            usage.keep(self.req, self.rsp)
            return
        engine = self.delivery.reference(ENGINE, self.cluster)
        if self.patch:
            user = f"ModelDeployment {self.namespace}/{self.name}"
            usage.attach(self.rsp, self.patch.tier, engine, owner=f"engine/{self.name}", user=user)
        if not self.delivery.delivered[ENGINE].ready:
            usage.keep(self.req, self.rsp, by=[engine["name"]])

    def warn(self, warnings: Sequence[tuple[str, Condition]]) -> None:
        """Say what an ML engineer should know about the attachment."""
        for type_, condition in warnings:
            self.conditions.put(type_, condition)

    def check_cluster(self, spec: DeploymentSpec, cluster: ClusterView) -> None:
        """Say when the cluster does not take what we send, or is no longer the one that the spec names."""
        if self.conditions.is_true(CLUSTER_REACHABLE):
            answer, reason, message = cluster.answers(self.delivery.delivered.values())
            self.conditions.set(CLUSTER_REACHABLE, answer, reason, message, warn=answer == FALSE)
        wanted = spec.inference_cluster_ref
        if wanted and wanted.name != cluster.name:
            self.conditions.set(
                CLUSTER_REACHABLE,
                FALSE,
                "ClusterMoved",
                f"this engine runs on InferenceCluster {cluster.name} and stays there; for {wanted.name} make another "
                "ModelDeployment",
                warn=True,
            )

    # --- report -----------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Write conditions, status and readiness, of what was delivered or of what was kept."""
        delivered = self.delivery.delivered
        engine = delivered.get(ENGINE, Delivered(ENGINE))
        if self.parts or self.delivery.exists:
            self.report_engine(engine)
            self.report_rolled_out(engine)
        self.conditions.write(self.req, self.rsp)
        states = (ACCEPTED, CLUSTER_REACHABLE, ENGINE_READY, ROLLED_OUT)
        ready = bool(self.parts) and all(self.conditions.is_true(t) for t in states)
        status.write(self.req, self.rsp, self.status(engine), ready=ready and all(d.ready for d in delivered.values()))

    def report_engine(self, engine: Delivered) -> None:
        """Say how many replicas serve, from the Deployment as the cluster last showed it."""
        message = f"{_replicas(engine)} replicas are ready"
        if kube.sub(engine.remote, "status") is None:
            self.conditions.set(ENGINE_READY, FALSE, "Creating", "The engine's Deployment has not reported yet")
        elif engine.ready:
            self.conditions.set(ENGINE_READY, TRUE, "Ready", message)
        else:
            self.conditions.set(ENGINE_READY, FALSE, "NotReady", message)

    def report_rolled_out(self, engine: Delivered) -> None:
        """Say whether the cluster holds what this spec asks for, down to the last replica."""
        behind = sorted(d.name for d in self.delivery.delivered.values() if not d.current)
        if not self.parts:
            self.conditions.set(ROLLED_OUT, FALSE, "Held", "What runs stays as it is; another condition says why")
        elif behind:
            message = f"The cluster does not show these yet: {', '.join(behind)}"
            self.conditions.set(ROLLED_OUT, FALSE, "Applying", message)
        elif not engine.ready:
            updated = kube.integer(engine.remote, "status", "updatedReplicas")
            wanted = kube.integer(engine.remote, "spec", "replicas")
            message = f"{updated} of {wanted} replicas run the newest revision; the roll ends when all are ready"
            self.conditions.set(ROLLED_OUT, FALSE, "Rolling", message)
        else:
            self.conditions.set(ROLLED_OUT, TRUE, "RolledOut", "The cluster shows what this spec asks for")

    def status(self, engine: Delivered) -> dict[str, Any]:
        """Say what was found; what is not known now stays as it was."""
        found: dict[str, Any] = {} if engine.remote is None else {"replicas": _replicas(engine)}
        if not self.parts:
            names = ("cluster", "revision", "replicas", "endpoint", "kvCache")
            return {**status.carried(self.req, names), **found}
        deployment, service = (p.manifest for p in self.parts[:2])
        namespace, port = deployment["metadata"]["namespace"], service["spec"]["ports"][0]["port"]
        return {
            "cluster": self.cluster,
            "revision": self.delivery.revision,
            "replicas": f"0/{deployment['spec']['replicas']}",
            **found,
            "endpoint": f"http://{self.instance}.{namespace}.svc:{port}",
            "kvCache": {"tier": self.patch.tier, "connector": self.patch.connector} if self.patch else None,
        }


def _replicas(engine: Delivered) -> str:
    remote = engine.remote
    return f"{kube.integer(remote, 'status', 'readyReplicas')}/{kube.integer(remote, 'spec', 'replicas')}"
