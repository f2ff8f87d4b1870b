"""Applies an EnginePatch to a pod template. The user's value wins, and what the user wrote keeps its order."""

from collections.abc import Sequence
from typing import Any

from function import kube, placement
from function.backends.base import EnginePatch


def apply(template: kube.Manifest, patch: EnginePatch, container: str) -> tuple[kube.Manifest, list[str]]:
    """Attach a pod template.

    Args:
        template: The pod template; it is not changed.
        patch: What to add.
        container: The engine container's name.

    Returns:
        The attached template, and the names of variables that the user had set and that therefore stay the user's.
        Where the template holds what the patch would add, nothing is added twice.
    """
    metadata = dict(template.get("metadata", {}))
    metadata["labels"] = {**patch.labels, **metadata.get("labels", {})}
    metadata["annotations"] = {**patch.annotations, **metadata.get("annotations", {})}
    pod = dict(template["spec"])
    overridden: list[str] = []
    pod["containers"] = [_container(c, patch, overridden) if c["name"] == container else c for c in pod["containers"]]
    pod["volumes"] = _add(pod.get("volumes", ()), patch.volumes, "name")
    pod["nodeSelector"] = {**patch.node_selector, **pod.get("nodeSelector", {})}
    pod["tolerations"] = [
        *pod.get("tolerations", ()),
        *(t for t in patch.tolerations if t not in pod.get("tolerations", ())),
    ]
    pod["resourceClaims"] = _add(pod.get("resourceClaims", ()), patch.claims, "name")
    if patch.host_network:
        pod = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", **pod}
    if patch.affinity and "affinity" not in pod:
        pod["affinity"] = placement.affinity(patch.affinity)
    return {"metadata": kube.prune(metadata), "spec": kube.prune(pod)}, overridden


def _container(container: kube.Manifest, patch: EnginePatch, overridden: list[str]) -> kube.Manifest:
    env = container.get("env", ())
    users = {e["name"]: e for e in env}
    overridden += [e["name"] for e in patch.env if e["name"] in users and users[e["name"]] != e]
    ours = [e for e in patch.env if e["name"] not in users]
    args = list(container.get("args", ()))
    if list(patch.args) and args[-len(patch.args) :] != list(patch.args):
        args += patch.args
    resources = dict(container.get("resources", {}))
    # An extended resource has one number, which is both, so a user's in one place is the user's in both.
    taken = {**resources.get("requests", {}), **resources.get("limits", {})}
    nics = {name: amount for name, amount in patch.resources.items() if name not in taken}
    resources["requests"] = {**nics, **resources.get("requests", {})}
    resources["limits"] = {**nics, **resources.get("limits", {})}
    resources["claims"] = _add(resources.get("claims", ()), [{"name": c["name"]} for c in patch.claims], "name")
    security = dict(container.get("securityContext", {}))
    if patch.capabilities:
        capabilities = security.get("capabilities", {})
        added = [*capabilities.get("add", ()), *(c for c in patch.capabilities if c not in capabilities.get("add", ()))]
        security["capabilities"] = {**capabilities, "add": added}
    return kube.prune(
        {
            **container,
            "ports": _add(container.get("ports", ()), patch.ports, "name"),
            "resources": kube.prune(resources),
            "securityContext": security,
            "args": args,
            # Ours come first, so that the user's may refer to them by $(NAME).
            "env": [*ours, *env],
            "volumeMounts": _add(container.get("volumeMounts", ()), patch.mounts, "mountPath"),
        }
    )


def _add(existing: Sequence[Any], new: Sequence[Any], key: str) -> list[Any]:
    """Append what does not clash by key."""
    taken = {e[key] for e in existing}
    return [*existing, *(n for n in new if n[key] not in taken)]
