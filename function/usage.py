"""Usages: what is in use cannot be deleted, and Crossplane says by whom."""

from collections.abc import Collection, Mapping

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import kube, resolve
from function.backends.base import instance
from function.cluster import MODELPLANE

API_VERSION = "protection.crossplane.io/v1beta1"
KIND = "Usage"

ATTACHMENTS = "attachments"
_TIER = "KVOffloadTier"
# What Crossplane labels everything with that a Usage is of.
_IN_USE = "crossplane.io/in-use"

# What of a Usage is written here; the rest is Crossplane's.
_OURS = ("of", "by", "reason", "replayDeletion")


def protect(rsp: fnv1.RunFunctionResponse, used: kube.Manifest, name: str, user: str) -> None:
    """Keep something of the composite's own namespace from being deleted while the composite is there.

    It has a reason and no `by`: a Usage by its own composite would wait for it, and it for the Usage, at deletion.

    Args:
        rsp: The response.
        used: apiVersion, kind and name of what is used.
        name: The name of the composite that uses it.
        user: Who uses it, as people write it.
    """
    spec = {"of": _reference(used), "reason": f"{user} uses it", "replayDeletion": True}
    _desire(rsp, f"uses-{used['name']}", kube.child_name("uses", name, used["name"]), {}, spec)


def attach(rsp: fnv1.RunFunctionResponse, tier: str, by: kube.Manifest, *, owner: str, user: str, of: str = "") -> None:
    """Keep a tier of any namespace from being deleted while an engine is attached to it.

    Crossplane marks the tier before it looks for `by`, and looks again until that is there: so this may be composed in
    the same pass as what carries the engine.

    Args:
        rsp: The response.
        tier: The tier that the engine is attached to, as namespace/name.
        by: apiVersion, kind and name of what carries the engine, in the composite's namespace. Not the composite: the
            Usage would wait for it, and it for the Usage, at deletion.
        owner: The composite's kind and name, as in Delivery's prefix.
        user: Who uses it, as people write it.
        of: Which engine of several that the composite has.
    """
    namespace, name = tier.split("/")
    label = instance(namespace, name)
    spec = {
        "of": _reference({"apiVersion": MODELPLANE, "kind": _TIER, "name": name, "namespace": namespace}),
        "by": _reference(by),
        "reason": f"{user} is attached to it",
        "replayDeletion": True,
    }
    parts = [*owner.split("/"), *filter(None, [of]), "uses", namespace, name]
    key = "-".join(filter(None, ["uses", label, of]))
    _desire(rsp, key, kube.child_name(*parts), {kube.LABEL_TIER: label}, spec)


def keep(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, by: Collection[str] | None = None) -> None:
    """Desire observed Usages as they are: what is wrong or not known must not let go of what is in use.

    Crossplane ends at once a Usage that is not desired any more, whether or not what it is `by` goes on.

    Args:
        req: The request.
        rsp: The response; Usages that it desires already stay as desired.
        by: Only those by what has these names, such as engines that still have pods of an older revision; None for all.
    """
    for key, observed in sorted(req.observed.resources.items()):
        usage = observed.resource
        if not _is_ours(usage) or not key.startswith("uses-") or key in rsp.desired.resources:
            continue
        if by is not None and kube.text(usage, "spec", "by", "resourceRef", "name") not in by:
            continue
        label, spec = kube.text(usage, "metadata", "labels", kube.LABEL_TIER), kube.sub(usage, "spec")
        ours = kube.prune({f: v for f, v in (kube.plain(spec) if spec else {}).items() if f in _OURS})
        name = kube.text(usage, "metadata", "name")
        _desire(rsp, key, name, {kube.LABEL_TIER: label} if label else {}, ours)


def count(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> int | None:
    """Count the engines that are attached to the tier that is composed; None while nobody has looked.

    Those whose end has begun do not count.
    """
    xr = req.observed.composite.resource
    name, namespace = kube.text(xr, "metadata", "name"), kube.text(xr, "metadata", "namespace") or "default"
    label = instance(namespace, name)
    found = resolve.require_all(req, rsp, ATTACHMENTS, API_VERSION, KIND, {kube.LABEL_TIER: label})
    return None if found is None else sum(_attached(usage, namespace, name) for usage in found)


def in_use(tier: structpb.Struct) -> bool:
    """Whether a tier cannot be deleted: Crossplane's webhook goes by a label, and the tier counts for itself."""
    labelled = kube.text(tier, "metadata", "labels", _IN_USE) == "true"
    return labelled or kube.integer(tier, "status", ATTACHMENTS) > 0


def _attached(usage: structpb.Struct, namespace: str, name: str) -> bool:
    """Tell whether a Usage holds this very tier: the label is but a hash, and anybody may write it."""
    of = kube.sub(usage, "spec", "of")
    there = kube.text(of, "resourceRef", "namespace") or kube.text(usage, "metadata", "namespace")
    return (kube.text(of, "apiVersion"), kube.text(of, "kind"), kube.text(of, "resourceRef", "name"), there) == (
        MODELPLANE,
        _TIER,
        name,
        namespace,
    ) and not kube.text(usage, "metadata", "deletionTimestamp")


def _is_ours(usage: structpb.Struct) -> bool:
    """Tell our Usages from an earlier step's; either label is enough, should somebody remove one."""
    if kube.text(usage, "kind") != KIND:
        return False
    return bool(kube.text(usage, "metadata", "labels", kube.LABEL_TIER)) or kube.managed(usage)


def _reference(to: kube.Manifest) -> kube.Manifest:
    ref = {"name": to["name"], **({"namespace": to["namespace"]} if "namespace" in to else {})}
    return {"apiVersion": to["apiVersion"], "kind": to["kind"], "resourceRef": ref}


def _desire(rsp: fnv1.RunFunctionResponse, key: str, name: str, labels: Mapping[str, str], spec: kube.Manifest) -> None:
    """Desire a Usage; it is always ready, since nothing waits for a guard whose tier was deleted by force."""
    metadata = {"name": name, "labels": {**labels, **kube.MANAGED_BY}}
    target = rsp.desired.resources[key]
    kube.write({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}, to=target.resource)
    target.ready = fnv1.READY_TRUE
