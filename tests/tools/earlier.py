"""An earlier step of a pipeline, as a server: it desires what the example `modelplane` says that Modelplane's does."""

from typing import Any

import click
from crossplane.function import cli as sdk
from crossplane.function import resource, response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

from function.render import EXAMPLES, by_key, load


class Earlier(grpcv1.FunctionRunnerServiceServicer):
    async def RunFunction(self, req: fnv1.RunFunctionRequest, _: object) -> fnv1.RunFunctionResponse:  # noqa: N802
        rsp = response.to(req)
        for key, manifest in by_key(load(EXAMPLES / "modelplane" / "desired.yaml")).items():
            resource.update(rsp.desired.resources[key], manifest)
        return rsp


@click.command()
@sdk.standard_options
def cli(**options: Any) -> None:
    sdk.run(Earlier(), **options)


if __name__ == "__main__":
    cli()
