"""The agents: Mooncake's store service on every node, which gives its memory to the pool and asks for nothing."""

from function import kube, placement, rdma, sizing, workloads
from function.backends.base import CREDENTIALS, Part, Tier, given
from function.backends.mooncake import cluster

DISK_DIR = "/var/lib/mooncake"
_USER = 65532
# Without the REST API, whose port is open to all, needs no authentication and can empty the pool.
_PROGRAM = """import os, shutil
import mooncake.mooncake_store_service as service

folder = os.environ.get("MOONCAKE_OFFLOAD_FILE_STORAGE_PATH")
if folder:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)


async def no_rest(self, *args, **kwargs):
    return True


assert callable(service.MooncakeStoreService.start_http_service)
service.MooncakeStoreService.start_http_service = no_rest
service.sync_main()
"""
# Pinning a large segment takes minutes, and so does waiting for a master; a start that is still at it is not dead.
_STARTUP_PERIOD, _STARTUP_FAILURES = 10, 90
# With several masters an agent takes half a minute to leave.
_GRACE_SECONDS = 60


def parts(tier: Tier) -> list[Part]:
    """Plan the agents' DaemonSet and the NetworkPolicy in front of it."""
    clients = [workloads.engines(tier), tier.selector("agent")]
    # Reads from a disk go by a port that nothing can choose.
    rule = workloads.from_pods(clients, [])
    if not given(tier.spec.mooncake).disk:
        first, last = (cluster.agent_port(tier, port) for port in (cluster.STORE[0], cluster.STORE[-1]))
        rule["ports"] = [{"port": first, "endPort": last, "protocol": "TCP"}]
    return [
        workloads.network_policy(tier, "agent", [rule]),
        workloads.daemon_set(tier, _template(tier), after=CREDENTIALS, loses="each with an empty part of the pool"),
    ]


def budget(tier: Tier) -> sizing.StoreMemory:
    """Work out an agent's memory."""
    spec = given(tier.spec.mooncake)
    return sizing.store_memory(
        spec.segment_gib_per_node, huge_pages=spec.huge_pages is not None, disk=spec.disk is not None
    )


def _template(tier: Tier) -> kube.Manifest:
    spec = given(tier.spec.mooncake)
    wanted, nics, memory = tier.spec.placement, rdma.for_agents(tier), budget(tier)
    env, mounts, volumes = _environment(tier), *cluster.trust(tier)[1:]
    disks, disk_mounts = _disk(tier)
    amounts = {"memory": f"{memory.memory}Gi", **nics.resources}
    if spec.huge_pages:
        amounts[f"hugepages-{spec.huge_pages}"] = f"{memory.huge_pages}Gi"
    # A capability is of no use to a user who is not root, and neither is a folder that the kubelet has made.
    root = bool(nics.capabilities) or bool(spec.disk and spec.disk.host_path)
    health = {"httpGet": {"path": "/health", "port": workloads.HEALTH_PORT_NAME}}
    # By TCP, since it is well without a master. Of the other ports nobody knows which it has taken.
    alive = {"tcpSocket": {"port": workloads.HEALTH_PORT_NAME}}
    container = {
        "name": "store",
        "image": cluster.image(tier),
        "command": ["python3", "-c", _PROGRAM],
        "env": env,
        "ports": [
            *({"name": f"store-{n}", "containerPort": cluster.agent_port(tier, n)} for n in cluster.STORE),
            {"name": workloads.HEALTH_PORT_NAME, "containerPort": cluster.agent_port(tier, cluster.HEALTH)},
        ],
        "resources": kube.prune(
            {
                "requests": {"cpu": "2", **amounts},
                "limits": amounts,
                "claims": [{"name": c["name"]} for c in nics.claims],
            }
        ),
        "startupProbe": alive | {"periodSeconds": _STARTUP_PERIOD, "failureThreshold": _STARTUP_FAILURES},
        # An agent that has lost its master is not ready, but a restart would only lose its keys too.
        "readinessProbe": health | {"periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": alive | {"periodSeconds": 10, "failureThreshold": 6},
        "securityContext": kube.prune(
            {
                **workloads.CONFINED,
                "capabilities": kube.prune({"drop": ["ALL"], "add": list(nics.capabilities)}),
                "runAsUser": 0 if root else None,
            }
        ),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts, *disk_mounts],  # noqa: S108 (a mount, no file)
    }
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "terminationGracePeriodSeconds": _GRACE_SECONDS,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}
            if root
            else workloads.confined_pod(_USER),
            **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if nics.host_network else {}),
            **placement.agents(wanted),
            "resourceClaims": list(nics.claims),
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *volumes, *disks],
        }
    )
    return {"metadata": {"labels": tier.selector("agent") | kube.MANAGED_BY}, "spec": pod}


def _environment(tier: Tier) -> list[kube.Manifest]:
    spec = given(tier.spec.mooncake)
    first, last = (str(cluster.agent_port(tier, port)) for port in (cluster.STORE[0], cluster.STORE[-1]))
    values = {
        # Plain bytes are the one form that every version reads alike.
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(spec.segment_gib_per_node * sizing.GIB),
        # It never gets nor puts.
        "MOONCAKE_LOCAL_BUFFER_SIZE": "0",
        "MOONCAKE_ENABLE_CLIENT_HTTP_SERVER": "true",
        "MOONCAKE_CLIENT_HTTP_PORT": str(cluster.agent_port(tier, cluster.HEALTH)),
        # Two spellings, of which each version reads one.
        **{f"MC_MIN_{name}_PORT": first for name in ("RPC", "PRC")},
        **{f"MC_MAX_{name}_PORT": last for name in ("RPC", "PRC")},
    }
    if spec.huge_pages:
        values |= {
            "MC_STORE_USE_HUGEPAGE": "1",
            "MC_STORE_HUGEPAGE_SIZE": {"2Mi": "2MB", "1Gi": "1GB"}[spec.huge_pages],
        }
    if spec.disk:
        limit = str(int(sizing.quantity(spec.disk.size_per_node) * sizing.STORE_DISK_SHARE))
        values |= {
            "MOONCAKE_OFFLOAD_ENABLED": "true",
            "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": f"{DISK_DIR}/kv",
            # What the master is told, and what is kept to: by itself the first bounds nothing.
            "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES": limit,
            "MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE": limit,
            "MOONCAKE_OFFLOAD_BUCKET_EVICTION_POLICY": "lru",
            # Only whole buckets are written, so they must be much smaller than the segment.
            "MOONCAKE_OFFLOAD_BUCKET_SIZE_LIMIT_BYTES": str(sizing.STORE_BUCKET_BYTES),
            "MOONCAKE_OFFLOAD_LOCAL_BUFFER_SIZE_BYTES": str(sizing.STORE_STAGING_BYTES),
        }
    bind = [workloads.field("MC_TCP_BIND_ADDRESS", "status.podIP")]
    return [*cluster.environment(tier), *bind, *workloads.variables(values)]


def _disk(tier: Tier) -> tuple[list[kube.Manifest], list[kube.Manifest]]:
    disk = given(tier.spec.mooncake).disk
    if disk is None:
        return [], []
    mount = {"name": "disk", "mountPath": DISK_DIR}
    if disk.host_path:
        # Two tiers may be given the same folder.
        host = {"name": "disk", "hostPath": {"path": disk.host_path.path, "type": "DirectoryOrCreate"}}
        return [host], [mount | {"subPath": tier.instance}]
    return [workloads.ephemeral_disk(disk.storage_class_name, disk.size_per_node)], [mount]
