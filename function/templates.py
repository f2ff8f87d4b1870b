"""Finds the pod templates of a workload: those of one engine belong together, a leader and its workers for example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from function import kube

# Kinds whose pods all come from spec.template.
_PLAIN = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"})
_GANG = "LeaderWorkerSet"
_ROLES = "RoleBasedGroup"
KINDS = _PLAIN | {_GANG, _ROLES}


@dataclass(frozen=True)
class Member:
    """One pod template: what it is called, its path in the workload's manifest, and itself.

    Fields that are null are left out of it, which is what they mean to Kubernetes.
    """

    name: str
    path: tuple[str | int, ...]
    template: kube.Manifest

    @property
    def annotations(self) -> kube.Manifest:
        """The annotations of its pods."""
        return _object(self.template, "metadata", "annotations")


@dataclass(frozen=True)
class Group:
    """The pod templates that one engine runs in, the one that serves first.

    `name` tells it from other engines of the workload; empty where there is one. `pods` is how many it runs in.
    """

    members: Sequence[Member]
    pods: int = 1
    name: str = ""


def find(workload: kube.Manifest) -> list[Group]:
    """Find the engines' pod templates of a workload; none in a kind that has none, or that puts them together itself.

    A LeaderWorkerSet without a leaderTemplate runs its leader by the workerTemplate. Of a RoleBasedGroup, each role
    with a template of its own is an engine.
    """
    kind = workload.get("kind")
    if kind in _PLAIN:
        return _group(workload, [("pods", ("spec", "template"))])
    if kind == _GANG:
        base = ("spec", "leaderWorkerTemplate")
        gang = _object(workload, *base)
        leader = [("the leader", (*base, "leaderTemplate"))] if gang.get("leaderTemplate") else []
        size = gang.get("size")
        pods = size if isinstance(size, int) else 1
        return _group(workload, [*leader, ("the workers", (*base, "workerTemplate"))], pods=pods)
    if kind != _ROLES:
        return []
    found = []
    roles = _object(workload, "spec").get("roles")
    for at, role in enumerate(roles if isinstance(roles, list) else ()):
        # What a role's patches make of its template is the group's controller's to know.
        if not isinstance(role, dict) or role.get("leaderWorkerSet") or role.get("leaderWorkerPattern"):
            continue
        pattern = ("standalonePattern",) if role.get("standalonePattern") else ()
        name = role.get("name")
        place = ("pods", ("spec", "roles", at, *pattern, "template"))
        found += _group(workload, [place], name=name if isinstance(name, str) else "")
    return found


def _group(
    workload: kube.Manifest, places: Sequence[tuple[str, tuple[str | int, ...]]], *, pods: int = 1, name: str = ""
) -> list[Group]:
    members = []
    for called, path in places:
        template = _object(workload, *path)
        if _object(template, "spec").get("containers"):
            members.append(Member(called, path, _said(template)))
    return [Group(members, pods, name)] if members else []


def _object(value: Any, *path: str | int) -> kube.Manifest:
    """Find an object by its path; empty where something else is there, as in a kind of the same name elsewhere."""
    for step in path:
        value = value[step] if isinstance(step, int) else _object(value).get(step)
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> Any:
    """Leave out fields that are null."""
    if isinstance(value, dict):
        return {name: _said(inner) for name, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value
