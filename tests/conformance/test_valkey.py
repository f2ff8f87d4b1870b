"""A provisioned Valkey: its rendered configuration and users, held by Debian's redis-server."""

import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.conformance import cases, runner
from tests.conformance.conftest import Make, need
from tests.conformance.machine import ENGINE, LMCACHE, VALKEY, Machine, Running, wait_until
from tests.conformance.pods import Manifest, process

PORT = 6379
MIB = 1024**2
# 75 % of a GiB.
MAXMEMORY = 768 * MIB


def small(manifest: Manifest) -> None:
    """A change: a Valkey that is soon full, and nothing else that needs a node."""
    spec = manifest["spec"]["lmcache"]
    spec["remote"]["redis"]["provision"]["memory"] = "1Gi"
    spec["cpuTierGiBPerNode"] = 2
    spec.pop("encryption", None)


@dataclass
class Server:
    """The server, and who may ask it."""

    machine: Machine
    running: Running

    def client(self, user: str | None = None) -> Redis:
        """A client of a user of the tier's Secret; without one, of nobody."""
        secret = next(m["data"] for m in self.machine.manifests if m["kind"] == "Secret" and "users.acl" in m["data"])
        keys = {"lmcache": "password", "exporter": "exporter-password"}
        password = base64.b64decode(secret[keys[user]]).decode() if user else None
        return Redis(self.running.pod.address, PORT, username=user, password=password)

    def info(self, section: str) -> dict[str, Any]:
        """What the exporter reads."""
        found: dict[str, Any] = self.client("exporter").info(section)
        return found


