"""The master: one that is recreated, or three of which one leads and two stand by."""

from collections.abc import Mapping

from function import kube, workloads
from function.backends.base import CREDENTIALS, Part, Tier, given
from function.backends.mooncake import cluster
from function.backends.mooncake.cluster import MASTER

_USER = 65532
_BINARY = "mooncake_master"
# Up to a KiB for each key; without memory for them the pool would be lost.
_MEMORY_LIMIT = "16Gi"
# A standby that has just started learns from the log first, before a roll takes the leader.
_STANDBY_SECONDS = 30


def parts(tier: Tier) -> list[Part]:
    """Plan the master's Deployment, Service and NetworkPolicy, and for three a PodDisruptionBudget."""
    ports: Mapping[str, int] = {"rpc": cluster.RPC_PORT}
    if given(tier.spec.mooncake).metadata == "HTTP":
        ports = {**ports, "metadata": cluster.METADATA_PORT}
    clients = [workloads.engines(tier), tier.selector("agent"), tier.selector(MASTER)]
    rules = [
        workloads.from_clients(tier, clients, list(ports)),
        # Declared even where nobody scrapes it: a port more or less would restart the master, and empty the pool.
        workloads.from_pods([tier.selector(MASTER)], [workloads.METRICS_PORT_NAME]),
        *workloads.from_prometheus(tier, [workloads.METRICS_PORT_NAME]),
    ]
    found = [
        workloads.service(tier, MASTER, ports),
        workloads.network_policy(tier, MASTER, rules, MASTER),
        _deployment(tier, {**ports, workloads.METRICS_PORT_NAME: cluster.METRICS_PORT}),
    ]
    return [*found, workloads.disruption_budget(tier, MASTER)] if cluster.highly_available(tier) else found


def _deployment(tier: Tier, ports: Mapping[str, int]) -> Part:
    several = cluster.highly_available(tier)
    # Two single masters at once would each know half of the keys; of three, one at a time keeps a leader.
    strategy = (
        {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
        if several
        else {"type": "Recreate"}
    )
    spec = kube.prune(
        {
            "replicas": given(tier.spec.mooncake).master.replicas,
            "minReadySeconds": _STANDBY_SECONDS if several else None,
            "strategy": strategy,
            "selector": {"matchLabels": tier.selector(MASTER)},
            "template": _template(tier, ports),
        }
    )
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": tier.metadata(MASTER, MASTER),
        "spec": spec,
    }
    lost = "" if given(tier.spec.mooncake).master.oplog else "and the pool's keys are gone"
    return Part(MASTER, manifest, ready=workloads.DEPLOYMENT_READY, after=CREDENTIALS, loses=lost)


def _template(tier: Tier, ports: Mapping[str, int]) -> kube.Manifest:
    several = cluster.highly_available(tier)
    # A standby answers /health, but does not listen for clients.
    health = {"httpGet": {"path": "/health", "port": cluster.METRICS_PORT}}
    env, mounts, volumes = cluster.trust(tier)
    container = kube.prune(
        {
            "name": MASTER,
            "image": cluster.image(tier),
            "command": [_BINARY],
            "args": _args(tier),
            "env": [workloads.field("POD_IP", "status.podIP"), *env],
            "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": _MEMORY_LIMIT}},
            "startupProbe": health | {"periodSeconds": 2, "failureThreshold": 60},
            "readinessProbe": (health if several else {"tcpSocket": {"port": "rpc"}}) | {"periodSeconds": 5},
            "livenessProbe": health | {"periodSeconds": 10},
            "securityContext": dict(workloads.CONFINED),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],  # noqa: S108 (a mount, no file)
        }
    )
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "securityContext": workloads.confined_pod(_USER),
            "affinity": workloads.spread(tier, MASTER) if several else {},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *volumes],
        }
    )
    return {"metadata": {"labels": tier.selector(MASTER) | kube.MANAGED_BY}, "spec": pod}


def _args(tier: Tier) -> list[str]:
    spec = given(tier.spec.mooncake)
    # With a disk, room has to be made early: what is evicted before it is written down is lost.
    watermark, ratio = ("0.7", "0.2") if spec.disk else ("0.9", "0.05")
    args = [
        # What a leader publishes for clients.
        "--rpc_address=$(POD_IP)",
        f"--rpc_port={cluster.RPC_PORT}",
        "--metrics_host=$(POD_IP)",
        f"--metrics_port={cluster.METRICS_PORT}",
        "--default_kv_lease_ttl=10000",
        f"--eviction_high_watermark_ratio={watermark}",
        f"--eviction_ratio={ratio}",
    ]
    if spec.metadata == "HTTP":
        args += [
            "--enable_http_metadata_server=true",
            f"--http_metadata_server_port={cluster.METADATA_PORT}",
            # Or an agent that died is still found.
            "--enable_metadata_cleanup_on_timeout=true",
        ]
    if spec.disk:
        args.append("--enable_offload=true")
    if cluster.highly_available(tier):
        args += [
            "--enable_ha=true",
            f"--etcd_endpoints={';'.join(cluster.etcd_endpoints(tier))}",
            f"--cluster_id={cluster.pool(tier)}",
        ]
        if spec.master.oplog:
            args.append("--enable_oplog=true")
    return args
