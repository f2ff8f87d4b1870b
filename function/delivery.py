"""Puts Parts on an inference cluster: one provider-kubernetes Object each, and what is read back from it.

What is absent from desired after a run is deleted, so everything observed either gets a new manifest or is kept.
An Object never changes its provider config: that would start a second copy on another cluster and forget the first.
"""

from dataclasses import dataclass

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import claims, kube
from function.backends.base import Part

API_VERSION = "kubernetes.m.crossplane.io/v1alpha1"
KIND = "Object"
CONFIG_KIND = "ClusterProviderConfig"

# What a cluster may not have, and what to do then.
_UNKNOWN_KINDS = {
    "ResourceClaimTemplate": "it needs Kubernetes 1.34 or newer; before, set spec.rdma.extendedResource instead of dra",
    "PodMonitor": "it needs prometheus-operator's CRDs; without them remove spec.monitoring",
    "PrometheusRule": "it needs prometheus-operator's CRDs; without them remove spec.monitoring",
    "KVCache": "it needs AIBrix on the cluster, its CRDs and its controller",
}


# What the provider does with a part that somebody else makes, and what it says while nobody has.
_LOOK = ["Observe"]
_ABSENT = "external resource does not exist"


@dataclass(frozen=True)
class Delivered:
    """What is known of one part on the cluster.

    `kind` is its manifest's. `observed`: its Object exists. `synced`: the last apply went through. `current`: the
    cluster holds what we want. `ready`: all of these, and the provider says Ready. `remote`: the manifest as last seen.
    `missing` says that somebody else should have made it, and has not.
    """

    name: str
    kind: str = ""
    observed: bool = False
    synced: bool = False
    current: bool = False
    ready: bool = False
    message: str = ""
    missing: str = ""
    remote: structpb.Struct | None = None


