"""Serves RunFunction by its bytes, which are the same for v1 and v1beta1: the SDK's server, for Replay."""

import asyncio
import signal
from typing import Any

import grpc
from crossplane.function import logging, runtime
from grpc_reflection.v1alpha import reflection

from function import lazy
from function.replay import Replay

_MIB = 1 << 20


def run(
    replay: Replay,
    *,
    debug: bool,
    address: str,
    tls_certs_dir: str | None,
    insecure: bool,
    max_recv_message_size: int,
    max_send_message_size: int | None,
) -> None:
    """Serve until SIGTERM, by the options of the SDK's `cli.run`."""
    logging.configure(level=logging.Level.DEBUG if debug else logging.Level.INFO)
    options = [
        ("grpc.max_receive_message_length", max_recv_message_size * _MIB),
        ("grpc.max_send_message_length", (max_send_message_size or max_recv_message_size) * _MIB),
    ]
    credentials = runtime.load_credentials(tls_certs_dir) if tls_certs_dir and not insecure else None
    asyncio.run(_serve(replay, address, credentials, options))


async def _serve(
    replay: Replay, address: str, credentials: grpc.ServerCredentials | None, options: list[tuple[str, Any]]
) -> None:
    server = grpc.aio.server(options=options)
    for service in runtime.SERVICE_NAMES[1:]:
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            _handler(replay), request_deserializer=lazy.Request
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"RunFunction": handler})])
    reflection.enable_server_reflection(runtime.SERVICE_NAMES, server)  # type: ignore[no-untyped-call]
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.stop(runtime.SHUTDOWN_GRACE_PERIOD_SECONDS)


def _handler(replay: Replay) -> Any:
    async def answer(req: lazy.Request, _: object) -> bytes:
        return replay.answer(req)

    return answer