@pytest.fixture(scope="module")
def valkey(run: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need("redis-server")
    manifests = cases.changed("lmcache-valkey", tier=small)
    machine = run(manifests, {VALKEY: 1, LMCACHE: 1}, places={"/opt/venv/bin/python": sys.executable})
    address = machine.address(VALKEY)
    cli = tmp_path_factory.mktemp("bin") / "cli"
    cli.write_text(f'#!/bin/sh\nexec redis-cli -h {address} "$@"\n')
    cli.chmod(0o755)
    # It has all addresses of its pod, which here has but one of the machine's.
    machine.places |= {"valkey-server": "redis-server", "valkey-cli": str(cli), "bind * -::*": f"bind {address}"}
    yield Server(machine, machine.start(VALKEY).ready())
    machine.close()


def test_memory_and_policy_are_held(valkey: Server) -> None:
    memory = valkey.info("memory")
    assert (memory["maxmemory"], memory["maxmemory_policy"]) == (MAXMEMORY, "allkeys-lru")


def test_nobody_may_only_ask_whether_it_lives(valkey: Server) -> None:
    nobody = valkey.client()
    assert nobody.ping()
    for command in (["GET", "a"], ["SET", "a", "b"], ["KEYS", "*"], ["INFO"], ["FLUSHALL"], ["CONFIG", "GET", "*"]):
        with pytest.raises(NoPermissionError):
            nobody.execute_command(*command)


def test_a_wrong_password_is_refused(valkey: Server) -> None:
    with pytest.raises(AuthenticationError):
        Redis(valkey.running.pod.address, PORT, username="lmcache", password="guess").ping()


def test_users_may_do_no_more_than_their_job(valkey: Server) -> None:
    lmcache, exporter = valkey.client("lmcache"), valkey.client("exporter")
    for command in (["KEYS", "*"], ["FLUSHALL"], ["CONFIG", "GET", "*"], ["ACL", "LIST"], ["EVAL", "return 1", "0"]):
        with pytest.raises(NoPermissionError):
            lmcache.execute_command(*command)
    for command in (["GET", "a"], ["SET", "a", "b"], ["CONFIG", "GET", "*"]):
        with pytest.raises(NoPermissionError):
            exporter.execute_command(*command)


def test_under_load_it_drops_what_is_old_and_refuses_nothing(valkey: Server) -> None:
    client, value = valkey.client("lmcache"), b"x" * MIB
    keys = [f"key-{i}" for i in range(1000)]
    for key in keys:
        assert client.set(key, value)
    assert valkey.info("stats")["evicted_keys"] > 200
    assert valkey.info("memory")["used_memory"] < MAXMEMORY
    assert client.get("key-999") == value
    assert 500 < client.exists(*keys) < 768
    assert valkey.running.passes("livenessProbe")


@pytest.mark.parametrize("version", [runner.OLDEST, runner.CURRENT])
def test_lmcache_in_the_engine_stores_and_finds_as_the_drawn_user(valkey: Server, version: str, tmp_path: Path) -> None:
    def tier(manifest: Manifest) -> None:
        small(manifest)
        manifest["spec"]["lmcache"]["mode"] = "InProcess"
        manifest["spec"]["placement"] = {"gpusPerNode": 2}

    def deployment(manifest: Manifest) -> None:
        if version == runner.OLDEST:
            manifest["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.11.0"

    rendered = cases.changed("lmcache-valkey", tier=tier, deployment=deployment)
    # Its password was drawn anew, since this render knows nothing of the one before.
    drawn = [m for m in valkey.machine.manifests if m["kind"] == "Secret"]
    manifests = [*(m for m in rendered if m["kind"] != "Secret"), *drawn]
    subject = process(manifests, *ENGINE).moved({**valkey.machine.places, **valkey.machine.hosts})
    for number, (remote, seen) in enumerate((("store", None), ("look", True))):
        (tmp_path / str(number)).mkdir()
        found = runner.in_process(version, subject, {"remote": remote}, tmp_path / str(number)).found
        assert seen is None or found["seen"] == [seen] * len(found["keys"])


def test_an_agent_signs_in_as_the_drawn_user(valkey: Server) -> None:
    before = valkey.info("commandstats").get("cmdstat_auth", {"calls": 0})
    agent = valkey.machine.start(LMCACHE).ready(120)
    after = valkey.info("commandstats")["cmdstat_auth"]
    assert after["calls"] > before["calls"]
    assert (after["failed_calls"], after["rejected_calls"]) == (0, 0)
    assert agent.terminate(30) == 0


# --- AIBrix's list of members -------------------------------------------------------------------------------------

KEY = "kvcache_nodes"


@pytest.fixture(scope="module")
def members(run: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need("redis-server")
    machine = run(cases.changed("aibrix-distributed"), {VALKEY: 1})
    address = machine.address(VALKEY)
    cli = tmp_path_factory.mktemp("bin") / "cli"
    cli.write_text(f'#!/bin/sh\nexec redis-cli -h {address} "$@"\n')
    cli.chmod(0o755)
    machine.places |= {"valkey-server": "redis-server", "valkey-cli": str(cli), "bind * -::*": f"bind {address}"}
    server = Server(machine, machine.start(VALKEY))
    wait_until(lambda: server.running.passes("startupProbe"), 20, lambda: server.running.log)
    yield server
    machine.close()


def test_it_is_ready_once_the_watcher_has_written_and_engines_read_it(members: Server) -> None:
    (data,) = [m["data"] for m in members.machine.manifests if m["kind"] == "Secret"]
    secret = {key: base64.b64decode(value).decode() for key, value in data.items()}
    address = members.running.pod.address
    assert members.running.passes("livenessProbe")
    assert not members.running.passes("readinessProbe")
    # The watcher says no name, and writes in a transaction.
    watcher = Redis(address, PORT, password=secret["password"])
    assert watcher.get(KEY) is None
    with watcher.pipeline(transaction=True) as pipe:
        assert pipe.set(KEY, "{}").execute() == [True]
    assert members.running.passes("readinessProbe")
    host, _ = secret["redis-url"].rsplit("@", 1)[1].rsplit(":", 1)
    engine = Redis.from_url(secret["redis-url"].replace(host, address))
    assert engine.ping()
    assert engine.get(KEY) == b"{}"
    for user, commands in {
        engine: (["SET", KEY, "x"], ["DEL", KEY], ["GET", "other"], ["KEYS", "*"], ["INFO"]),
        watcher: (["DEL", KEY], ["SET", "other", "x"], ["KEYS", "*"], ["FLUSHALL"], ["CONFIG", "GET", "*"]),
        Redis(address, PORT, username="probe", password="any"): (["GET", KEY], ["SET", KEY, "x"], ["INFO"]),
    }.items():
        for command in commands:
            with pytest.raises(NoPermissionError):
                user.execute_command(*command)
    with pytest.raises(AuthenticationError):
        Redis(address, PORT).ping()
