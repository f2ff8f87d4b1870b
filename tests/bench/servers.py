"""Function servers under measurement: how long they take, how much CPU, and how much memory."""

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import grpc
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from tests.e2e.image import dockerfile
from tests.tools.crossplane import Server, function_server

OURS, IDENTITY = "function", "tests.bench.identity"
METHOD = "/apiextensions.fn.proto.v1.FunctionRunnerService/RunFunction"
_OPTIONS = [(f"grpc.max_{way}_message_length", 64 << 20) for way in ("receive", "send")]


@dataclass
class Target:
    """A server that answers, and where it runs on this machine its process; `certificates` for mTLS."""

    name: str
    address: str
    pid: int | None = None
    certificates: Path | None = None
    _channel: grpc.Channel | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What to present, and whom to trust; None without TLS."""
        if not self.certificates:
            return None
        ca, key, crt = ((self.certificates / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
        return grpc.ssl_channel_credentials(ca, key, crt)

    def channel(self) -> grpc.Channel:
        """Its one connection, as Crossplane keeps one."""
        if self._channel is None:
            credentials, options = self.credentials(), [*_OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
            if credentials:
                self._channel = grpc.secure_channel(self.address, credentials, options)
            else:
                self._channel = grpc.insecure_channel(self.address, options)
        return self._channel

    def _call(self) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        return self.channel().unary_unary(METHOD)

    def calls(self, requests: Sequence[bytes]) -> tuple[float, float]:
        """Send requests one after another; returns the median in ms, and the CPU per request in ms (0 elsewhere)."""
        call = self._call()
        times, before = [], self.cpu()
        for request in requests:
            start = time.perf_counter()
            call(request)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3, (self.cpu() - before) / len(requests)

    def answer(self, request: bytes) -> fnv1.RunFunctionResponse:
        """Send one request, and read what comes back."""
        return fnv1.RunFunctionResponse.FromString(self._call()(request))

    def throughput(self, requests: Sequence[bytes], concurrency: int) -> float:
        """Send requests, so many at a time; returns how many are answered in a second."""
        return asyncio.run(self._throughput(requests, concurrency))

    async def _throughput(self, requests: Sequence[bytes], concurrency: int) -> float:
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            left = iter(requests)
            await call(requests[0])

            async def worker() -> None:
                for request in left:
                    await call(request)

            start = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(concurrency)))
            return len(requests) / (time.perf_counter() - start)

    def cpu(self) -> float:
        """The time that its threads were on a CPU until now, in ms; the kernel counts it in ns."""
        if self.pid is None:
            return 0
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6

    def memory(self) -> float:
        """What it holds in memory, in MiB; 0 where it does not run here."""
        if self.pid is None:
            return 0
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    """Where servers are compiled; it goes with this process."""
    return tempfile.TemporaryDirectory()


def serve(module: str, *options: str, poll: float = 0.05) -> AbstractContextManager[Server]:
    """Run a server as an image does, and ours with what the Dockerfile says: see `function_server`."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": _bytecode().name, "PYTHONDONTWRITEBYTECODE": ""}
    if module == OURS:
        said = dict(entry.split("=", 1) for entry in dockerfile()["Env"])
        env |= {name: said[name] for name in ("PYTHONOPTIMIZE", "MALLOC_ARENA_MAX")}
    return function_server(module, *options, env=env, poll=poll)


def compile_servers() -> None:
    """Compile what servers are made of, as images are: one that does it at its start begins late, and larger."""
    for module in (OURS, IDENTITY):
        with serve(module):
            pass


def certificates(folder: Path) -> Path:
    """Write what a server and its client need for mTLS: one certificate, which both have and trust."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    return folder
