"""Usages: what is in use cannot be deleted, and Crossplane says by whom."""

from crossplane.function import resource
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import kube

API_VERSION = "protection.crossplane.io/v1beta1"
KIND = "Usage"

# What of a Usage is written here; the rest is Crossplane's.
_OURS = ("of", "reason", "replayDeletion")


def protect(rsp: fnv1.RunFunctionResponse, used: kube.Manifest, name: str, user: str) -> None:
    """Keep something of the composite's own namespace from being deleted while the composite is there.

    It has a reason and no `by`: a Usage by its own composite would wait for it, and it for the Usage, at deletion.

    Args:
        rsp: The response.
        used: apiVersion, kind and name of what is used.
        name: The name of the composite that uses it.
        user: Who uses it, as people write it.
    """
    target = rsp.desired.resources[f"uses-{used['name']}"]
    reference = {
        "apiVersion": used["apiVersion"],
        "kind": used["kind"],
        "resourceRef": {"name": used["name"]},
    }
    desired = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": kube.child_name("uses", name, used["name"]), "labels": dict(kube.MANAGED_BY)},
        "spec": {"of": reference, "reason": f"{user} uses it", "replayDeletion": True},
    }
    resource.update(target, desired)
    target.ready = fnv1.READY_TRUE


def keep(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Desire every observed Usage as it is: a wrong spec must not let go of what is in use."""
    for key, observed in sorted(req.observed.resources.items()):
        if kube.text(observed.resource, "kind") != KIND or not key.startswith("uses-"):
            continue
        spec = kube.sub(observed.resource, "spec")
        desired = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": kube.text(observed.resource, "metadata", "name"), "labels": dict(kube.MANAGED_BY)},
            "spec": kube.prune({f: v for f, v in (kube.plain(spec) if spec else {}).items() if f in _OURS}),
        }
        resource.update(rsp.desired.resources[key], desired)
        rsp.desired.resources[key].ready = fnv1.READY_TRUE
