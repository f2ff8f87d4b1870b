import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotYet

from tests.conformance import runner
from tests.examples import PASSWORD, USERNAME


@dataclass(frozen=True)
class Server:
    """A Redis that lets in the examples' user, and nobody without a password."""

    port: int
    admin: "Redis[bytes]"

    def users(self) -> set[str]:
        """Who is connected."""
        return {client["user"] for client in self.admin.client_list()}


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binary = shutil.which("redis-server")
    if binary is None:
        reason = "there is no redis-server on PATH; Debian's package of that name has it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
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
    client.execute_command("ACL", "SETUSER", USERNAME, "on", f">{PASSWORD}", "~*", "&*", "+@all")
    client.config_set("requirepass", "admin")


@pytest.fixture(params=[runner.OLDEST, runner.CURRENT])
def lmcache(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., runner.Outcome]:
    """Runs an engine's side of LMCache, of the oldest supported version and of the current one."""

    def run(engine: Any, **task: Any) -> runner.Outcome:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return runner.in_process(request.param, engine, task, folder)

    return run
