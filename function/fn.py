"""Routes a request to the composer of its composite's kind, and does nothing else."""

from collections.abc import Callable

from crossplane.function import logging, response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

from function import cluster, deployment, fleet, kube, step, tier
from function.kube import Malformed

Compose = Callable[[fnv1.RunFunctionRequest, fnv1.RunFunctionResponse], None]

COMPOSERS: dict[str, Compose] = {
    "KVOffloadTier": tier.compose,
    "KVOffloadFleet": fleet.compose,
    "ModelDeployment": deployment.compose,
    "InferenceCluster": cluster.compose,
}


class FunctionRunner(grpcv1.FunctionRunnerServiceServicer):
    """Answers RunFunction; it holds no state between requests."""

    async def RunFunction(  # noqa: N802 (the name is the protocol's)
        self, req: fnv1.RunFunctionRequest, _: object
    ) -> fnv1.RunFunctionResponse:
        """Compose the observed composite; see `answer`."""
        return answer(req)


def answer(req: fnv1.RunFunctionRequest) -> fnv1.RunFunctionResponse:
    """Compose a request's composite, as `run` does, and log a fatal result."""
    rsp = run(req)
    if message := fatal(rsp):
        logging.get_logger().warning("fatal", tag=req.meta.tag, message=message)
    return rsp


def fatal(rsp: fnv1.RunFunctionResponse) -> str:
    """Give the message of a response's fatal result; empty where it has none."""
    return next((r.message for r in rsp.results if r.severity == fnv1.SEVERITY_FATAL), "")


def run(req: fnv1.RunFunctionRequest) -> fnv1.RunFunctionResponse:
    """Compose a request's composite. Every failure is a fatal result, because a fatal keeps everything that runs.

    Args:
        req: What Crossplane observed.

    Returns:
        The desired state. A request that cannot be understood ends in one fatal result.
    """
    rsp = response.to(req)
    kind = kube.text(req.observed.composite.resource, "kind") or "composite"
    # Any other kind's workloads are what an earlier step composed, such as those of Modelplane's ModelReplica.
    composer = COMPOSERS.get(kind, step.compose)
    try:
        composer(req, rsp)
    except Malformed as e:
        return _fatal(req, f"{kind}: {e}; nothing was changed")
    except Exception as e:  # noqa: BLE001 (a crash must keep what runs; the text of an exception may hold a secret)
        return _fatal(req, f"{kind}: internal error {_where(e)}; nothing was changed, please report it")
    return rsp


def _fatal(req: fnv1.RunFunctionRequest, message: str) -> fnv1.RunFunctionResponse:
    """Answer with nothing but what came in and one fatal result: half a composed response is worth nothing."""
    rsp = response.to(req)
    response.fatal(rsp, message)
    return rsp


def _where(e: Exception) -> str:
    """Name an exception by type and place; never by its text."""
    trace = e.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
    return f"{type(e).__name__}{place}"
