"""AIBrix's distributed caches: its own controller and watcher, and a Redis by the files of the tier's Valkey."""

import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import say
from tests.e2e.environment import FOLDER, SYSTEM, TEAM, Environment
from tests.e2e.kube import (
    CONFIG_MAP,
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    TIER,
    Kind,
    Kube,
    Manifest,
    conditions,
    documents,
    names,
)
from tests.e2e.ledger import NAMESPACE
from tests.e2e.manifests import deployment, example_deployment, example_tier
from tests.e2e.processes import Process, free_port, wait_until
from tests.tools import build

KVCACHE = Kind("orchestration.aibrix.ai/v1alpha1", "KVCache")
EXAMPLE, NAME = "aibrix-distributed", "infinistore"
ATTACHED = conditions(Ready="True", TierAttached="True", EngineReady="True")


@pytest.fixture(scope="module")
def west(installed: Environment) -> Iterator[Kube]:
    """The cluster that AIBrix comes to."""
    yield installed.clusters["west"].kube


@pytest.fixture(scope="session")
def controller(installed: Environment) -> Iterator[Process]:
    """AIBrix's controller on that cluster, before it is started; it runs on, and what it made goes with the rest."""
    made = Process(
        "west-aibrix", [build.tool("aibrix"), f"--kubeconfig={installed.clusters['west'].kubeconfig}"], FOLDER
    )
    yield made
    made.stop()


def cache(west: Kube) -> str:
    """The name of the one KVCache."""
    (name,) = names(west.find(KVCACHE, NAMESPACE))
    return name


def test_without_aibrix_a_tier_says_what_is_missing(installed: Environment, west: Kube) -> None:
    control = installed.control.kube
    nics = {"rdma__extendedResource__name": "rdma/rdma_shared_device_a"}
    control.apply(example_tier(EXAMPLE, "west", aibrix__distributed__infinistore__replicas=2, **nics))
    tier = control.wait(TIER, NAME, SYSTEM, conditions(ClusterReachable="ApplyFailed"), 60)
    assert "it needs AIBrix on the cluster" in json.dumps(tier["status"])
    west.apply(*documents(*sorted(build.aibrix_crds().glob("*kvcaches.yaml"))))
    installed.shell(f"kubectl annotate kvoffloadtier {NAME} -n {SYSTEM} tests/poke=1 --overwrite")
    tier = control.wait(TIER, NAME, SYSTEM, conditions(ControlPlaneReady="NotMade", ClusterReachable="True"), 180)
    (found,) = [c["message"] for c in tier["status"]["conditions"] if c["type"] == "ControlPlaneReady"]
    say(found)
    assert "AIBrix's controller has not made StatefulSet" in found


def test_with_its_controller_it_turns_ready_and_its_engine_runs(
    installed: Environment, west: Kube, controller: Process
) -> None:
    control = installed.control.kube
    controller.start()
    tier = control.wait(TIER, NAME, SYSTEM, conditions(Ready="True", ControlPlaneReady="True", RolledOut="True"), 120)
    controller.check()
    assert tier["status"]["controlPlane"] == "3/3"
    assert tier["status"]["agents"] == "n/a"
    # It makes no Redis of its own.
    assert not [
        n for n in [*names(west.find(POD, NAMESPACE)), *names(west.find(SERVICE, NAMESPACE))] if n.endswith("-redis")
    ]
    shared = example_deployment(EXAMPLE)
    shared["spec"]["inferenceClusterRef"] = {"name": "west"}
    control.apply(shared)
    control.wait(MODEL_DEPLOYMENT, EXAMPLE, TEAM, ATTACHED, 120)
    (engine,) = [d for d in west.find(DEPLOYMENT, NAMESPACE) if EXAMPLE in d["metadata"]["name"]]
    assert "kvcache_nodes" in json.dumps(engine["spec"]["template"])


