"""An etcd that a tier provisions: one member, or three that form one cluster."""

from collections.abc import Mapping, Sequence

from function import kube, sizing, workloads
from function.api.tier import EtcdProvision, Volume
from function.backends.base import Part, Tier

COMPONENT = "etcd"
CLIENT_PORT = 2379
_PEER_PORT = 2380
_METRICS_PORT = 2381
_USER = 65532
_DATA = "/var/lib/etcd"
_CONFIG = "/etc/kv-etcd"
_EPHEMERAL_SIZE = "8Gi"
_QUOTA_SHARE = 0.7

# etcd asks once, at a member's first start, whether its cluster is new. One that comes back without its data says so
# too, for then it is refused: it might vote twice. Once removed and added again, it is in the others' list without a
# name, and joins the cluster that is there; docs/mooncake.md has the commands. The list is read by the gRPC gateway,
# which a configuration file turns off in etcd 3.4 unless it says otherwise.
_CONFIGURE = f"""set -eu
state=new
for peer in $PEERS; do
  if wget -q -T 2 -O - --post-data '{{}}' "http://$peer:{CLIENT_PORT}/v3/cluster/member/list" | tr '{{' '\\n' |
    grep -F '"peerURLs":["http://'"$HOST:{_PEER_PORT}"'"]' | grep -qv '"name"'; then state=existing; fi
done
cat > {_CONFIG}/etcd.yaml <<EOF
name: $POD_NAME
data-dir: {_DATA}/data
listen-peer-urls: http://$POD_IP:{_PEER_PORT}
listen-client-urls: http://$POD_IP:{CLIENT_PORT}
listen-metrics-urls: http://$POD_IP:{_METRICS_PORT}
initial-advertise-peer-urls: http://$HOST:{_PEER_PORT}
advertise-client-urls: http://$HOST:{CLIENT_PORT}
initial-cluster: $CLUSTER
initial-cluster-token: $TOKEN
initial-cluster-state: $state
enable-grpc-gateway: true
auto-compaction-mode: periodic
auto-compaction-retention: 1h
quota-backend-bytes: $QUOTA
EOF
"""


def endpoints(tier: Tier, provision: EtcdProvision) -> Sequence[str]:
    """Give the members' host:port, as masters, agents and engines ask them."""
    return [f"{member}:{CLIENT_PORT}" for member in _hosts(tier, provision)]


def parts(tier: Tier, provision: EtcdProvision, clients: Sequence[Mapping[str, str]]) -> list[Part]:
    """Plan the members and what stands around them.

    Args:
        tier: The tier.
        provision: What was asked for.
        clients: The sets of labels of the pods that may ask it; it knows no authentication.

    Returns:
        StatefulSet, headless Service, NetworkPolicy and, for several members, PodDisruptionBudget.
    """
    rules = [
        workloads.from_clients(tier, clients, ["client"]),
        workloads.from_pods([tier.selector(COMPONENT)], ["client", "peer", workloads.METRICS_PORT_NAME]),
        *workloads.from_prometheus(tier, [workloads.METRICS_PORT_NAME]),
    ]
    found = [
        workloads.service(tier, COMPONENT, {"client": CLIENT_PORT, "peer": _PEER_PORT}, headless=True),
        workloads.network_policy(tier, COMPONENT, rules, COMPONENT),
        _members(tier, provision),
    ]
    return [*found, workloads.disruption_budget(tier, COMPONENT)] if provision.replicas > 1 else found


def _quota(provision: EtcdProvision) -> int:
    """Give the bytes that a member may hold: less than its volume, which also holds its log, and no more than 8 GiB."""
    size = _EPHEMERAL_SIZE if provision.ephemeral else (provision.volume or Volume()).size
    return min(8 * sizing.GIB, int(sizing.quantity(size) * _QUOTA_SHARE))


def _hosts(tier: Tier, provision: EtcdProvision) -> list[str]:
    name = tier.named(COMPONENT)
    return [f"{name}-{i}.{tier.host(COMPONENT)}" for i in range(provision.replicas)]


def _members(tier: Tier, provision: EtcdProvision) -> Part:
    volume = None if provision.ephemeral else provision.volume or Volume()
    template = _template(tier, provision)
    lost = "and what its members hold is gone"
    return workloads.stateful_set(tier, COMPONENT, template, replicas=provision.replicas, volume=volume, lost=lost)


def _template(tier: Tier, provision: EtcdProvision) -> kube.Manifest:
    hosts = _hosts(tier, provision)
    names = [host.partition(".")[0] for host in hosts]
    env = [
        workloads.field("POD_NAME", "metadata.name"),
        workloads.field("POD_IP", "status.podIP"),
        {"name": "PEERS", "value": " ".join(hosts)},
        {"name": "HOST", "value": f"$(POD_NAME).{tier.host(COMPONENT)}"},
        {
            "name": "CLUSTER",
            "value": ",".join(f"{n}=http://{h}:{_PEER_PORT}" for n, h in zip(names, hosts, strict=True)),
        },
        {"name": "TOKEN", "value": tier.named(COMPONENT)},
        {"name": "QUOTA", "value": str(_quota(provision))},
    ]
    config = {"name": "config", "mountPath": _CONFIG}
    configure = {
        "name": "configure",
        "image": tier.spec.images.shell or tier.release.shell_image,
        "command": ["sh", "-c", _CONFIGURE],
        "env": env,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": dict(workloads.CONFINED),
        "volumeMounts": [config],
    }
    member = {
        "name": "etcd",
        "image": tier.spec.images.etcd or tier.release.etcd_image,
        "command": ["etcd", f"--config-file={_CONFIG}/etcd.yaml"],
        "ports": [
            {"name": "client", "containerPort": CLIENT_PORT},
            {"name": "peer", "containerPort": _PEER_PORT},
            {"name": workloads.METRICS_PORT_NAME, "containerPort": _METRICS_PORT},
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        # Not healthy without a majority, which a restart of this one would not bring back.
        "readinessProbe": {"httpGet": {"path": "/health", "port": "client"}, "periodSeconds": 5},
        "startupProbe": {"tcpSocket": {"port": "client"}, "periodSeconds": 5, "failureThreshold": 60},
        "livenessProbe": {"tcpSocket": {"port": "client"}, "periodSeconds": 10},
        "securityContext": dict(workloads.CONFINED),
        "volumeMounts": [config, {"name": "data", "mountPath": _DATA}],
    }
    pod = {
        **workloads.pod_basics(tier),
        "securityContext": workloads.confined_pod(_USER),
        "affinity": workloads.spread(tier, COMPONENT),
        "initContainers": [configure],
        "containers": [member],
        "volumes": [
            {"name": "config", "emptyDir": {"sizeLimit": "1Mi"}},
            *([{"name": "data", "emptyDir": {"sizeLimit": _EPHEMERAL_SIZE}}] if provision.ephemeral else []),
        ],
    }
    return {"metadata": {"labels": tier.selector(COMPONENT) | kube.MANAGED_BY}, "spec": pod}
