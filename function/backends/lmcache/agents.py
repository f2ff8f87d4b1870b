"""The agents: `lmcache server` on every node with GPUs, and what stands around it."""

from collections.abc import Mapping

from function import kube, placement, sizing, workloads
from function.backends.base import CREDENTIALS, Credential, Part, Tier, given
from function.backends.lmcache import encryption, redis, volumes
from function.backends.lmcache.connector import HEARTBEAT_SECONDS, SERVER_PORT
from function.stores import valkey

HTTP_PORT = 8080
METRICS_PORT = 9090

_PYTHON = "/opt/venv/bin/python"
_SERVER = ("/opt/venv/bin/lmcache", "server")
# The same server without its admin API, and the only one that serves metrics on a port of their own.
_SERVER_WITH_METRICS = (_PYTHON, "-m", "lmcache.v1.multiprocess.server")
# Three missed heartbeats, twice over, and an engine's GPU buffers are freed (LMCache #4631).
_REAP_SECONDS = 6 * HEARTBEAT_SECONDS
# An engine that is idle before its first request is no dead one; the default of an hour kills it (LMCache #4715).
_GRACE_SECONDS = 86400
# Pinned memory is taken at start; a server that is still taking it is not a dead one.
_STARTUP_FAILURES = 60
# An agent connects to Redis when it starts, and never again; without one it runs on.
_WAIT = """\
import socket, sys, time
end = time.monotonic() + 600
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as server:
            server.sendall(b"PING\\r\\n")
            if server.recv(5) == b"+PONG":
                break
    except OSError:
        pass
    time.sleep(2)
"""
_EVICTION = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}


def image(tier: Tier) -> str:
    """Give the agents' image."""
    return tier.spec.images.lmcache or tier.release.lmcache_image


def parts(tier: Tier, credentials: Mapping[str, Credential]) -> list[Part]:
    """Plan the agents' DaemonSet, and the Service and NetworkPolicy that stand around it.

    `credentials` are the tier's Secrets by part, as far as they are known.
    """
    rules = [
        workloads.from_pods([workloads.engines(tier)], ["lmcache"]),
        *workloads.from_prometheus(tier, ["metrics"]),
    ]
    return [
        _service(tier),
        workloads.network_policy(tier, "agent", rules),
        # Longer than one heartbeat between agents, so that clients notice a restart (LMCache #4642).
        workloads.daemon_set(
            tier,
            _agent_template(tier, credentials),
            after=CREDENTIALS,
            loses="each with an empty cache",
            min_ready_seconds=15,
        ),
    ]


def _scraped(tier: Tier) -> bool:
    return bool(workloads.from_prometheus(tier, ["metrics"]))


def _service(tier: Tier) -> Part:
    spec = {
        "selector": tier.selector("agent"),
        # An engine must reach the agent of its own node, whose GPUs it shares memory with.
        "internalTrafficPolicy": "Local",
        "ports": [{"name": "lmcache", "port": SERVER_PORT, "targetPort": "lmcache"}],
    }
    return Part("service", {"apiVersion": "v1", "kind": "Service", "metadata": tier.metadata("agent"), "spec": spec})


def _agent_template(tier: Tier, credentials: Mapping[str, Credential]) -> kube.Manifest:
    spec = given(tier.spec.lmcache)
    wanted = tier.spec.placement
    cdi = wanted.gpu_access.type == "CDI"
    budget = sizing.agent_memory(spec.cpu_tier_gib_per_node)
    tcp = {"tcpSocket": {"port": "lmcache"}}
    disks, mounts = _agent_volumes(tier)
    server = _SERVER_WITH_METRICS if _scraped(tier) else _SERVER
    command = list(server)
    ports = {"lmcache": SERVER_PORT} | ({"metrics": METRICS_PORT} if _scraped(tier) else {})
    if spec.disk_tier:
        # Nothing recounts the files a disk holds from before a start, so each start begins with an empty one.
        clear = f"rm -rf {volumes.DISK_DIR}/kv && mkdir {volumes.DISK_DIR}/kv"
        command = ["/bin/sh", "-c", f'{clear} && exec {" ".join(server)} "$@"', "lmcache"]
    container = kube.prune(
        {
            "name": "lmcache",
            "image": image(tier),
            "command": command,
            "args": _agent_args(tier),
            "env": _agent_env(tier),
            "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
            "resources": {
                "requests": {"cpu": "4", "memory": f"{budget.request}Gi"},
                "limits": {"memory": f"{budget.limit}Gi"},
            },
            "startupProbe": tcp | {"periodSeconds": 5, "failureThreshold": _STARTUP_FAILURES},
            "readinessProbe": tcp | {"periodSeconds": 5},
            "livenessProbe": tcp | {"periodSeconds": 10},
            "securityContext": kube.prune(
                {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    # Files in a shared /dev/shm are their owner's alone, and engines run as root (LMCache #3862).
                    "runAsUser": 0 if spec.ipc == "Shared" else None,
                }
            ),
            "volumeMounts": mounts,
        }
    )
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "runtimeClassName": None if cdi else wanted.gpu_access.runtime_class_name or None,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            **placement.agents(wanted),
            "initContainers": _wait(tier),
            "containers": [container],
            "volumes": disks,
        }
    )
    annotations = {
        **({"nvidia.cdi.k8s.io/container.lmcache": "management.nvidia.com/gpu=all"} if cdi else {}),
        **_store_hash(tier, credentials.get(CREDENTIALS)),
        **encryption.annotations(tier, credentials.get(encryption.PART)),
    }
    metadata = kube.prune({"labels": tier.selector("agent") | kube.MANAGED_BY, "annotations": annotations})
    return {"metadata": metadata, "spec": pod}


