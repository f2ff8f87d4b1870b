import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotYet

from tests.conformance import runner
from tests.conformance.pods import Process
from tests.examples import PASSWORD, USERNAME

Run = Callable[..., runner.Outcome]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:`LoggingHandler`:DeprecationWarning:opentelemetry")


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
    if redis_or_none is None:
        reason = "there is no redis-server on PATH; Debian's package of that name has it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
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
