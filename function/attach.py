"""Applies an EnginePatch to a pod template. The user's value wins, and what the user wrote keeps its order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from function import claims, kube, memory, placement
from function.backends.base import EnginePatch
from function.engines import kv_transfer


def apply(
    template: kube.Manifest,
    patch: EnginePatch,
    container: str,
    *,
    flags: bool = True,
    claim: claims.Claim | None = None,
) -> tuple[kube.Manifest, list[str]]:
    """Attach a pod template.

    Args:
        template: The pod template; it is not changed.
        patch: What to add.
        container: The engine container's name.
        flags: Whether the container takes the engine's flags: one that only joins a Ray cluster does not.
        claim: What it claims the patch's devices by.

    Returns:
        The attached template, and the names of variables that the user had set and that therefore stay the user's.
        Where the template holds what the patch would add, nothing is added twice.
    """
    metadata = template.get("metadata", {})
    pod = template["spec"]
    overridden: list[str] = []
    if memory.said(pod):
        # For all its containers: none of them may ask for more.
        patch = replace(patch, memory=0)
    containers = [
        _container(c, patch, overridden, flags=flags, claim=claim) if c["name"] == container else c
        for c in pod["containers"]
    ]
    # The engine's own claim, where NICs have joined it, is of another template.
    joined = claim.entry if claim and claim.name != claims.NAME else {}
    users = [joined if joined.get("name") == c["name"] else c for c in pod.get("resourceClaims", ())]
    if patch.host_network:
        pod = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", **pod}
    tolerations = pod.get("tolerations", ())
    return {
        **template,
        "metadata": _with(
            metadata,
            labels={**patch.labels, **metadata.get("labels", {})},
            annotations={**patch.annotations, **metadata.get("annotations", {})},
        ),
        "spec": _with(
            pod,
            initContainers=_add(pod.get("initContainers", ()), _init_containers(pod, patch, container), "name"),
            containers=containers,
            volumes=_add(pod.get("volumes", ()), patch.volumes, "name"),
            nodeSelector={**patch.node_selector, **pod.get("nodeSelector", {})},
            tolerations=[*tolerations, *(t for t in patch.tolerations if t not in tolerations)],
            resourceClaims=_add(users, [claim.entry] if claim else (), "name"),
            affinity=_affinity(pod.get("affinity", {}), patch),
        ),
    }, overridden


def taken(template: kube.Manifest, patch: EnginePatch, container: str) -> str:
    """Say what of a pod template has a name, or a path, that the patch needs for something else; empty for nothing."""
    pod = template["spec"]
    engine: kube.Manifest = next((c for c in pod["containers"] if c.get("name") == container), {})
    users_claims = [c for c in pod.get("resourceClaims", ()) if not claims.is_own(c, patch.devices)]
    needed = (
        ("init container", "name", pod.get("initContainers", ()), _init_containers(pod, patch, container)),
        ("volume", "name", pod.get("volumes", ()), patch.volumes),
        ("resource claim", "name", users_claims, [{"name": claims.NAME}] if patch.devices else ()),
        ("port", "name", engine.get("ports", ()), patch.ports),
        ("mount at", "mountPath", engine.get("volumeMounts", ()), patch.mounts),
    )
    for what, key, users, ours in needed:
        named = {entry.get(key): entry for entry in users}
        for entry in ours:
            if named.get(entry[key], entry) != entry:
                return f"the pod has a {what} {entry[key]!r} of its own, and the tier needs another one of that name"
    return ""


def _with(base: kube.Manifest, **fields: Any) -> kube.Manifest:
    """Set fields, but leave out what says nothing, unless the user has said just that."""
    return {**base, **{name: value for name, value in fields.items() if value or name in base}}


def _init_containers(pod: kube.Manifest, patch: EnginePatch, container: str) -> list[kube.Manifest]:
    """Give the patch's init containers the engine's own image; they run after all that the user has the pod do."""
    image = next((c.get("image", "") for c in pod["containers"] if c["name"] == container), "")
    return [{**init, "image": image} for init in patch.init_containers]


def _affinity(users: kube.Manifest, patch: EnginePatch) -> kube.Manifest:
    """Let the engine follow its tier, where the user does not say which nodes it needs."""
    wanted = placement.affinity(patch.affinity)
    nodes = users.get("nodeAffinity", {})
    if not wanted or "requiredDuringSchedulingIgnoredDuringExecution" in nodes:
        return users
    return {**users, "nodeAffinity": {**nodes, **wanted["nodeAffinity"]}}


def _container(
    container: kube.Manifest, patch: EnginePatch, overridden: list[str], *, flags: bool, claim: claims.Claim | None
) -> kube.Manifest:
    env = container.get("env", ())
    users = {e["name"]: e for e in env}
    overridden += [e["name"] for e in patch.env if e["name"] in users and users[e["name"]] != e]
    ours = [e for e in patch.env if e["name"] not in users]
    command, args = _words(container, patch) if flags else (container.get("command", ()), container.get("args", ()))
    resources = container.get("resources", {})
    # An extended resource has one number, which is both, so a user's in one place is the user's in both.
    taken = {**resources.get("requests", {}), **resources.get("limits", {})}
    nics = {name: amount for name, amount in patch.resources.items() if name not in taken}
    security = container.get("securityContext", {})
    if patch.capabilities:
        capabilities = security.get("capabilities", {})
        added = [*capabilities.get("add", ()), *(c for c in patch.capabilities if c not in capabilities.get("add", ()))]
        security = {**security, "capabilities": {**capabilities, "add": added}}
    return _with(
        container,
        ports=_add(container.get("ports", ()), patch.ports, "name"),
        resources=_with(
            resources,
            requests={**nics, **memory.requests(resources, patch), **resources.get("requests", {})},
            limits={**nics, **resources.get("limits", {})},
            claims=_add(resources.get("claims", ()), [{"name": claim.name}] if claim else (), "name"),
        ),
        securityContext=security,
        command=command,
        args=args,
        # Ours come first, so that the user's may refer to them by $(NAME).
        env=[*ours, *env],
        volumeMounts=_add(container.get("volumeMounts", ()), patch.mounts, "mountPath"),
    )


def _words(container: kube.Manifest, patch: EnginePatch) -> tuple[list[str], list[str]]:
    """Give the container's command and args with the patch's: its connector beside the user's, and its flags last."""
    command, args = list(container.get("command", ())), list(container.get("args", ()))
    if patch.kv_transfer:
        config = kv_transfer.beside(kv_transfer.read([*command, *args]), patch.kv_transfer)
        command, args = kv_transfer.write(command, args, config)
    if patch.args and list(args[-len(patch.args) :]) != list(patch.args):
        args += patch.args
    return command, args


def _add(existing: Sequence[Any], new: Sequence[Any], key: str) -> list[Any]:
    """Append what does not clash by key; entries of the user's that have none, such as ports, never do."""
    taken = {e.get(key) for e in existing}
    return [*existing, *(n for n in new if n[key] not in taken)]