class Delivery:
    """The Objects of one composite."""

    def __init__(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, prefix: str) -> None:
        """Look at what is observed.

        Args:
            req: The request.
            rsp: The response that desired Objects are written to.
            prefix: What Object names begin with: the composite's kind and name, since kinds share a namespace.
        """
        self._rsp = rsp
        self._prefix = prefix
        self._observed: dict[str, structpb.Struct] = {
            key: observed.resource
            for key, observed in sorted(req.observed.resources.items())
            if _ours(observed.resource)
        }
        self._hashes: dict[str, str] = {}
        self.delivered: dict[str, Delivered] = {}
        # Where everything observed is, and by which provider config; empty before anything is.
        self.cluster = self._first("metadata", "annotations", kube.ANNOTATION_CLUSTER)
        self.provider_config = self._first("spec", "providerConfigRef", "name")

    def _first(self, *path: str) -> str:
        return next(filter(None, (kube.text(o, *path) for o in self._observed.values())), "")

    @property
    def exists(self) -> bool:
        """Whether anything was delivered before."""
        return bool(self._observed)

    @property
    def revision(self) -> str:
        """A hash of everything that was put: what is rolled out."""
        return kube.digest(self._hashes)[:12]

    def reference(self, part: str, cluster: str) -> kube.Manifest:
        """Name a part's Object, as others refer to it: apiVersion, kind and name."""
        name = kube.child_name(*self._prefix.split("/"), part, cluster)
        return {"apiVersion": API_VERSION, "kind": KIND, "name": name}

    def observed(self, part: str, cluster: str) -> structpb.Struct | None:
        """Find a part's observed Object."""
        return self._observed.get(_key(part, cluster))

    def put(self, part: Part, cluster: str, provider_config: str) -> Delivered:
        """Deliver a part.

        Args:
            part: The part.
            cluster: The InferenceCluster's name.
            provider_config: The ClusterProviderConfig's name, for an Object that does not exist yet.

        Returns:
            What is known of it now.
        """
        key = _key(part.name, cluster)
        observed = self._observed.get(key)
        self._hashes[part.name] = _hash(part)
        digest, manifest = part.version, part.manifest
        if not part.maker:
            digest = self._hashes[part.name]
            metadata = part.manifest["metadata"]
            annotations = {**metadata.get("annotations", {}), kube.ANNOTATION_HASH: digest}
            manifest = {**part.manifest, "metadata": {**metadata, "annotations": annotations}}
        readiness = {"policy": "DeriveFromCelQuery", "celQuery": part.ready} if part.ready else {}
        desired = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self.reference(part.name, cluster)["name"],
                "labels": dict(kube.MANAGED_BY),
                "annotations": {kube.ANNOTATION_CLUSTER: cluster, **part.annotations},
            },
            "spec": kube.prune(
                {
                    "providerConfigRef": {
                        "kind": CONFIG_KIND,
                        "name": kube.text(observed, "spec", "providerConfigRef", "name") or provider_config,
                    },
                    # Status follows the cluster's instead of the provider's poll of ten minutes.
                    "watch": True if part.ready else None,
                    "managementPolicies": _LOOK if part.maker else [],
                    "readiness": readiness,
                    "forProvider": {"manifest": manifest},
                }
            ),
        }
        target = self._rsp.desired.resources[key]
        target.Clear()
        kube.write(desired, to=target.resource)
        return self._report(part.name, key, observed, digest, part.maker)

    def keep(self, part: str, cluster: str) -> Delivered:
        """Desire a part as it is observed; nothing where it is not."""
        key = _key(part, cluster)
        observed = self._observed.get(key)
        if observed is None:
            return Delivered(part)
        return self._keep(part, key, observed)

    def keep_claimed(self) -> None:
        """Desire ResourceClaimTemplates that are observed and not wanted any more: others' pods may claim by them."""
        for key, observed in self._observed.items():
            kind = kube.text(observed, "spec", "forProvider", "manifest", "kind")
            if kind == claims.KIND and key not in self._rsp.desired.resources:
                self._keep(key.removesuffix(f"-{self.cluster}"), key, observed)

    def keep_all(self) -> None:
        """Desire everything that was delivered before, as it is observed."""
        for key, observed in self._observed.items():
            self._keep(key.removesuffix(f"-{self.cluster}"), key, observed)

    def _keep(self, part: str, key: str, observed: structpb.Struct) -> Delivered:
        """Desire an Object's own fields again; the provider's and the API server's defaults stay theirs."""
        desired = structpb.Struct()
        desired["apiVersion"] = API_VERSION
        desired["kind"] = KIND
        metadata = desired.get_or_create_struct("metadata")
        metadata["name"] = kube.text(observed, "metadata", "name")
        metadata.get_or_create_struct("labels").update(kube.MANAGED_BY)
        found = kube.sub(observed, "metadata", "annotations")
        own = {k: v.string_value for k, v in (found.fields.items() if found else ()) if k.startswith(kube.DOMAIN)}
        metadata.get_or_create_struct("annotations").update({**own, kube.ANNOTATION_CLUSTER: self.cluster})
        spec = desired.get_or_create_struct("spec")
        watch = kube.at(observed, "spec", "watch")
        if watch is not None and watch.bool_value:
            spec["watch"] = True
        for field in ("providerConfigRef", "readiness", "forProvider"):
            if (held := kube.sub(observed, "spec", field)) is not None:
                kube.copy(held, to=spec.get_or_create_struct(field))
        # Without it the provider would take what others have made for its own.
        if _looked_at(observed):
            spec.get_or_create_list("managementPolicies").extend(_LOOK)
        # A default that the API server wrote, where we wrote none.
        if "readiness" in spec.fields and not kube.text(spec, "readiness", "celQuery"):
            del spec.fields["readiness"]
        target = self._rsp.desired.resources[key]
        target.Clear()
        target.resource.CopyFrom(desired)
        return self._report(part, key, observed, _wanted_hash(observed))

    def _report(self, part: str, key: str, observed: structpb.Struct | None, digest: str, maker: str = "") -> Delivered:
        kind = kube.text(self._rsp.desired.resources[key].resource, "spec", "forProvider", "manifest", "kind")
        if observed is None:
            found = Delivered(part, kind)
        else:
            status, reason, message = kube.condition(observed, "Synced")
            remote = kube.sub(observed, "status", "atProvider", "manifest")
            if _looked_at(observed):
                held = kube.text(remote, "spec", "template", "metadata", "annotations", kube.ANNOTATION_CONFIG)
                current = remote is not None and digest in ("", held)
            else:
                current = kube.text(remote, "metadata", "annotations", kube.ANNOTATION_HASH) == digest
            current = current and _settled(remote)
            synced, missing = status == "True", ""
            ready = synced and current and kube.condition(observed, "Ready")[0] == "True"
            failed = f"{kube.text(observed, 'metadata', 'name')}: {message or reason}" if status == "False" else ""
            if f'no matches for kind "{kind}"' in message and kind in _UNKNOWN_KINDS:
                failed += f"; {_UNKNOWN_KINDS[kind]}"
            if _looked_at(observed) and _ABSENT in message:
                # The cluster has answered, and takes what is sent.
                name = kube.text(observed, "spec", "forProvider", "manifest", "metadata", "name")
                who = maker or "Whoever makes it"
                missing = (
                    f"{who} has not made {kind} {name} yet; where this stays so, look whether it runs on the cluster"
                )
                synced, failed, current, remote = True, "", False, None
            found = Delivered(
                part,
                kind,
                observed=True,
                synced=synced,
                current=current,
                ready=ready,
                message=failed,
                missing=missing,
                remote=remote,
            )
        if found.ready:
            self._rsp.desired.resources[key].ready = fnv1.READY_TRUE
        self.delivered[part] = found
        return found


def _ours(observed: structpb.Struct) -> bool:
    """Tell our Objects from those of other pipeline steps; either mark is enough, should somebody remove one."""
    if kube.text(observed, "kind") != KIND:
        return False
    return bool(kube.text(observed, "metadata", "annotations", kube.ANNOTATION_CLUSTER)) or kube.managed(observed)


def _looked_at(observed: structpb.Struct) -> bool:
    """Whether an Object only looks at what somebody else makes."""
    policies = kube.at(observed, "spec", "managementPolicies")
    return policies is not None and [v.string_value for v in policies.list_value.values] == _LOOK


def _hash(part: Part) -> str:
    """Hash what a part puts on the cluster; a Secret's bytes are stood for by the part's version."""
    manifest = {k: v for k, v in part.manifest.items() if k not in ("data", "stringData") or not part.version}
    return kube.digest([manifest, part.version])[:12]


def _key(part: str, cluster: str) -> str:
    return f"{part}-{cluster}"


def _wanted_hash(observed: structpb.Struct) -> str:
    return kube.text(observed, "spec", "forProvider", "manifest", "metadata", "annotations", kube.ANNOTATION_HASH)


def _settled(remote: structpb.Struct | None) -> bool:
    """Whether a workload's controller has seen its newest spec; what has no such status always has."""
    if kube.at(remote, "status", "observedGeneration") is None:
        return True
    return kube.integer(remote, "status", "observedGeneration") >= kube.integer(remote, "metadata", "generation")
