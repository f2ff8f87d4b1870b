"""The agent: `lmcache server` of the newest release, from its flags to a running server."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from lmcache import __version__
from lmcache.cli.commands.server import ServerCommand
from lmcache.integration.vllm import vllm_multi_process_adapter as client
from lmcache.v1.distributed.config import parse_args_to_config
from lmcache.v1.mp_observability.config import parse_args_to_observability_config
from lmcache.v1.multiprocess.config import parse_args_to_http_frontend_config, parse_args_to_mp_server_config
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from function.releases import NEWEST
from function.sizing import GIB, quantity
from tests.conformance import cases, runner
from tests.conformance.conftest import Server
from tests.conformance.pods import NODE, Manifest, process
from tests.examples import PASSWORD, USERNAME

LMCACHE = "/opt/venv/bin/lmcache"
DISK = "/var/lib/lmcache"


def parse(argv: tuple[str, ...]) -> argparse.Namespace:
    """Read an agent's flags as `lmcache server` does: what follows the words that are the shell's."""
    parser = argparse.ArgumentParser()
    ServerCommand().add_arguments(parser)
    return parser.parse_args(argv[argv.index("lmcache") + 1 :])


@pytest.fixture(params=["lmcache", "lmcache-current"])
def example(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_lmcache_under_test_is_the_one_that_the_newest_release_deploys() -> None:
    assert __version__ == NEWEST.lmcache_version == runner.CURRENT
    assert NEWEST.lmcache_image.endswith(f":v{__version__}")


def test_a_flag_that_the_server_does_not_know_is_refused() -> None:
    """What makes the tests below worth something."""
    with pytest.raises(SystemExit):
        parse((*cases.agent("lmcache").argv, "--l1-size-gib=1"))


def test_the_server_reads_every_flag_as_it_is_meant(example: str) -> None:
    tier = cases.tier_spec(example)
    args = parse(cases.agent(example).argv)
    storage = parse_args_to_config(args)
    assert storage.l1_manager_config.memory_config.size_in_bytes == tier["cpuTierGiBPerNode"] * GIB
    assert storage.eviction_config.eviction_policy == "LRU"
    server = parse_args_to_mp_server_config(args)
    assert (server.host, server.port, server.isolated_ipc) == ("0.0.0.0", 5555, True)
    assert (server.chunk_size, server.instance_id) == (tier.get("chunkSize", 256), NODE)
    http = parse_args_to_http_frontend_config(args)
    assert http.http_host == "127.0.0.1", "the admin API has no authentication"
    metrics = parse_args_to_observability_config(args).prometheus_port
    assert len({server.port, http.http_port, metrics}) == 3


def test_no_key_of_an_adapter_is_lost(example: str) -> None:
    """LMCache ignores keys of an adapter that it does not know, so a typo would be found by a full disk."""
    args = parse(cases.agent(example).argv)
    parsed = parse_args_to_config(args).l2_adapter_config.adapters
    written = [json.loads(text) for text in args.l2_adapter]
    assert [adapter["type"] for adapter in written] == ["fs_native", "resp"]
    for wanted, config in zip(written, parsed, strict=True):
        eviction = wanted.pop("eviction", None)
        del wanted["type"]
        assert {key: getattr(config, key) for key in wanted} == wanted
        found = config.eviction_config and dataclasses.asdict(config.eviction_config)
        assert (found and {key: found[key] for key in eviction}) == eviction


def test_the_disk_is_bounded_below_its_size(example: str) -> None:
    """fs_native evicts only with both a capacity and an eviction block."""
    disk = parse_args_to_config(parse(cases.agent(example).argv)).l2_adapter_config.adapters[0]
    size = quantity(cases.tier_spec(example)["diskTier"]["sizePerNode"])
    assert 0.8 * size < disk.max_capacity_gb * GIB < size
    assert disk.eviction_config is not None


def transfer_config() -> Any:
    """What an engine that speaks to the agent is told."""
    return json.loads(cases.engine("lmcache-current").flag("--kv-transfer-config"))


def test_lmcaches_client_knows_every_key_that_an_engine_is_given() -> None:
    """It ignores others. The connector cannot be imported without vLLM, so its own keys are looked for in its text."""
    config = transfer_config()
    spec = importlib.util.find_spec(config["kv_connector_module_path"])
    assert spec and spec.origin
    connector = Path(spec.origin).read_text()
    assert f"class {config['kv_connector']}(" in connector
    known = {f"lmcache.mp.{key.name}" for key in client.ExtraConfigDefault}
    extra = config["kv_connector_extra_config"]
    assert [key for key in extra if key not in known and f'"{key}"' not in connector] == []


def test_client_and_server_agree() -> None:
    extra = transfer_config()["kv_connector_extra_config"]
    resolved = client._resolve_extra_config(extra)
    server = parse_args_to_mp_server_config(parse(cases.agent("lmcache-current").argv))
    assert resolved["isolated_ipc"] is server.isolated_ipc
    assert resolved["hash_algorithm"] == server.hash_algorithm
    assert int(extra["lmcache.mp.port"]) == server.port
    assert 3 * resolved["heartbeat_interval"] <= server.worker_reap_timeout_seconds


@dataclass(frozen=True)
class Running:
    """An agent that was started as rendered, but for image, disk and ports, which are elsewhere."""

    process: psutil.Popen
    folder: Path
    port: int
    http_port: int

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="module")
def running(redis_or_none: Server | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    importlib.import_module("lmcache.v1.multiprocess.http_server")  # the command does not say which import failed
    folder = tmp_path_factory.mktemp("agent")
    (folder / "kv").mkdir()
    (folder / "kv" / "leftover").touch()

    def tier(manifest: Manifest) -> None:
        manifest["spec"]["lmcache"]["cpuTierGiBPerNode"] = 1
        cases.redis_at(redis_or_none.port if redis_or_none else runner.free_port())(manifest)

    agent = process(cases.changed("lmcache", tier=tier), "DaemonSet", "lmcache")
    agent = agent.moved({LMCACHE: f"{sys.prefix}/bin/lmcache", DISK: str(folder)})
    port, http_port = runner.free_port(), runner.free_port()
    with (folder / "log").open("w") as log:
        server = psutil.Popen(
            [*agent.argv, f"--port={port}", f"--http-port={http_port}"],
            env={**runner.base_env(folder), **agent.env},
            stdout=log,
            stderr=log,
        )
        it = Running(server, folder, port, http_port)
        try:
            wait_until_healthy(it)
            yield it
            server.terminate()
            # Kubernetes waits for 30 seconds, and then kills it.
            server.wait(timeout=30)
        finally:
            if server.is_running():
                server.kill()
                server.wait()


def wait_until_healthy(agent: Running) -> None:
    for _ in range(240):
        assert agent.process.poll() is None, agent.log
        try:
            agent.get("/healthcheck")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(agent.log)


def test_an_agent_starts_with_an_empty_disk(running: Running) -> None:
    """Nothing recounts what a disk holds from before a start, so it would overflow."""
    assert not (running.folder / "kv" / "leftover").exists()


def test_only_one_port_is_open_to_the_network(running: Running) -> None:
    found = {tuple(c.laddr) for c in running.process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert found == {("0.0.0.0", running.port), ("127.0.0.1", running.http_port)}


def test_lmcaches_client_is_answered(running: Running) -> None:
    scheme, _ = transfer_config()["kv_connector_extra_config"]["lmcache.mp.host"].split("://")
    requests = RequestClientFactory.create(f"{scheme}://127.0.0.1:{running.port}")
    try:
        assert client.send_ping(requests, timeout=30)
        assert client.get_lmcache_chunk_size(requests, timeout=30) == 256
    finally:
        requests.close()


def test_an_agent_reaches_redis_as_the_secrets_user(running: Running, redis: Server) -> None:
    assert running.process.is_running()
    assert USERNAME in redis.users()


def test_an_agent_shows_its_password_nowhere(running: Running) -> None:
    assert json.loads(running.get("/config"))["mp"]["instance_id"] == NODE
    assert [text for text in (running.get("/config"), running.get("/status"), running.log) if PASSWORD in text] == []
