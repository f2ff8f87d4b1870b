"""What masters, agents and engines of one pool have to agree on: addresses, ports, and the pool's name."""

from collections.abc import Mapping, Sequence

from function import kube, workloads
from function.api.tier import HA, HOST_PORTS
from function.backends.base import CREDENTIALS, Tier, given
from function.stores import etcd

MASTER = "master"
RPC_PORT = 50051
METRICS_PORT = 9003
METADATA_PORT = 8080
# Of the agents, on the pod network; a tier on the host network names the first of its own. From 32768 to 60999, and
# below 1024, Mooncake ignores what it is told and takes any of 15000 to 17000.
AGENT_PORT = 23060
# What an agent listens on, from its first port on: handshakes and data by any of all but the last, and its health. One
# that starts again cannot take the same ports for a minute, so there are more than it needs.
STORE = range(HOST_PORTS - 1)
HEALTH = HOST_PORTS - 1

CA_KEY = "ca.crt"
CA_DIR = "/etc/kv-etcd-ca"
_CA_MOUNT: kube.Manifest = {"name": "kv-etcd-ca", "mountPath": CA_DIR, "readOnly": True}


def highly_available(tier: Tier) -> bool:
    """Whether there are several masters, of which one leads."""
    return given(tier.spec.mooncake).master.replicas == HA


def image(tier: Tier) -> str:
    """Give the image of masters and agents."""
    return tier.spec.images.mooncake or tier.release.mooncake_image


def pool(tier: Tier) -> str:
    """Name the pool: two tiers never have one name, even on an etcd that clusters share.

    An oplog in an etcd that outlives its tier would tell another one of the same name of keys that are long gone.
    """
    spec = given(tier.spec.mooncake)
    name = f"{tier.instance}-{kube.digest(tier.spec.inference_cluster_ref.name)[:5]}"
    outlives = spec.master.oplog and spec.etcd and spec.etcd.endpoints
    return f"{name}-{kube.digest(tier.uid)[:8]}" if outlives else name


def etcd_endpoints(tier: Tier) -> Sequence[str]:
    """Give the etcd's endpoints: host:port, or a URL where TLS is asked for."""
    store = given(given(tier.spec.mooncake).etcd)
    if store.provision:
        return etcd.endpoints(tier, store.provision)
    return [endpoint.removeprefix("http://") for endpoint in store.endpoints or ()]


def master_address(tier: Tier) -> str:
    """Give the address by which clients find the master that leads."""
    if highly_available(tier):
        return f"etcd://{';'.join(etcd_endpoints(tier))}"
    return master_service(tier)


def master_service(tier: Tier) -> str:
    """Give what has to answer before a client starts, which gives up without a master; of several the leader does."""
    return f"{tier.host(MASTER)}:{RPC_PORT}"


def metadata_server(tier: Tier) -> str:
    """Give how clients find each other's segments; all of them must say the same."""
    if given(tier.spec.mooncake).metadata == "HTTP":
        return f"http://{tier.host(MASTER)}:{METADATA_PORT}/metadata"
    return "P2PHANDSHAKE"


def protocol(tier: Tier) -> str:
    """Give the transport's name; its default has moved between versions."""
    return given(tier.spec.mooncake).protocol.lower()


def devices(tier: Tier) -> str:
    """Give the RDMA devices' names; empty for all that a pod sees."""
    return ",".join(tier.spec.rdma.net_devices) if tier.spec.rdma else ""


def environment(tier: Tier) -> list[kube.Manifest]:
    """Write what agents and engines read alike, by every name that a supported version has for it."""
    rdma = tier.spec.rdma
    values = {
        "MOONCAKE_MASTER": master_address(tier),
        "MOONCAKE_TE_META_DATA_SERVER": metadata_server(tier),
        "MOONCAKE_PROTOCOL": protocol(tier),
        "MOONCAKE_DEVICE": devices(tier),
    }
    if highly_available(tier):
        # Without it clients look for the leader of another pool, and find none.
        values["MC_STORE_CLUSTER_ID"] = pool(tier)
    if rdma and rdma.gid_index is not None:
        values["MC_GID_INDEX"] = str(rdma.gid_index)
    return [
        workloads.field("MOONCAKE_LOCAL_HOSTNAME", "status.podIP"),
        # Its name before MOONCAKE_HOSTNAME and SGLANG_POOL_HOSTNAME of the version table.
        workloads.field("LOCAL_HOSTNAME", "status.podIP"),
        *workloads.variables(values),
        *trust(tier)[0],
    ]


def trust(tier: Tier) -> tuple[list[kube.Manifest], list[kube.Manifest], list[kube.Manifest]]:
    """Let a pod trust a given etcd's authority beside its own: variables, mounts and volumes; empty without one."""
    store = given(tier.spec.mooncake).etcd
    if store is None or store.ca_secret_ref is None:
        return [], [], []
    ref = store.ca_secret_ref
    volume = {
        "name": _CA_MOUNT["name"],
        "secret": {
            "secretName": ref.name if ref.on_cluster else tier.instance,
            "items": [{"key": ref.key if ref.on_cluster else CA_KEY, "path": CA_KEY}],
        },
    }
    # Go reads every folder of the list; an SSL_CERT_FILE would replace the image's own authorities.
    env = workloads.variables({"SSL_CERT_DIR": f"{CA_DIR}:/etc/ssl/certs"})
    return env, [_CA_MOUNT], [volume]


def secret_name(tier: Tier) -> Mapping[str, str]:
    """Name the Secret with a given etcd's authority, unless it is on the inference cluster already."""
    store = given(tier.spec.mooncake).etcd
    ref = store.ca_secret_ref if store else None
    return {CREDENTIALS: ref.name} if ref and not ref.on_cluster else {}


def agent_port(tier: Tier, which: int) -> int:
    """Give one of an agent's ports: one of STORE, or HEALTH."""
    rdma = tier.spec.rdma
    first = rdma.host_network.first_port if rdma and rdma.host_network else AGENT_PORT
    return first + which
