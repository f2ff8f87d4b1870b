"""Attaches the engines that earlier steps of a pipeline composed: resolve -> engine -> attach -> report.

An annotation on a pod template names its tier, in a workload of any composite, plain or inside an Object. What an
earlier step desires stays as it is to the byte, but for the pod templates that are attached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crossplane.function import response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import attachment, claims, delivery, kube, members, resolve, templates, tier, usage
from function.api import Invalid, annotations, parse
from function.api.deployment import TierRef
from function.api.template import ClaimTemplate
from function.attachment import (
    HIDES_ARGS,
    TIER_ATTACHED,
    WARNINGS,
    Attachment,
    Consumer,
)
from function.backends.base import EnginePatch, Site, Tier
from function.cluster import View as ClusterView
from function.conditions import FALSE, TRUE, UNKNOWN, Condition, Conditions
from function.engines import Engine, pod
from function.members import NO_TEMPLATE, Unreadable, container_of
from function.placement import POOL
from function.templates import Group, Member
from function.tier import Unavailable

VOCABULARY: Mapping[str, Condition] = {
    TIER_ATTACHED: Condition(FALSE, "NotRequested", f"No pod template has the annotation {annotations.TIER}"),
    **dict.fromkeys(WARNINGS, Condition(FALSE, "Nothing", "Nothing to warn of")),
}

# Replicas of one Modelplane deployment run one model, and share what they compute of it.
_DEPLOYMENT = "modelplane.ai/deployment"
_CLUSTER = "modelplane.ai/cluster"
_MODELPLANE_WORKLOAD = "model-serving-"
# Lets go of a workload that earlier steps no longer desire, by its composition-resource-name.
LET_GO = f"{annotations.PREFIX}let-go"

# On a ResourceClaimTemplate of ours, or its Object: the composition-resource-name of the workload that it is for.
_CLAIMS_OF = f"{annotations.PREFIX}claims-of"

_JOB = "Job"
_UNAVAILABLE, _SERVE = f"{annotations.PREFIX}on-unavailable", "ServeWithout"
# The provider config of an Object that names none.
_DEFAULT_CONFIG = "default"

# What a ModelDeployment's fields are called on a pod template; messages name one or the other.
_TERMS = (
    ("engine.kvCache.role", f"annotation {annotations.PREFIX}role"),
    ("kvCache.identity", f"annotation {annotations.PREFIX}identity"),
    ("kvCache.onUnavailable", f"annotation {annotations.PREFIX}on-unavailable"),
    ("kvCache.tierRef", f"annotation {annotations.TIER}"),
    ("the tierRef", f"annotation {annotations.TIER}"),
    ("engine.version", f"annotation {annotations.PREFIX}version"),
    ("engine.command", "the container's command"),
    ("engine.args", "the container's args"),
    ("engine.env", "the container's env"),
    ("ModelDeployment", "workload"),
)


def compose(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Attach what earlier steps composed; see Composer."""
    Composer(req, rsp).compose()


@dataclass
class Carrier:
    """A desired resource with engines: a workload of the control plane, or the Object that carries one elsewhere.

    `kind`, `namespace` and `name` are the workload's; empty where it does not say.
    """

    key: str
    desired: fnv1.Resource
    observed: structpb.Struct | None
    kind: str
    namespace: str
    name: str
    provider_config: str
    groups: Sequence[Group]
    latches: dict[str, str] = field(default_factory=dict)
    claims: list[kube.Manifest] = field(default_factory=list)
    hold: bool = False

    def engine(self, group: Group) -> str:
        """Name one of its engines, for messages."""
        return f"{self.key}/{group.name}" if group.name else self.key

    def write(self, member: Member, template: kube.Manifest) -> None:
        """Replace one pod template."""
        base = ("spec", "forProvider", "manifest") if self.provider_config else ()
        kube.put(self.desired.resource, (*base, *member.path), template)

    def applied(self, observed: structpb.Struct | None) -> bool:
        """Whether what is composed with the workload is on its cluster as desired; a plain one has no condition."""
        if observed is None:
            return False
        return not self.provider_config or kube.condition(observed, "Ready")[0] == TRUE

    def keep(self) -> None:
        """Desire the workload as it is observed, and where it is: an Object that moves would forget what runs there."""
        spec, there = self.desired.resource.get_or_create_struct("spec"), kube.sub(self.observed, "spec")
        if there is None:
            return
        if self.provider_config:
            for name in ("providerConfigRef", "forProvider"):
                if (held := kube.sub(there, name)) is not None:
                    kube.copy(held, to=spec.get_or_create_struct(name))
            return
        scaled = "replicas" in spec.fields
        kube.copy(there, to=spec)
        if not scaled and "replicas" in spec.fields:
            # An autoscaler's.
            del spec.fields["replicas"]


