"""The agent: `lmcache server` of the release's version, from its flags to a running server."""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from function.releases import NEWEST
from function.sizing import GIB, quantity
from lmcache import __version__, integration
from lmcache.cli.commands.server import ServerCommand
from lmcache.v1.distributed.config import parse_args_to_config
from lmcache.v1.mp_observability.config import parse_args_to_observability_config
from lmcache.v1.multiprocess.config import parse_args_to_http_frontend_config, parse_args_to_mp_server_config

from tests.conformance import cases, runner
from tests.conformance.conftest import Server
from tests.conformance.pods import NODE, process
from tests.examples import PASSWORD, USERNAME

LMCACHE = "/opt/venv/bin/lmcache"
DISK = "/var/lib/lmcache"
WITH_AGENT = ("lmcache", "lmcache-current")
# How long a server may take to start or to end on two busy cores.
PATIENCE = 90


def parse(argv: tuple[str, ...]) -> argparse.Namespace:
    """Read an agent's flags as `lmcache server` does: what follows the shell's own words."""
    parser = argparse.ArgumentParser()
    ServerCommand().add_arguments(parser)
    return parser.parse_args(argv[argv.index("lmcache") + 1 :])


@pytest.fixture(params=WITH_AGENT)
def example(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_lmcache_under_test_is_the_one_that_the_newest_release_deploys() -> None:
    assert __version__ == NEWEST.lmcache_version == runner.CURRENT
    assert NEWEST.lmcache_image.endswith(f":v{__version__}")


def test_the_server_reads_every_flag_as_it_is_meant(example: str) -> None:
    tier = cases.tier_spec(example)
    args = parse(cases.agent(example).argv)
    storage = parse_args_to_config(args)
    memory = storage.l1_manager_config.memory_config
    assert memory.size_in_bytes == tier["cpuTierGiBPerNode"] * GIB
    assert storage.eviction_config.eviction_policy == "LRU"
    server = parse_args_to_mp_server_config(args)
    assert (server.host, server.port, server.isolated_ipc) == ("0.0.0.0", 5555, True)
    assert (server.chunk_size, server.instance_id) == (tier.get("chunkSize", 256), NODE)
    http = parse_args_to_http_frontend_config(args)
    assert http.http_host == "127.0.0.1", "the admin API has no authentication"
    metrics = parse_args_to_observability_config(args).prometheus_port
    assert len({server.port, http.http_port, metrics}) == 3


def test_no_key_of_an_adapter_is_lost(example: str) -> None:
    """LMCache ignores keys of an adapter that it does not know, so a typo would only be found in production."""
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


def test_client_and_server_agree() -> None:
    """The engine's side, as far as it goes without vLLM: LMCache's client asks for keys by name and ignores others."""
    config = json.loads(cases.engine("lmcache-current").flag("--kv-transfer-config"))
    module = Path(*config["kv_connector_module_path"].split(".")[2:]).with_suffix(".py")
    sources = [Path(folder) for folder in integration.__path__]
    assert f"class {config['kv_connector']}(" in "".join((folder / module).read_text() for folder in sources)
    client = "".join(file.read_text() for folder in sources for file in (folder / "vllm").glob("*.py"))
    extra = config["kv_connector_extra_config"]
    assert [key for key in extra if f'"{key}"' not in client] == []
    server = parse_args_to_mp_server_config(parse(cases.agent("lmcache-current").argv))
    assert extra["lmcache.mp.isolated_ipc"] is server.isolated_ipc
    assert int(extra["lmcache.mp.port"]) == server.port


@contextmanager
def started(manifests: list[Any], folder: Path) -> Iterator[tuple[psutil.Popen, Path, tuple[int, int]]]:
    """Start the agent's command, with image and disk in other places and on other ports; yields it once it is healthy."""
    places = {LMCACHE: f"{sys.prefix}/bin/lmcache", DISK: str(folder)}
    agent = process(manifests, "DaemonSet", "lmcache").moved(places)
    port, http = runner.free_port(), runner.free_port()
    log = folder / "log"
    with log.open("w") as output:
        server = psutil.Popen(
            [*agent.argv, f"--port={port}", f"--http-port={http}"],
            env=runner.base_env(folder) | agent.env,
            stdout=output,
            stderr=output,
        )
        try:
            _wait_for(f"http://127.0.0.1:{http}/healthcheck", server, log)
            yield server, log, (port, http)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


def _wait_for(url: str, server: psutil.Popen, log: Path) -> None:
    for _ in range(PATIENCE * 2):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_rendered_agent_starts_without_leftovers_reaches_redis_keeps_its_password_and_ends_in_time(
    redis: Server, tmp_path: Path
) -> None:
    """One start for all of it, since a start takes ten seconds: what is asserted comes in the order in which it happens."""

    def small(tier: dict[str, Any]) -> None:
        tier["spec"]["lmcache"]["cpuTierGiBPerNode"] = 1
        cases.redis_at(redis.port)(tier)

    leftover = tmp_path / "kv" / "from-before"
    leftover.parent.mkdir()
    leftover.touch()
    with started(cases.changed("lmcache", tier=small), tmp_path) as (server, log, (port, http)):
        assert not leftover.exists(), "nothing recounts what a disk holds from before, so it would overflow"
        listening = {tuple(c.laddr) for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {("0.0.0.0", port), ("127.0.0.1", http)}
        assert USERNAME in redis.users()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/config", timeout=5) as answer:
            config = answer.read().decode()
        assert json.loads(config)["storage_manager"]["l1_manager_config"]["memory_config"]["size_in_bytes"] == GIB
        server.terminate()
        # Kubernetes kills it after 30 seconds.
        assert server.wait(timeout=30) in {0, -15}
        assert PASSWORD not in config
        assert PASSWORD not in log.read_text()


def test_a_flag_that_the_server_does_not_know_is_refused() -> None:
    """What makes the tests above worth something."""
    with pytest.raises(SystemExit):
        parse((*cases.agent("lmcache").argv, "--l1-size-gib=1"))
