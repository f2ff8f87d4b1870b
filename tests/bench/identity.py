"""The SDK's identity function as a server: what every Python function pays at least."""

from typing import Any

import click
from crossplane.function import cli as sdk
from crossplane.function import response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1


class Identity(grpcv1.FunctionRunnerServiceServicer):
    async def RunFunction(self, req: fnv1.RunFunctionRequest, _: object) -> fnv1.RunFunctionResponse:  # noqa: N802
        return response.to(req)


@click.command()
@sdk.standard_options
def cli(**options: Any) -> None:
    sdk.run(Identity(), **options)


if __name__ == "__main__":
    cli()