class Composer:
    """One run over what earlier steps composed for one composite."""

    def __init__(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
        """Look at the composite; raises Malformed for one without a name."""
        self.req, self.rsp = req, rsp
        self.xr = req.observed.composite.resource
        self.name = kube.required_text(self.xr, "metadata", "name")
        self.namespace = kube.text(self.xr, "metadata", "namespace") or "default"
        deployment = kube.text(self.xr, "metadata", "labels", _DEPLOYMENT)
        who = (_DEPLOYMENT, deployment) if deployment else (kube.text(self.xr, "kind"), self.name)
        # The InferenceCluster that it is for, as Modelplane says it of a ModelReplica, or as a label does of anything.
        self.cluster = kube.text(self.xr, "spec", "clusterName") or kube.text(self.xr, "metadata", "labels", _CLUSTER)
        # Whose models these are, as far as a path tells nothing of them.
        self.owner = (self.namespace, *who)
        self.conditions = Conditions(VOCABULARY)
        self.decisions: list[tuple[str, Attachment]] = []
        # By type and engine.
        self.warnings: dict[str, dict[str, list[Condition]]] = {}
        # What earlier steps compose, by provider config, namespace and name.
        self.claim_templates = dict(filter(None, map(_claim_template, rsp.desired.resources.values())))

    def compose(self) -> None:
        """Attach, and report whatever came of it."""
        carriers = [
            c for key, r in sorted(self.rsp.desired.resources.items()) if (c := _carrier(key, r, self.observed(key)))
        ]
        if dropped := self.dropped():
            self.refuse(dropped)
            return
        self.look_for_lost(carriers)
        for carrier in carriers:
            for group in carrier.groups:
                self.attach(carrier, group)
            self.settle(carrier)
        self.keep_usages(carriers)
        self.report()

    def observed(self, key: str) -> structpb.Struct | None:
        """Find an observed composed resource."""
        found = self.req.observed.resources
        return found[key].resource if key in found else None

    def look_for_lost(self, carriers: Sequence[Carrier]) -> None:
        """Say where the annotation stands and nobody would look for it: not on a pod template that is attached."""
        seen = {
            carrier.key: sum(annotations.TIER in m.annotations for group in carrier.groups for m in group.members)
            for carrier in carriers
        }
        for key, desired in sorted(self.rsp.desired.resources.items()):
            # A label has the same name, so this alone proves nothing; but without it there is nothing to look for.
            if desired.resource.SerializeToString().count(annotations.TIER.encode()) <= seen.get(key, 0):
                continue
            if _annotated(kube.plain(desired.resource)) > seen.get(key, 0):
                kinds = ", ".join(sorted(templates.KINDS))
                message = (
                    f"annotation {annotations.TIER} is on something else than a pod template that can be attached; put "
                    f"it on one of a {kinds}, in a RoleBasedGroup on a role's that is no gang"
                )
                self.decisions.append((key, Attachment(Condition(FALSE, "AnnotationMisplaced", message, warn=True))))

    # --- guard ------------------------------------------------------------------------------------------------

    def dropped(self) -> list[str]:
        """Name the attached workloads that are observed and no longer desired, though nobody took them away.

        A step that returns early, as when its cluster is not there for a moment, desires nothing, and what nothing
        desires is deleted.
        """
        engines = kube.at(self.xr, "spec", "engines")
        named = {kube.text(e.struct_value, "name") for e in engines.list_value.values} if engines is not None else None
        let_go = [key.strip() for key in kube.text(self.xr, "metadata", "annotations", LET_GO).split(",")]
        found = []
        for key, observed in sorted(self.req.observed.resources.items()):
            if key in self.rsp.desired.resources or not _latched(observed.resource):
                continue
            theirs = named is not None and key.startswith(_MODELPLANE_WORKLOAD)
            gone = theirs and key.removeprefix(_MODELPLANE_WORKLOAD) not in (named or ())
            if not gone and key not in let_go:
                found.append(key)
        return found

    def refuse(self, dropped: Sequence[str]) -> None:
        """End with a fatal result, which keeps everything that runs."""
        names = ", ".join(dropped)
        message = (
            f"earlier steps no longer desire {names}, which runs attached, and Crossplane would delete it; nothing was "
            f"changed. If it is meant to go, annotate this composite with {LET_GO}={','.join(dropped)}"
        )
        self.conditions.set(TIER_ATTACHED, UNKNOWN, "WorkloadsMissing", message)
        self.conditions.write(self.req, self.rsp)
        response.fatal(self.rsp, message)

    # --- attach -----------------------------------------------------------------------------------------------

    def attach(self, carrier: Carrier, group: Group) -> None:
        """Decide what becomes of one engine, and attach its pod templates."""
        if not any(annotations.TIER in member.annotations for member in group.members):
            return
        try:
            asked, container, engine = members.read(group, owner=self.owner, workload=carrier.key)
        except (Invalid, Unreadable) as e:
            self.decide(carrier, group, self.unreadable(e, carrier.observed, group))
            return
        ref = asked.tier_ref
        engine = self.see_devices(carrier, group, container, engine)
        found, site, behind = self.resolve(ref, carrier)
        consumer = Consumer(
            engine,
            asked.on_unavailable,
            [member.template for member in group.members],
            container=container,
            observed=carrier.observed,
            of=group.name,
        )
        decision = _settled(carrier, consumer) or attachment.decide(consumer, found, site, behind)
        if isinstance(found, Tier):
            there = self.req.required_resources[_requirement(ref)].items[0].resource
            decision = attachment.lacking(decision, there)
        self.decide(carrier, group, decision)
        if decision.patch is None or decision.hold:
            return
        name = carrier.engine(group)
        self.warn(name, attachment.notices(decision.patch, engine))
        for member in group.members:
            flags = not pod.joins(container_of(member, container))
            claim = self.claim(carrier, member, container, decision.patch)
            template, warnings = attachment.apply(
                member.template, decision.patch, engine, container, flags=flags, claim=claim
            )
            carrier.write(member, template)
            self.warn(name, warnings)
        carrier.latches |= attachment.latch(decision.patch, group.name)
        self.use_tier(carrier, group, decision.patch)

    def unreadable(self, why: "Invalid | Unreadable", observed: structpb.Struct | None, group: Group) -> Attachment:
        """Keep what runs as it is where nobody can tell what is asked for; else wait for its user, or as they chose.

        A command that cannot be read is its user's wish, and starts as it does in a ModelDeployment; what is no pod
        template is for the API server to refuse.
        """
        reason = why.reason if isinstance(why, Unreadable) else "InvalidAnnotation"
        if attachment.latched(observed, group.name):
            message = f"{why}; what runs attached stays as it is"
            return Attachment(Condition(TRUE, reason, message, warn=True), hold=True)
        serves = reason in (HIDES_ARGS, NO_TEMPLATE) or any(
            m.annotations.get(_UNAVAILABLE) == _SERVE for m in group.members
        )
        if observed is not None or serves:
            return Attachment(Condition(FALSE, reason, f"{why}; the engine runs without the tier", warn=True))
        message = f"{why}; no engine is started ({_UNAVAILABLE}: {_SERVE} would start it without the tier)"
        return Attachment(Condition(FALSE, reason, message, warn=True), hold=True)

    def resolve(self, ref: TierRef, carrier: Carrier) -> tuple[Tier | Unavailable, Site, Tier | Unavailable | None]:
        """Require a tier, its cluster, and what stands behind it."""
        key = _requirement(ref)
        found = tier.require(self.req, self.rsp, ref, self.namespace, self.cluster, key)
        if isinstance(found, Unavailable):
            return found, Site(), None
        behind = tier.l3(self.req, self.rsp, found, f"l3 of {key}")
        name = found.spec.inference_cluster_ref.name
        cluster = ClusterView.require(self.req, self.rsp, name, f"cluster {name}")
        site = Site(cluster.gpus_per_node, known=cluster.resolved, pools=cluster.pools)
        return self.same_place(found, cluster, carrier), site, behind

    def same_place(self, found: Tier, cluster: ClusterView, carrier: Carrier) -> Tier | Unavailable:
        """Check that the tier is on the cluster, and in the namespace, that the workload goes to."""
        if not cluster.found.present:
            waiting = cluster.found.state is resolve.State.UNRESOLVED
            what = "is not read yet" if waiting else "does not exist"
            return Unavailable(
                "Waiting" if waiting else "ClusterNotFound",
                f"InferenceCluster {cluster.name} of KVOffloadTier {found.ref} {what}",
                waiting=waiting,
            )
        local = kube.text(cluster.found.resource, "spec", "cluster", "source") == "Local"
        there = cluster.provider_config
        if there != carrier.provider_config if carrier.provider_config else not local:
            goes = f"by provider config {carrier.provider_config}" if carrier.provider_config else "to this cluster"
            return Unavailable(
                "TierOnOtherCluster",
                f"KVOffloadTier {found.ref} is on InferenceCluster {cluster.name} (provider config "
                f"{there or 'not known yet'}), and the engine is delivered {goes}; name a tier of that cluster, or "
                "keep the engine off it",
            )
        namespace = carrier.namespace or self.namespace
        if namespace != found.spec.target_namespace:
            return Unavailable(
                "TierInOtherNamespace",
                f"KVOffloadTier {found.ref} is in namespace {found.spec.target_namespace} of {cluster.name}, "
                f"the engine in {namespace}; name a tier whose targetNamespace is {namespace}",
            )
        return found

    # --- claims -----------------------------------------------------------------------------------------------

    def find(self, carrier: Carrier) -> claims.Find:
        """Find ResourceClaimTemplates that a workload's pods may name."""
        return lambda name: self.claim_templates.get((carrier.provider_config, carrier.namespace, name))

    def see_devices(self, carrier: Carrier, group: Group, container: str, engine: Engine) -> Engine:
        """Add what an engine's own claims ask for, and which pool it is for."""
        asked: dict[str, int] = {}
        for member in group.members:
            for class_, count in claims.asked(member.template["spec"], container, self.find(carrier)).items():
                asked[class_] = max(count, asked.get(class_, 0))
        selector = group.members[0].template["spec"].get("nodeSelector") or {}
        return replace(engine, devices=asked, pool=selector.get(POOL, ""))

    def claim(self, carrier: Carrier, member: Member, container: str, patch: EnginePatch) -> claims.Claim | None:
        """Give what a pod claims its NICs by: its own claim where that is composed here, else a second one."""
        if not patch.devices:
            return None
        pod_spec, find = member.template["spec"], self.find(carrier)
        try:
            claim = claims.join(pod_spec, container, patch.devices, find, align=patch.align)
        except claims.Apart as why:
            named = {"name": carrier.name or carrier.key}
            placed = {"namespace": carrier.namespace} if carrier.namespace else {}
            claim = claims.own(patch.devices, {**named, **placed}, str(why))
        carrier.claims.append(claim.template)
        return claim

    def put_claim(self, carrier: Carrier, template: kube.Manifest) -> None:
        """Desire a ResourceClaimTemplate beside its workload, as that is delivered."""
        # A template is immutable, so another one has another key.
        key = f"{carrier.key}-{template['metadata']['name']}"
        desired = self.rsp.desired.resources[key]
        desired.Clear()
        mark = {_CLAIMS_OF: carrier.key}
        if carrier.provider_config:
            wrapper = carrier.desired.resource
            namespace, config = (
                kube.text(wrapper, "metadata", "namespace"),
                kube.sub(wrapper, "spec", "providerConfigRef"),
            )
            metadata = {**({"namespace": namespace} if namespace else {}), "annotations": mark}
            spec = {"readiness": {"policy": "SuccessfulCreate"}, "forProvider": {"manifest": template}}
            if config is not None:
                spec["providerConfigRef"] = kube.plain(config)
            wrapped = {"apiVersion": kube.text(wrapper, "apiVersion"), "kind": kube.text(wrapper, "kind")}
            kube.write({**wrapped, "metadata": metadata, "spec": spec}, to=desired.resource)
        else:
            metadata = template["metadata"]
            kube.write({**template, "metadata": {**metadata, "annotations": mark}}, to=desired.resource)
        if carrier.applied(self.observed(key)):
            desired.ready = fnv1.READY_TRUE

    def observed_claims(self, carrier: Carrier) -> list[kube.Manifest]:
        """Give the ResourceClaimTemplates that were composed for a workload."""
        found = []
        for _, observed in sorted(self.req.observed.resources.items()):
            manifest = _manifest(observed.resource)[1]
            if manifest and kube.text(observed.resource, "metadata", "annotations", _CLAIMS_OF) == carrier.key:
                found.append(claims.as_composed(kube.plain(manifest)))
        return found

    def decide(self, carrier: Carrier, group: Group, decision: Attachment) -> None:
        """Note what became of an engine."""
        self.decisions.append((carrier.engine(group), decision))
        carrier.hold = carrier.hold or decision.hold

    def use_tier(self, carrier: Carrier, group: Group, patch: EnginePatch) -> None:
        """Keep a tier from being deleted while an engine is attached to it, once what carries that has a name."""
        observed = carrier.observed
        # A Usage is of a namespace, which a composite of the cluster's scope has none of.
        if observed is None or not kube.text(self.xr, "metadata", "namespace"):
            return
        by = {
            "apiVersion": kube.text(observed, "apiVersion"),
            "kind": kube.text(observed, "kind"),
            "name": kube.text(observed, "metadata", "name"),
        }
        kind = kube.text(self.xr, "kind")
        usage.attach(
            self.rsp,
            patch.tier,
            by,
            owner=f"{kind.lower()}/{self.name}",
            user=f"{kind} {self.namespace}/{self.name}",
            of="-".join(filter(None, [carrier.key, group.name])),
        )

    def keep_usages(self, carriers: Sequence[Carrier]) -> None:
        """Keep a tier as well that an engine was attached to, while a pod of it may be."""
        rolling = []
        for carrier in carriers:
            observed = carrier.observed
            if observed is None:
                continue
            if carrier.hold or not carrier.applied(observed) or _latched(observed) != carrier.latches:
                rolling.append(kube.text(observed, "metadata", "name"))
        usage.keep(self.req, self.rsp, by=rolling)

    def settle(self, carrier: Carrier) -> None:
        """Write the latches, or leave what runs as it is; what never ran does not start."""
        latches = carrier.latches
        if carrier.hold and carrier.observed is not None:
            latches = _latched(carrier.observed)
            carrier.keep()
        for template in self.observed_claims(carrier) if carrier.hold else carrier.claims:
            self.put_claim(carrier, template)
        if carrier.hold:
            self.rsp.desired.composite.ready = fnv1.READY_FALSE
        if carrier.hold and carrier.observed is None:
            del self.rsp.desired.resources[carrier.key]
        elif latches:
            metadata = carrier.desired.resource.get_or_create_struct("metadata")
            metadata.get_or_create_struct("annotations").update(latches)

    # --- report -----------------------------------------------------------------------------------------------

    def put(self, type_: str, condition: Condition) -> None:
        """Set a condition, in the words of a pod template."""
        message = condition.message
        for field_, annotation in _TERMS:
            message = message.replace(field_, annotation)
        self.conditions.put(type_, replace(condition, message=message))

    def warn(self, name: str, warnings: Sequence[tuple[str, Condition]]) -> None:
        """Note what somebody should look at, in an engine of that name."""
        for type_, condition in warnings:
            told = self.warnings.setdefault(type_, {}).setdefault(name, [])
            if condition not in told:
                told.append(condition)

    def report(self) -> None:
        """Say what became of the engines: the worst of them, by name where they are several.

        A composite none of whose engines names a tier, or did before, is none of ours.
        """
        if not self.decisions and not kube.condition(self.xr, TIER_ATTACHED)[0]:
            return
        several = len(self.decisions) > 1
        for type_, by_engine in self.warnings.items():
            found = [
                (f"{name}: {c.message}" if several else c.message, c) for name, cs in by_engine.items() for c in cs
            ]
            self.put(type_, replace(found[0][1], message="; ".join(message for message, _ in found)))
        if self.decisions:
            order = {FALSE: 0, UNKNOWN: 1, TRUE: 2}
            worst = min((d.condition for _, d in self.decisions), key=lambda c: (order[c.status], not c.warn))
            told = [f"{name}: {d.condition.message}" if several else d.condition.message for name, d in self.decisions]
            warn = any(d.condition.warn for _, d in self.decisions)
            self.put(TIER_ATTACHED, Condition(worst.status, worst.reason, "; ".join(told), warn=warn))
        self.conditions.write(self.req, self.rsp)


def _requirement(ref: TierRef) -> str:
    """Name the requirement of a tier."""
    return f"{'fleet' if ref.of_fleet else 'tier'} {ref.namespace}/{ref.name}"


def _settled(carrier: Carrier, consumer: Consumer) -> Attachment | None:
    """Leave a Job as it was made, since its template never changes; None for anything else."""
    if carrier.kind != _JOB or not consumer.runs:
        return None
    if patch := consumer.latched:
        return attachment.attached(patch)
    message = (
        "a Job's pod template never changes, so this one runs on without the tier; make another to have it attached"
    )
    return Attachment(Condition(FALSE, "JobNeverChanges", message, warn=True))


def _carrier(key: str, desired: fnv1.Resource, observed: structpb.Struct | None) -> Carrier | None:
    """See a desired resource as what carries engines; None where it carries none."""
    provider_config, inner = _manifest(desired.resource)
    if inner is None or kube.text(inner, "kind") not in templates.KINDS:
        return None
    namespace, name = (kube.text(inner, "metadata", of) for of in ("namespace", "name"))
    kind = kube.text(inner, "kind")
    return Carrier(key, desired, observed, kind, namespace, name, provider_config, templates.find(kube.plain(inner)))


def _annotated(manifest: Any) -> int:
    """Count where a manifest, or one that it carries, has the annotation that names a tier."""
    if isinstance(manifest, list):
        return sum(map(_annotated, manifest))
    if not isinstance(manifest, dict):
        return 0
    own = manifest.get("annotations")
    return (isinstance(own, dict) and annotations.TIER in own) + sum(map(_annotated, manifest.values()))


def _claim_template(desired: fnv1.Resource) -> tuple[tuple[str, str, str], kube.Manifest] | None:
    """See a desired resource as a ResourceClaimTemplate, by where it goes; None for anything else."""
    provider_config, manifest = _manifest(desired.resource)
    if manifest is None or kube.text(manifest, "kind") != claims.KIND:
        return None
    where = provider_config, kube.text(manifest, "metadata", "namespace"), kube.text(manifest, "metadata", "name")
    template = kube.plain(manifest)
    try:
        parse(ClaimTemplate, template)
    except Invalid:
        return None
    return where, template


def _manifest(struct: structpb.Struct) -> tuple[str, structpb.Struct | None]:
    """Give what an Object carries with its provider config, or a plain resource itself, which has none.

    A ProviderConfig of a namespace is none of those that InferenceClusters name, whatever it is called.
    """
    wrapped = kube.text(struct, "kind") == delivery.KIND and ".crossplane.io/" in kube.text(struct, "apiVersion")
    if not wrapped:
        return "", struct
    ref = kube.sub(struct, "spec", "providerConfigRef")
    name = kube.text(ref, "name") or _DEFAULT_CONFIG
    namespaced = kube.text(ref, "kind") == "ProviderConfig"
    return f"ProviderConfig {name}" if namespaced else name, kube.sub(struct, "spec", "forProvider", "manifest")


def _latched(observed: structpb.Struct) -> dict[str, str]:
    found = kube.sub(observed, "metadata", "annotations")
    own = {name: value.string_value for name, value in found.fields.items()} if found else {}
    return {name: value for name, value in sorted(own.items()) if name.startswith(kube.ANNOTATION_PATCH)}
