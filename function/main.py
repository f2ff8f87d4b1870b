"""The entry point: the SDK's own flags, TLS and signals around our function."""

from typing import Any

import click
from crossplane.function import cli as sdk

from function import server
from function.fn import FunctionRunner
from function.replay import Replay


@click.command()
@sdk.standard_options
@click.option(
    "--replay-mib",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    envvar="REPLAY_MIB",
    help="MiB of answers to remember, for composites that have not changed; 0 composes every request anew.",
)
@click.option(
    "--trust-resource-versions",
    is_flag=True,
    envvar="TRUST_RESOURCE_VERSIONS",
    help="Take a resource of the same resourceVersion for the same, as it is where Crossplane alone calls.",
)
def cli(replay_mib: int, *, trust_resource_versions: bool, **options: Any) -> None:
    """Serve the KV cache offload composition function."""
    if not options["insecure"] and options["tls_certs_dir"] is None:
        raise click.UsageError("no certificates: give --tls-server-certs-dir, or --insecure to serve without TLS")
    if replay_mib:
        server.run(Replay(replay_mib << 20, trusting=trust_resource_versions), **options)
    else:
        sdk.run(FunctionRunner(), **options)
