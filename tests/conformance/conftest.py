import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotYet

from tests.conformance import runner
from tests.conformance.machine import Machine
from tests.conformance.pods import Manifest, Process
from tests.examples import PASSWORD, USERNAME

Make = Callable[..., Machine]
Run = Callable[..., runner.Outcome]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:`LoggingHandler`:DeprecationWarning:opentelemetry")


# Debian's packages of what is started here.
_PACKAGES = {
    "redis-server": "redis-server",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "wget": "wget",
    "libibverbs.so.1": "libibverbs1",
    "libcurl.so.4": "libcurl4",
    "libnuma.so.1": "libnuma1",
}


def need(*wanted: str) -> None:
    """Skip where programs or libraries are missing; in CI, fail."""
    missing = [_PACKAGES[name] for name in wanted if not (_loads(name) if ".so." in name else shutil.which(name))]
    if missing:
        reason = f"Debian's packages {', '.join(missing)} are not there"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def mooncake() -> None:
    """What Mooncake's binaries are linked with."""
    need("libibverbs.so.1", "libcurl.so.4", "libnuma.so.1")


@pytest.fixture(scope="session")
def etcd() -> None:
    """What members of an etcd are started with."""
    need("etcd", "etcdctl", "wget")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes machines, and ends whatever runs on them."""
    machines: list[Machine] = []

    def make(manifests: Sequence[Manifest], workloads: Mapping[tuple[str, str], int], **options: Any) -> Machine:
        machines.append(Machine(tmp_path_factory.mktemp("machine"), manifests, workloads, **options))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


@dataclass(frozen=True)
class Server:
    """A Redis that lets in the examples' user, and nobody without a password."""

    port: int
    admin: Redis

    def users(self) -> set[str]:
        """Who is connected."""
        return {client["user"] for client in self.admin.client_list()}


@pytest.fixture(scope="session")
def redis(redis_or_none: Server | None) -> Server:
    need("redis-server")
    assert redis_or_none
    return redis_or_none


@pytest.fixture(scope="session")
def redis_or_none(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | None]:
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    port = runner.free_port()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": tmp_path_factory.mktemp("redis")}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL) as process:
        try:
            admin = Redis(port=port, password="admin")
            _configure(port)
            yield Server(port, admin)
        finally:
            process.terminate()


def _configure(port: int) -> None:
    client = Redis(port=port)
    for _ in range(100):
        try:
            client.ping()
            break
        except NotYet:
            time.sleep(0.1)
    client.acl_setuser(USERNAME, enabled=True, passwords=[f"+{PASSWORD}"], keys="*", channels="*", categories=["+@all"])
    client.config_set("requirepass", "admin")


@pytest.fixture(scope="session", params=[runner.OLDEST, runner.CURRENT])
def lmcache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs an engine's side of LMCache, of the oldest supported version and of the current one: six seconds a run."""

    def run(engine: Process, **task: Any) -> runner.Outcome:
        return runner.in_process(request.param, engine, task, tmp_path_factory.mktemp(request.param))

    return run
