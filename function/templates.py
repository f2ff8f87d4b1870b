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
    """One pod template: what it is called, its path in the workload's manifest, and itself."""

    name: str
    path: tuple[str | int, ...]
    template: kube.Manifest

    @property
    def annotations(self) -> kube.Manifest:
        """The annotations of its pods."""
        return (self.template.get("metadata") or {}).get("annotations") or {}


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
    kind, spec = workload.get("kind"), workload.get("spec") or {}
    if kind in _PLAIN:
        return _group(workload, [("pods", ("spec", "template"))])
    if kind == _GANG:
        base = ("spec", "leaderWorkerTemplate")
        gang = spec.get("leaderWorkerTemplate") or {}
        leader = [("the leader", (*base, "leaderTemplate"))] if gang.get("leaderTemplate") else []
        return _group(workload, [*leader, ("the workers", (*base, "workerTemplate"))], pods=gang.get("size") or 1)
    if kind != _ROLES:
        return []
    found = []
    for at, role in enumerate(spec.get("roles") or ()):
        pattern = ("standalonePattern",) if role.get("standalonePattern") else ()
        # What a role's patches make of its template is the group's controller's to know.
        if not role.get("leaderWorkerSet") and not role.get("leaderWorkerPattern"):
            found += _group(
                workload, [("pods", ("spec", "roles", at, *pattern, "template"))], name=role.get("name", "")
            )
    return found


def _group(
    workload: kube.Manifest, places: Sequence[tuple[str, tuple[str | int, ...]]], *, pods: int = 1, name: str = ""
) -> list[Group]:
    members = []
    for called, path in places:
        template: Any = workload
        for step in path:
            template = template[step] if isinstance(step, int) else (template.get(step) or {})
        if (template.get("spec") or {}).get("containers"):
            members.append(Member(called, path, template))
    return [Group(members, pods, name)] if members else []
