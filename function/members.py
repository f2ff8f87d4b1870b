"""Reads the pod templates of one engine: what they ask for, which engine they run, and whether they agree."""

import re
from collections.abc import Mapping
from dataclasses import replace

from function import kube
from function.api import Invalid, annotations, parse
from function.api.template import Template
from function.attachment import HIDES_ARGS, hides_args
from function.engines import Engine, identity, kv_transfer, pod
from function.engines.kind import Kind
from function.templates import Group, Member

NO_TEMPLATE = "InvalidTemplate"


class Unreadable(Exception):
    """Pod templates of which nobody can tell what they ask for; the text says what to mend."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the condition's reason beside its message."""
        super().__init__(message)
        self.reason = reason


def read(group: Group, *, owner: tuple[str, ...], workload: str) -> tuple[annotations.Written, str, Engine]:
    """Read what an engine's pod templates ask for, and see the engine as backends do.

    Args:
        group: The pod templates of one engine.
        owner: Whose it is, and so what tells its model from another one at the same path.
        workload: The composition-resource-name of what has these templates.

    Returns:
        What its annotations ask for, the name of its container, and the engine.

    Raises:
        Invalid: an annotation is wrong.
        Unreadable: the templates do not agree, or which engine it is cannot be told.
    """
    first, *rest = group.members
    for member in group.members:
        try:
            parse(Template, member.template)
        except Invalid as e:
            text = re.sub(r"spec\.(spec|metadata)", r"\1", str(e))
            raise Unreadable(NO_TEMPLATE, f"the pod template of {member.name} is wrong: {text}") from None
    for other in rest:
        if _own(first.annotations) != _own(other.annotations):
            raise Unreadable(
                "MembersDisagree",
                f"{first.name} and {other.name} have different annotations {annotations.PREFIX}...; give all "
                "members of an engine the same",
            )
    asked = annotations.read(first.annotations)
    container = _engine_container(first, asked.container)
    kind = pod.KINDS[asked.engine] if asked.engine else pod.kind_of(container_of(first, container))
    if kind is None:
        raise Unreadable(
            "EngineUnknown",
            f"neither the command nor the image of container {container!r} tells which engine it is; set "
            f"annotation {annotations.PREFIX}engine to {' or '.join(pod.KINDS)}",
        )
    said = pod.Said(owner, asked.version, asked.identity, asked.role, workload=workload, pods=group.pods)
    views = [
        pod.view(kind, container_of(member, container), replace(said, pod=member.template["spec"]))
        for member in group.members
    ]
    for member, view in zip(group.members, views, strict=True):
        # A member that joins a Ray cluster runs what its leader starts; of a leader that does nobody knows what.
        joins = pod.joins(container_of(member, container))
        if joins if member is first else view.line.hidden and not joins:
            raise Unreadable(HIDES_ARGS, hides_args(member.name))
        # Flags of a leader that cannot be read disagree with nothing; that they are hidden is said of any engine.
        if different := _different(kind, views[0], view, flags=not (joins or views[0].line.hidden)):
            raise Unreadable(
                "MembersDisagree",
                f"{first.name} and {member.name} have different {different}; give all members of an engine the same",
            )
    # The leader of a gang may have no devices.
    return asked, container, replace(views[0], dra=any(view.dra for view in views))


def _own(found: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if name.startswith(annotations.PREFIX)}


def _different(kind: Kind, one: Engine, other: Engine, *, flags: bool) -> str:
    """Say in what two members of an engine differ that must not, in their `flags` only where both have them."""
    if one.version != other.version:
        return "versions of the engine"
    if not flags:
        return ""
    if identity.model(kind, one.line) != identity.model(kind, other.line):
        return "models"
    if kind.layout(one.line) != kind.layout(other.line):
        return "parallelism"
    if kind.kv_transfer and kv_transfer.of(one.line) != kv_transfer.of(other.line):
        return kv_transfer.FLAG
    mine, theirs = (identity.options(kind, engine.line) for engine in (one, other))
    return ", ".join(sorted({name for name, _ in mine.items() ^ theirs.items()}))


def container_of(member: Member, name: str) -> kube.Manifest:
    """Give a member's container by its name; Unreadable where it has none."""
    for container in member.template["spec"]["containers"]:
        if container.get("name") == name:
            return dict(container)
    raise Unreadable(
        "ContainerNotFound", f"among the containers of {member.name} is no {name!r}; give every member one of that name"
    )


def _engine_container(member: Member, name: str | None) -> str:
    """Name the engine's container: as the annotation says, else `engine`, else the only one."""
    names = [str(c.get("name")) for c in member.template["spec"]["containers"]]
    wanted = name
    if name is None:
        name = pod.CONTAINER if pod.CONTAINER in names else names[0] if len(names) == 1 else None
    if name not in names:
        raise Unreadable(
            "ContainerNotFound",
            f"the containers of {member.name} are {', '.join(names)}; set annotation {annotations.PREFIX}container"
            f"{f' (is {wanted!r})' if wanted else ''} to the engine's",
        )
    return name
