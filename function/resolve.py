"""Required resources and their three states."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from crossplane.function import response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import kube


class State(Enum):
    """What Crossplane told us about a required resource."""

    UNRESOLVED = "unresolved"  # not looked up yet: Crossplane will call again
    ABSENT = "absent"  # looked up, and not there
    PRESENT = "present"


@dataclass(frozen=True)
class Found:
    """A required resource: its state and, when present, the resource itself."""

    state: State
    resource: structpb.Struct | None = None

    @property
    def present(self) -> bool:
        """Whether the resource is there to be read."""
        return self.state is State.PRESENT


@dataclass(frozen=True)
class Reference:
    """What is required: one resource by name."""

    api_version: str
    kind: str
    name: str
    namespace: str | None = None

    def __str__(self) -> str:
        """Show it as messages do: Kind namespace/name."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


def require(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, key: str, ref: Reference) -> Found:
    """Declare a requirement and tell its state.

    Args:
        req: The request; earlier rounds' answers are in it.
        rsp: The response; the requirement is written to it on every call, or the rounds would never end.
        key: The requirement's name.
        ref: The resource wanted.

    Returns:
        UNRESOLVED, ABSENT or PRESENT. An answer for another name than the one wanted now counts as unresolved.
    """
    response.require_resources(rsp, key, ref.api_version, ref.kind, match_name=ref.name, namespace=ref.namespace)
    if key not in req.required_resources:
        return Found(State.UNRESOLVED)
    items = req.required_resources[key].items
    if not items:
        return Found(State.ABSENT)
    if kube.text(items[0].resource, "metadata", "name") != ref.name:
        return Found(State.UNRESOLVED)
    return Found(State.PRESENT, items[0].resource)


def require_all(  # noqa: PLR0917
    req: fnv1.RunFunctionRequest,
    rsp: fnv1.RunFunctionResponse,
    key: str,
    api_version: str,
    kind: str,
    labels: Mapping[str, str],
) -> list[structpb.Struct] | None:
    """Declare a requirement of everything with these labels, in all namespaces; None while it is unresolved."""
    response.require_resources(rsp, key, api_version, kind, match_labels=dict(labels))
    return [i.resource for i in req.required_resources[key].items] if key in req.required_resources else None
