"""Writes a composite's status and readiness, which are replaced as a whole on every run."""

from collections.abc import Iterable
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import kube


def carried(req: fnv1.RunFunctionRequest, names: Iterable[str]) -> dict[str, Any]:
    """Read fields of the observed status, to write them again where nothing newer is known; None where they are not."""
    was = kube.sub(req.observed.composite.resource, "status")
    values = {name: kube.at(was, name) for name in names}
    return {name: None if value is None else kube.plain(value) for name, value in values.items()}


def write(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, status: kube.Manifest, *, ready: bool) -> None:
    """Write status and readiness beside what earlier pipeline steps wrote.

    Args:
        req: The request.
        rsp: The response.
        status: Our fields; None and empty values are left out, and the spec's generation is added.
        ready: Whether all of ours is ready; an earlier step's "not ready" stands.
    """
    composite = rsp.desired.composite
    earlier = kube.sub(composite.resource, "status")
    generation = kube.integer(req.observed.composite.resource, "metadata", "generation") or None
    ours = kube.prune({"observedGeneration": generation, **status})
    written = {**(kube.plain(earlier) if earlier else {}), **ours}
    kube.write(written, to=composite.resource.get_or_create_struct("status"))
    if composite.ready != fnv1.READY_FALSE:
        composite.ready = fnv1.READY_TRUE if ready else fnv1.READY_FALSE