def test_its_watcher_writes_what_engines_read_and_the_tiers_probe_looks_for(
    installed: Environment, west: Kube, tmp_path: Path
) -> None:
    if not shutil.which("redis-server"):
        pytest.skip("Debian's package redis-server is not there")
    name = cache(west)
    (container,) = read(west, POD, f"{name}-kvcache-watcher-pod")["spec"]["containers"]
    # As the kubelet does it: the last of a name wins.
    env = {e["name"]: e for e in container["env"]}
    host, _, _ = env["REDIS_ADDR"]["value"].partition(".")
    instance = host.removesuffix("-members")
    data = read(west, SECRET, instance)["data"]
    secret = {key: base64.b64decode(value).decode() for key, value in data.items()}
    probe = "valkey-cli --no-auth-warning --user probe --pass none -e exists kvcache_nodes"
    assert probe in json.dumps(read(west, STATEFUL_SET, f"{instance}-valkey"))
    with redis_server(west, instance, secret, tmp_path) as port:

        def exists() -> bool:
            return ask(port, *probe.split()[1:]) == "1"

        assert not exists()
        told = {variable: e["value"] for variable, e in env.items() if e.get("value")} | {
            "REDIS_ADDR": f"127.0.0.1:{port}",
            "REDIS_PASSWORD": secret[env["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]["key"]],
            "AIBRIX_KVCACHE_WATCH_NAMESPACE": NAMESPACE,
        }
        kubeconfig = f"--kubeconfig={installed.clusters['west'].kubeconfig}"
        command = [build.tool("kvcache-watcher"), kubeconfig, *container["args"]]
        watcher = Process("west-kvcache-watcher", command, FOLDER, env=told).start()
        try:
            wait_until(exists, 30, "the watcher has written the members", watcher.tail)
        finally:
            watcher.stop()
        _, _, password = secret["redis-url"].partition("@")[0].rpartition(":")
        nodes = json.loads(ask(port, "--user", "engine", "--pass", password, "get", "kvcache_nodes"))["nodes"]
        addresses = {f"{name}-{n}": read(west, POD, f"{name}-{n}")["status"]["podIP"] for n in range(2)}
        assert {node["name"]: node["addr"] for node in nodes} == addresses
        assert all(node["port"] == 12345 and node["slots"] for node in nodes)


def read(west: Kube, kind: Kind, name: str) -> Manifest:
    """Read an object that is there."""
    found = west.get(kind, name, NAMESPACE)
    assert found, name
    return found


@contextlib.contextmanager
def redis_server(west: Kube, instance: str, secret: dict[str, str], folder: Path) -> Iterator[int]:
    """Run a Redis by the files of the tier's Valkey, on a port of this machine."""
    port = free_port()
    (folder / "users.acl").write_text(secret["users.acl"])
    conf = read(west, CONFIG_MAP, f"{instance}-valkey")["data"]["valkey.conf"]
    for old, new in {
        "bind * -::*": "bind 127.0.0.1",
        "port 6379": f"port {port}",
        "/etc/valkey/users.acl": str(folder / "users.acl"),
        "dir /data": f"dir {folder}",
    }.items():
        assert old in conf
        conf = conf.replace(old, new)
    (folder / "valkey.conf").write_text(conf)
    server = Process("west-redis", ["redis-server", folder / "valkey.conf"], FOLDER).start()
    try:
        pong = ("--user", "probe", "--pass", "none", "ping")
        wait_until(lambda: ask(port, *pong) == "PONG", 20, "Redis answers", server.tail)
        yield port
    finally:
        server.stop()


def ask(port: int, *words: str) -> str:
    """Ask the Redis, and return what it says."""
    command = ["redis-cli", "-p", str(port), "--no-auth-warning", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()


def test_a_change_that_the_controller_does_not_apply_shows_until_its_servers_are_made_anew(
    installed: Environment, west: Kube
) -> None:
    control = installed.control.kube
    name = cache(west)
    nics = {"rdma__extendedResource__name": "rdma/rdma_shared_device_a"}
    changed = example_tier(EXAMPLE, "west", aibrix__distributed__infinistore__replicas=2, **nics)
    changed["spec"]["aibrix"]["distributed"]["infinistore"]["memoryGiBPerReplica"] = 300
    control.apply(changed)
    tier = control.wait(TIER, NAME, SYSTEM, conditions(ControlPlaneReady="NotReady"), 60)
    assert "not all of infinistore runs this spec yet" in json.dumps(tier["status"])
    # The engine goes on.
    control.wait(MODEL_DEPLOYMENT, EXAMPLE, TEAM, ATTACHED)
    west.delete(STATEFUL_SET, name, NAMESPACE)
    control.wait(TIER, NAME, SYSTEM, conditions(Ready="True", ControlPlaneReady="True"), 120)
    (container,) = read(west, STATEFUL_SET, name)["spec"]["template"]["spec"]["containers"]
    assert "--prealloc-size=300" in container["args"]


def test_vineyards_servers_come_to_an_engine_that_did_not_wait_for_them(installed: Environment, west: Kube) -> None:
    control = installed.control.kube
    tier = example_tier(EXAMPLE, "west", "vineyard")
    tier["spec"]["aibrix"] = {
        "distributed": {"vineyard": {"memoryGiBPerReplica": 64, "etcd": {"replicas": 1, "ephemeral": True}}}
    }
    tier["spec"].pop("rdma")
    control.apply(tier)
    found = control.wait(TIER, "vineyard", SYSTEM, conditions(Ready="True", ControlPlaneReady="WaitsForEngines"), 120)
    assert found["status"]["controlPlane"] == "1/2"
    image = "aibrix/vllm-openai:v0.6.1-edb07092-20250118"
    resources = {"limits": {"memory": "100Gi", "nvidia.com/gpu": "1"}, "requests": {"memory": "100Gi"}}
    control.apply(deployment("legacy", "vineyard", engine__image=image, engine__resources=resources))
    control.wait(MODEL_DEPLOYMENT, "legacy", TEAM, ATTACHED, 120)
    control.wait(TIER, "vineyard", SYSTEM, conditions(Ready="True", ControlPlaneReady="Ready"), 90)
    pods = {
        p["metadata"]["name"]: p["spec"]["nodeName"] for p in west.find(POD, NAMESPACE) if p["spec"].get("nodeName")
    }
    (engine,) = [node for name, node in pods.items() if "legacy" in name]
    (server,) = [node for name, node in pods.items() if name.startswith("kvcache-") and "vineyard" in name]
    assert server == engine
