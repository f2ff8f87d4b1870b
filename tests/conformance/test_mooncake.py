"""Mooncake: master and agent started as rendered, and asked by a client that knows what the render gives an engine."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from function.backends.mooncake.cluster import METRICS_PORT
from tests.conformance import cases
from tests.conformance.conftest import Make, need
from tests.conformance.machine import AGENT, ETCD, MASTER, Machine, Running, wait_until
from tests.conformance.pods import Manifest

pytestmark = pytest.mark.usefixtures("mooncake")

KEYS = [f"key-{i}" for i in range(5)]
GIB = 1024**3


def number(master: Running, metric: str) -> float:
    """A number of a master's metrics; nothing while it does not answer."""
    try:
        text = master.get(METRICS_PORT, "/metrics")
    except OSError:
        return -1
    found = re.search(rf"^{metric} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1


def capacity(master: Running) -> float:
    """The bytes that agents give."""
    return number(master, "master_total_capacity_bytes")


def mounted(master: Running, agent: Running, seconds: float = 60) -> float:
    """Wait until a master has the agent's memory; returns the seconds that it took."""
    return wait_until(lambda: capacity(master) == GIB, seconds, lambda: agent.log + master.log)


@dataclass
class Pool:
    """One master and one agent."""

    machine: Machine
    master: Running
    agent: Running


def pool(machine: Machine) -> Pool:
    """Start them, as good as at once."""
    master, agent = machine.start(MASTER), machine.start(AGENT)
    found = Pool(machine, master.ready(), agent.ready())
    mounted(found.master, found.agent)
    return found


@pytest.fixture(scope="module")
def one(run: Make) -> Iterator[Pool]:
    machine = run(cases.changed("mooncake", tier=cases.pool()), {MASTER: 1, AGENT: 1})
    yield pool(machine)
    machine.close()


def test_a_vllm_engine_gets_what_another_one_put(one: Pool) -> None:
    assert one.machine.engine(put=KEYS)["put"] == KEYS
    assert one.machine.engine(get=[*KEYS, "other"])["got"] == KEYS
    assert capacity(one.master) == GIB, "an engine gives no memory of its own"


def test_vllm_knows_every_key_that_its_connector_is_given() -> None:
    """It cannot be imported without a GPU's libraries, so the keys are looked for in its text."""
    config = json.loads(cases.engine("mooncake").flag("--kv-transfer-config"))
    vllm = Path(sys.prefix) / "vllm-0.33.0" / "vllm"
    transfer = vllm / "distributed" / "kv_transfer" / "kv_connector"
    fields = (vllm / "config" / "kv_transfer.py").read_text()
    assert [key for key in config if f"\n    {key}: " not in fields] == []
    assert f'"{config["kv_connector"]}"' in (transfer / "factory.py").read_text()
    connector = "".join(file.read_text() for file in (transfer / "v1" / "mooncake" / "store").glob("*.py"))
    assert [key for key in config["kv_connector_extra_config"] if f'"{key}"' not in connector] == []


def test_an_sglang_engine_gets_what_it_put_under_its_own_prefix(run: Make) -> None:
    """By SGLang's own storage backend, which puts and gets before it is of use."""
    machine = run(cases.changed("sglang-mooncake", tier=cases.pool()), {MASTER: 1, AGENT: 1})
    found = pool(machine)
    (tag,) = (
        json.loads(arg.split("=", 1)[1])["extra_backend_tag"]
        for arg in machine.engine_args()
        if arg.startswith("--hicache-storage-backend-extra-config=")
    )
    assert machine.engine(put=KEYS, get=KEYS) == {"put": KEYS, "got": KEYS, "prefix": f"{tag}_model"}
    assert capacity(found.master) == GIB, "an engine gives no memory of its own"
    machine.close()


def test_only_declared_ports_are_open(one: Pool) -> None:
    """There is no port of the store service's REST API, which could empty the pool."""
    address = one.master.pod.address
    assert one.master.listeners() == {(address, port) for port in one.master.ports.values()}
    ports = {port for _, port in one.agent.listeners()}
    assert ports < set(one.agent.ports.values())
    assert one.agent.ports["health"] in ports
    assert len(ports) == 3, "handshakes, data, and health"
    for path in ("/api/put", "/api/remove_all", "/api/get/x"):
        with pytest.raises(OSError, match="404"):
            one.agent.get(one.agent.ports["health"], path)


def test_a_master_that_starts_again_has_its_agent_back_and_no_keys(one: Pool) -> None:
    one.machine.engine(put=["before"])
    one.master.kill()
    wait_until(lambda: not one.agent.passes("readinessProbe"), 15)
    assert one.agent.passes("livenessProbe"), "a restart of the agent would help nobody"
    one.master = one.machine.start(MASTER).ready()
    assert mounted(one.master, one.agent) < 15
    one.agent.ready(15)
    assert one.machine.engine(put=["after"], get=["before", "after"], seconds=5)["got"] == ["after"]


def test_an_agent_that_is_killed_starts_again_in_its_place(one: Pool) -> None:
    """Its connections are still known to the kernel, and its segment to the master."""
    one.agent.kill()
    one.agent = one.machine.restart(AGENT).ready(30)
    # Of the one before, the master forgets the memory after some seconds.
    mounted(one.master, one.agent)
    assert one.machine.engine(put=["again"], get=["again"], seconds=20)["got"] == ["again"]


def test_an_agent_that_is_told_to_leaves_at_once(one: Pool) -> None:
    assert one.agent.terminate(seconds=10) == 0
    assert wait_until(lambda: capacity(one.master) == 0, 5) < 3


def test_metadata_by_http(run: Make) -> None:
    machine = run(cases.changed("mooncake", tier=cases.pool(metadata="HTTP")), {MASTER: 1, AGENT: 1})
    found = pool(machine)
    try:
        assert machine.engine(put=KEYS, get=KEYS)["got"] == KEYS
        # It listens at every address, whatever it is told.
        assert {port for _, port in found.master.listeners()} == set(found.master.ports.values())
    finally:
        machine.close()


def test_a_disk_holds_what_memory_does_not(run: Make) -> None:
    """1.2 GiB for 1 GiB of memory."""
    machine = run(
        cases.changed("mooncake", tier=cases.pool(disk={"sizePerNode": "16Gi", "storageClassName": "fast"})),
        {MASTER: 1, AGENT: 1},
    )
    found = pool(machine)
    keys, size = [f"key-{i}" for i in range(1200)], 1024**2
    folder = machine.volume(AGENT, "disk") / "kv"
    try:
        assert len(machine.engine(put=keys, size=size, seconds=120)["put"]) == len(keys)
        assert sum(file.stat().st_size for file in folder.rglob("*")) > 400 * size
        got = machine.engine(get=keys, size=size)["got"]
        # Only 1024 fit in memory, of which 30 % are kept free; what was evicted before it was written is lost.
        assert len(got) > 1024
        found.agent.terminate(seconds=20)
        found.agent = machine.restart(AGENT).ready()
        assert [file for file in folder.rglob("*") if file.is_file()] == []
    finally:
        machine.close()


@dataclass
class Several:
    """Three masters that three members of etcd hold together, and an agent."""

    machine: Machine
    members: list[Running]
    masters: list[Running]
    agent: Running

    def leader(self) -> int | None:
        """Which master leads, if one does."""
        for i, master in enumerate(self.masters):
            if master.runs and role(master) == "leader":
                return i
        return None


def role(master: Running) -> str:
    """What a master says that it is."""
    try:
        return master.get(METRICS_PORT, "/role").strip()
    except OSError:
        return ""


def logged(tier: Manifest) -> None:
    """A change: as of cases.pool, and keys are in a log."""
    cases.pool()(tier)
    tier["spec"]["mooncake"]["master"]["oplog"] = True


@pytest.fixture(scope="module")
def several(run: Make) -> Iterator[Several]:
    need("etcd", "etcdctl", "wget")
    machine = run(cases.changed("mooncake-ha", tier=logged), {ETCD: 3, MASTER: 3, AGENT: 1})
    members, masters = ([machine.start(key, i) for i in range(3)] for key in (ETCD, MASTER))
    found = Several(machine, members, masters, machine.start(AGENT))
    for running in [*members, *masters]:
        running.ready()
    wait_until(lambda: found.leader() is not None, 60, lambda: masters[0].log)
    mounted(masters[found.leader() or 0], found.agent.ready())
    yield found
    machine.close()


def test_standbys_are_ready_and_listen_to_no_client(several: Several) -> None:
    leader = several.leader()
    for i, master in enumerate(several.masters):
        health = {(master.pod.address, METRICS_PORT)}
        assert master.passes("readinessProbe")
        assert master.listeners() == (health | {(master.pod.address, master.ports["rpc"])} if i == leader else health)


def test_keys_survive_their_leader(several: Several) -> None:
    machine = several.machine
    assert machine.engine(put=KEYS, get=KEYS)["got"] == KEYS
    lost = several.leader()
    assert lost is not None
    several.masters[lost].kill()
    wait_until(lambda: several.leader() not in (None, lost), 40)
    assert machine.engine(get=KEYS, seconds=60)["got"] == KEYS
    several.masters[lost] = machine.start(MASTER, lost).ready()
    assert role(several.masters[lost]) == "standby"


def test_a_member_of_etcd_may_be_lost(several: Several) -> None:
    several.members[0].kill()
    assert several.machine.engine(put=["other"], get=[*KEYS, "other"], seconds=30)["got"] == [*KEYS, "other"]
    several.members[0] = several.machine.restart(ETCD).ready()


def test_another_tier_on_the_same_etcd_finds_no_master_of_it(several: Several, run: Make) -> None:
    """Two tiers name their pools apart."""

    def renamed(tier: Manifest) -> None:
        cases.pool()(tier)
        tier["metadata"]["name"] = "other"

    def deployment(manifest: Manifest) -> None:
        manifest["spec"]["engine"]["kvCache"]["tierRef"]["name"] = "other"

    machine = run(cases.changed("mooncake-ha", tier=renamed, deployment=deployment), {ETCD: 3, MASTER: 3, AGENT: 1})
    addresses = [address for _, address in sorted(several.machine.hosts.items())]
    machine.hosts = dict(zip(sorted(machine.hosts), addresses, strict=True))
    assert "refused" in machine.engine(seconds=5)