def _wait(tier: Tier) -> list[kube.Manifest]:
    """Let an agent wait for the tier's own Valkey, which may start with it: ten minutes, and then do without."""
    to = redis.endpoint(tier)
    if not to or not to.revision:
        return []
    return [
        {
            "name": "wait-for-valkey",
            "image": image(tier),
            "command": [_PYTHON, "-c", _WAIT, to.host, str(to.port)],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ]


def _store_hash(tier: Tier, credential: Credential | None) -> dict[str, str]:
    """Let agents restart when the tier's own Valkey does, which they would not connect to again."""
    remote = given(tier.spec.lmcache).redis
    if not remote or not remote.provision:
        return {}
    revision = valkey.revision(tier, redis.VALKEY, remote.provision, credential.version if credential else "")
    return {f"{kube.DOMAIN}/store-hash": revision}


def _agent_args(tier: Tier) -> list[str]:
    spec = given(tier.spec.lmcache)
    size = sizing.amount("--l1-size-gb", spec.cpu_tier_gib_per_node * sizing.GIB)
    args = [
        "--host=0.0.0.0",
        f"--port={SERVER_PORT}",
        # The admin API knows no authentication, so it stays on loopback and probes are TCP.
        *(
            [f"--prometheus-port={METRICS_PORT}"]
            if _scraped(tier)
            else ["--http-host=127.0.0.1", f"--http-port={HTTP_PORT}"]
        ),
        "--instance-id=$(NODE_NAME)",
        f"--l1-size-gb={size}",
        "--eviction-policy=LRU",
        f"--chunk-size={spec.chunk_size}",
        "--hash-algorithm=blake3",
        f"--worker-reap-timeout-seconds={_REAP_SECONDS}",
        f"--worker-registration-grace-seconds={_GRACE_SECONDS}",
    ]
    if spec.ipc == "Isolated":
        args.append("--isolated-ipc")
    return [*args, *(f"--l2-adapter={kube.compact(adapter)}" for adapter in _adapters(tier))]


def _adapters(tier: Tier) -> list[dict[str, object]]:
    """L2 in order of speed: the node's disk, then Redis."""
    spec = given(tier.spec.lmcache)
    adapters: list[dict[str, object]] = []
    if spec.disk_tier:
        capacity = sizing.disk_capacity(sizing.quantity(spec.disk_tier.size_per_node))
        adapters.append(
            {
                "type": "fs_native",
                "base_path": f"{volumes.DISK_DIR}/kv",
                "use_odirect": True,
                "max_capacity_gb": sizing.amount("max_capacity_gb", capacity),
                "eviction": _EVICTION,
            }
        )
    to = redis.endpoint(tier)
    if to and spec.redis:
        resp: dict[str, object] = {"type": "resp", "host": to.host, "port": to.port}
        # One evictor, never two: the agent's own where a capacity is given, else the server's policy.
        if spec.redis.max_capacity_gib:
            capacity = spec.redis.max_capacity_gib * sizing.GIB
            resp |= {"max_capacity_gb": sizing.amount("max_capacity_gb", capacity), "eviction": _EVICTION}
        adapters.append(resp)
    return [adapter | encryption.serde(tier) for adapter in adapters]


def _agent_env(tier: Tier) -> list[kube.Manifest]:
    env: list[kube.Manifest] = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "LMCACHE_TRACK_USAGE", "value": "false"},
    ]
    if tier.spec.placement.gpu_access.type == "Runtime":
        # All of the node's GPUs, and none of them claimed: engines own them.
        env += [
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"},
        ]
    to = redis.endpoint(tier)
    return env + (redis.resp_env(to) if to else [])


def _agent_volumes(tier: Tier) -> tuple[list[kube.Manifest], list[kube.Manifest]]:
    spec = given(tier.spec.lmcache)
    disks, mounts = encryption.volume(tier)
    disk = spec.disk_tier
    if disk and disk.host_path:
        disks.append({"name": "disk", "hostPath": {"path": disk.host_path.path, "type": "DirectoryOrCreate"}})
        # Two tiers may be given the same folder.
        mounts.append({"name": "disk", "mountPath": volumes.DISK_DIR, "subPath": tier.instance})
    elif disk:
        disks.append(workloads.ephemeral_disk(disk.storage_class_name, disk.size_per_node))
        mounts.append({"name": "disk", "mountPath": volumes.DISK_DIR})
    if spec.ipc == "Shared":
        disks.append(volumes.SHM_VOLUME)
        mounts.append(volumes.SHM_MOUNT)
    return disks, mounts
