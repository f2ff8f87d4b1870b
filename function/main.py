"""The entry point: the SDK's own flags, TLS and signals around our FunctionRunner."""

from typing import Any

import click
from crossplane.function import cli as sdk

from function.fn import FunctionRunner


@click.command()
@sdk.standard_options
def cli(**options: Any) -> None:
    """Serve the KV cache offload composition function."""
    sdk.run(FunctionRunner(), **options)
