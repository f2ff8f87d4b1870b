"""The control plane's cluster network: reaches Services that run as processes on this machine.

A proxy that is asked to CONNECT to a Service, by name or by cluster IP, and connects to the process behind it. It
stands for cluster DNS, kube-proxy and the pod network. TLS goes through it untouched, so certificates are checked.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from tests.e2e.processes import free_port

Route = Callable[[str, int], int | None]


class Network:
    """The proxy, at a port for programs (HTTPS_PROXY) and at a socket for API servers (an egress selector)."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.socket = folder / "network.sock"
        self.route: Route = lambda host, port: None  # noqa: ARG005
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    @property
    def proxy(self) -> str:
        """What HTTPS_PROXY is to be. Go never asks a proxy for what is on the loopback."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start answering."""
        self.socket.unlink(missing_ok=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)

    def stop(self) -> None:
        """Stop; open connections end with the programs that have them."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self) -> None:
        await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        await asyncio.start_unix_server(self._connect, self.socket)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            host, _, port = request.split()[1].rpartition(":")
            # Finding the way asks an API server, which may take its time.
            target = await asyncio.to_thread(self.route, host, int(port))
            if target is None:
                writer.write(b"HTTP/1.1 503 Nobody is there\r\n\r\n")
                await writer.drain()
                return
            there, back = await asyncio.open_connection("127.0.0.1", target)
            with contextlib.closing(back):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what is read until its end; then the other side is told of the end."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            writer.close()
