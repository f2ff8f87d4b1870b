"""A provisioned etcd: members started as rendered, lost, and repaired as docs/mooncake.md says."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance import cases
from tests.conformance.conftest import Make
from tests.conformance.machine import ETCD, MASTER, Machine, Running, wait_until
from tests.conformance.pods import Manifest

pytestmark = pytest.mark.usefixtures("etcd")


@dataclass
class Cluster:
    """Its machine and its members."""

    machine: Machine
    members: list[Running]

    def ask(self, *words: str, at: int = 0) -> subprocess.CompletedProcess[str]:
        """Ask a member by etcdctl, as from within its pod."""
        argv = ["etcdctl", f"--endpoints=http://{self.members[at].pod.address}:2379", *words]
        env = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(argv, env=env, check=False, capture_output=True, text=True, timeout=30)

    def ctl(self, *words: str, at: int = 0) -> str:
        """Ask a member something that it cannot refuse."""
        run = self.ask(*words, at=at)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def listed(self, at: int = 0) -> dict[str, str]:
        """The members that one of them knows: their IDs in hexadecimal by name."""
        found = json.loads(self.ctl("member", "list", "-w", "json", at=at))["members"]
        return {member.get("name", ""): f"{member['ID']:x}" for member in found}


@pytest.fixture(scope="module")
def cluster(run: Make) -> Iterator[Cluster]:
    """Three members, of which the last is on a node that still fetches its image."""
    machine = run(cases.changed("mooncake-ha", tier=cases.pool()), {ETCD: 3})
    members = [machine.start(ETCD, i) for i in range(2)]
    for member in members:
        member.ready()
    yield Cluster(machine, [*members, machine.start(ETCD, 2).ready()])
    machine.close()


@pytest.fixture
def key(cluster: Cluster) -> str:
    cluster.ctl("put", "key", "value")
    return "key"


def test_members_form_one_cluster(cluster: Cluster, key: str) -> None:
    names = [member.pod.name for member in cluster.members]
    for at in range(3):
        assert sorted(cluster.listed(at)) == names
        assert cluster.ctl("get", "--print-value-only", key, at=at) == "value\n"


def test_only_declared_ports_are_open(cluster: Cluster) -> None:
    for member in cluster.members:
        assert member.listeners() == {(member.pod.address, port) for port in member.ports.values()}


def test_without_a_majority_no_member_is_ready_and_none_is_restarted(cluster: Cluster) -> None:
    for member in cluster.members[1:]:
        member.kill()
    first = cluster.members[0]
    wait_until(lambda: not first.passes("readinessProbe"), 20)
    assert first.passes("livenessProbe")
    for at in (1, 2):
        cluster.members[at] = cluster.machine.start(ETCD, at)
    for member in cluster.members:
        member.ready()


def test_a_member_with_its_data_comes_back_by_itself(cluster: Cluster, key: str) -> None:
    cluster.members[2].kill()
    # It may have led.
    wait_until(lambda: cluster.ask("put", key, "changed").returncode == 0, 20)
    cluster.members[2] = cluster.machine.start(ETCD, 2).ready()
    assert cluster.ctl("get", "--print-value-only", key, at=2) == "changed\n"


def test_a_member_without_its_data_does_no_harm_and_is_repaired_by_hand(cluster: Cluster, key: str) -> None:
    """The commands of docs/mooncake.md, in their order."""
    cluster.members[2].kill()
    shutil.rmtree(cluster.machine.volume(ETCD, "data", 2))
    lost = cluster.machine.start(ETCD, 2)
    # Whether or not the one that leads still knows what it has lost.
    wait_until(lambda: not lost.runs, 20, lambda: lost.log)
    assert "has already been bootstrapped" in lost.log
    for member in cluster.members[:2]:
        assert member.ready(10)
    assert cluster.ctl("get", "--print-value-only", key) == "value\n"

    name, peer = lost.pod.name, f"http://{lost.pod.address}:2380"
    cluster.ctl("member", "remove", cluster.listed()[name])
    # For five seconds after its members met, a cluster takes no new one.
    wait_until(lambda: cluster.ask("member", "add", name, f"--peer-urls={peer}").returncode == 0, 15)
    shutil.rmtree(cluster.machine.volume(ETCD, "data", 2))
    cluster.members[2] = cluster.machine.start(ETCD, 2).ready()
    assert cluster.ctl("get", "--print-value-only", key, at=2) == "value\n"
    assert sorted(cluster.listed(2)) == [member.pod.name for member in cluster.members]

    # From then on it is like any other.
    cluster.members[2].kill()
    cluster.members[2] = cluster.machine.start(ETCD, 2).ready()


def test_one_member_alone(run: Make) -> None:
    def tier(manifest: Manifest) -> None:
        cases.pool(etcd={"provision": {"replicas": 1}})(manifest)

    machine = run(cases.changed("mooncake-ha", tier=tier), {ETCD: 1, MASTER: 1})
    alone = Cluster(machine, [machine.start(ETCD).ready()])
    alone.ctl("put", "key", "value")
    assert alone.members[0].terminate(20) in (0, -15)
    alone.members[0] = machine.start(ETCD).ready()
    assert alone.ctl("get", "--print-value-only", "key") == "value\n"
    machine.close()
