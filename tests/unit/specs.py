"""Generated specs of a KVOffloadTier: every backend, with whatever of its fields goes together."""

from typing import Any

from hypothesis import strategies as st

from function import api
from function.api.tier import TierSpec
from function.kube import Manifest

Spec = st.SearchStrategy[Manifest]

SIZES = st.sampled_from(["500Gi", "1Ti", "1500G"])
DISKS = st.one_of(
    st.fixed_dictionaries({"storageClassName": st.just("nvme"), "sizePerNode": SIZES}),
    st.fixed_dictionaries({"hostPath": st.just({"path": "/mnt/kv"}), "sizePerNode": SIZES}),
)
GIB = st.integers(8, 4096)
COUNTS = st.builds(lambda count: {"count": count}, st.integers(0, 8))
SECRETS = st.fixed_dictionaries({"name": st.just("kv")}, optional={"onCluster": st.booleans()})

REDIS = st.one_of(
    st.fixed_dictionaries(
        {"host": st.just("kv.cache.svc")},
        optional={
            "port": st.integers(1, 65535),
            "secretRef": SECRETS,
            "tls": st.booleans(),
            "mode": st.sampled_from(["Standalone", "Cluster"]),
            "maxCapacityGiB": st.integers(1, 500),
        },
    ),
    st.fixed_dictionaries(
        {
            "provision": st.fixed_dictionaries(
                {"memory": SIZES}, optional={"persistence": st.sampled_from([{}, {"size": "64Gi"}])}
            )
        }
    ),
)
LMCACHE = st.fixed_dictionaries(
    {"cpuTierGiBPerNode": GIB},
    optional={
        "mode": st.sampled_from(["Auto", "Multiprocess", "InProcess"]),
        "ipc": st.sampled_from(["Isolated", "Shared"]),
        "diskTier": DISKS,
        "remote": st.builds(lambda redis: {"redis": redis}, REDIS),
        "chunkSize": st.sampled_from([16, 256, 512]),
        "encryption": st.builds(lambda ref: {"secretRef": ref}, SECRETS),
    },
)
ETCD = st.one_of(
    st.fixed_dictionaries(
        {
            "provision": st.fixed_dictionaries(
                {"replicas": st.sampled_from([1, 3])},
                optional={"volume": st.sampled_from([{}, {"size": "16Gi"}])},
            )
        }
    ),
    st.just({"provision": {"replicas": 1, "ephemeral": True}}),
    st.fixed_dictionaries(
        {"endpoints": st.sampled_from([["http://etcd.kv:2379"], ["https://a.kv:2379", "https://b.kv:2379"]])},
        optional={"caSecretRef": SECRETS},
    ),
)
MOONCAKE = st.fixed_dictionaries(
    {"segmentGiBPerNode": GIB},
    optional={
        "protocol": st.sampled_from(["RDMA", "TCP"]),
        "hugePages": st.sampled_from(["2Mi", "1Gi"]),
        "master": st.sampled_from([{"replicas": 1}, {"replicas": 3}]),
        "etcd": ETCD,
        "metadata": st.sampled_from(["P2P", "HTTP"]),
        "disk": DISKS,
    },
)
NIXL = st.one_of(
    st.builds(lambda port: {"p2p": {"sideChannelPort": port}}, st.integers(1024, 65000)),
    st.builds(
        lambda gib, store: {"storage": {"cpuTierGiBPerNode": gib, **store}},
        GIB,
        st.one_of(
            st.builds(lambda size: {"fs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": size}}, SIZES),
            st.builds(
                lambda rest: {"obj": {"bucket": "kv-cache", **rest}},
                st.fixed_dictionaries(
                    {"region": st.just("eu-west-1")},
                    optional={"endpoint": st.just("http://minio.kv:9000"), "secretRef": SECRETS},
                ),
            ),
        ),
    ),
)
L3 = st.one_of(
    st.sampled_from(
        [{"backend": "Mooncake"}, {"backend": "Nixl"}, {"backend": "AIBrix"}, {"tierRef": {"name": "behind"}}]
    ),
    st.builds(lambda size: {"backend": "File", "file": {"claimName": "kv", "sizePerRank": size}}, SIZES),
)
HICACHE = st.builds(
    lambda size, rest: {**size, **rest},
    st.one_of(
        st.builds(lambda gib: {"hostMemoryGiBPerNode": gib}, GIB),
        st.builds(lambda ratio: {"ratio": ratio}, st.sampled_from([1.5, 2, 4])),
    ),
    st.fixed_dictionaries(
        {},
        optional={"l3": L3, "writePolicy": st.sampled_from(["WriteThrough", "WriteThroughSelective", "WriteBack"])},
    ),
)
RDMA = st.builds(
    lambda kind, rest: {**kind, **rest},
    st.one_of(
        st.just({"extendedResource": {"name": "rdma/hca"}}),
        st.just({"dra": {"deviceClassName": "nics", "selectors": [{"cel": 'device.driver == "dra.net"'}]}}),
        st.just({"dra": {"deviceClassName": "nics", "alignWithGPU": True}}),
    ),
    st.fixed_dictionaries(
        {"agents": COUNTS, "engines": COUNTS},
        optional={
            "netDevices": st.just(["mlx5_0", "mlx5_1"]),
            "gidIndex": st.integers(0, 255),
            "hostNetwork": st.just({"firstPort": 20000}),
        },
    ),
)
COMMON = st.fixed_dictionaries(
    {"inferenceClusterRef": st.just({"name": "eu-h100"})},
    optional={
        "targetNamespace": st.sampled_from(["default", "serving"]),
        "release": st.just("2026.11"),
        "placement": st.fixed_dictionaries(
            {},
            optional={
                "nodeSelector": st.just({"pool": "h100"}),
                "tolerations": st.just([{"key": "gpu", "operator": "Exists"}]),
                "gpusPerNode": st.integers(1, 8),
                "priorityClassName": st.just("system-node-critical"),
                "gpuAccess": st.sampled_from([{"type": "CDI"}, {"runtimeClassName": ""}]),
            },
        ),
        "updateStrategy": st.sampled_from([{"type": "OnDelete"}, {"maxUnavailable": "10%"}, {"maxUnavailable": 2}]),
        "monitoring": st.fixed_dictionaries(
            {},
            optional={
                "podMonitors": st.booleans(),
                "alerts": st.booleans(),
                "dashboard": st.booleans(),
                "labels": st.just({"release": "prometheus"}),
            },
        ),
    },
)
ADDRESSES = st.sampled_from(["10.0.0.7", "fd00::7"])
PORTS = st.integers(1, 65535)
KEYS = st.fixed_dictionaries({"name": st.just("kv")}, optional={"key": st.just("key")})
MEMBERS = st.builds(
    lambda redis: {"redis": redis} if redis else {},
    st.one_of(
        st.just({}),
        st.sampled_from([{"provision": {}}, {"provision": {"memory": "2Gi"}}]),
        st.fixed_dictionaries({"host": st.just("kv.cache.svc")}, optional={"port": PORTS, "secretRef": KEYS}),
    ),
)
# Servers: one by its address, or those that are written down.
REACHED = st.one_of(
    st.fixed_dictionaries({"address": ADDRESSES}, optional={"port": PORTS}),
    st.builds(lambda members: {"metadata": members}, MEMBERS),
)
SPOKEN = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(["RDMA", "TCP"]),
        "linkType": st.sampled_from(["Ethernet", "InfiniBand"]),
    },
)
L2_STORES = st.one_of(
    st.builds(lambda where, how: {"infinistore": {**where, **how}}, REACHED, SPOKEN),
    st.builds(lambda where: {"hpkv": where}, REACHED),
    st.builds(
        lambda server: {"priskv": server},
        st.fixed_dictionaries({"address": ADDRESSES}, optional={"port": PORTS, "secretRef": KEYS}),
    ),
    st.builds(lambda ref: {"eic": {"secretRef": ref}}, KEYS),
    st.builds(lambda size: {"shfs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": size}}, SIZES),
    st.builds(
        lambda database: {"rocksdb": database},
        st.fixed_dictionaries(
            {"sizePerPod": SIZES},
            optional={"storageClassName": st.just("nvme"), "ttlSeconds": st.integers(60, 86400)},
        ),
    ),
)
L2 = st.builds(
    lambda store, rest: {**store, **rest},
    L2_STORES,
    st.fixed_dictionaries({}, optional={"ingestion": st.sampled_from(["Hot", "All", "Evicted"])}),
)
OWN_MEMORY = {"cpuTierGiBPerNode": GIB, "engineGiBPerRank": st.integers(1, 64)}
POLICIES = st.sampled_from(["S3FIFO", "LRU", "FIFO"])
SERVERS = st.fixed_dictionaries(
    {"memoryGiBPerReplica": st.integers(1, 4096)}, optional={"replicas": st.integers(1, 64)}
)
VINEYARD = st.builds(
    lambda servers, rest: {"vineyard": {**servers, **rest}},
    SERVERS,
    st.fixed_dictionaries(
        {},
        optional={
            **OWN_MEMORY,
            "etcd": st.sampled_from([{"replicas": 1, "ephemeral": True}, {"replicas": 1}, {"volume": {}}]),
        },
    ),
)
INFINISTORE = st.builds(
    lambda servers, how, rest: {"infinistore": {**servers, **how, **rest}},
    SERVERS,
    SPOKEN,
    st.fixed_dictionaries({}, optional={"metadata": MEMBERS}),
)
STORES = st.one_of(
    st.builds(lambda l2, rest: {"offloading": {"l2": l2, **rest}}, L2, st.fixed_dictionaries({}, optional=OWN_MEMORY)),
    st.builds(lambda cache: {"distributed": cache}, INFINISTORE),
)
AIBRIX = st.one_of(
    st.builds(
        lambda offloading: {"offloading": offloading},
        st.fixed_dictionaries({}, optional={**OWN_MEMORY, "evictionPolicy": POLICIES, "l2": L2}),
    ),
    st.builds(lambda cache: {"distributed": cache}, st.one_of(INFINISTORE, VINEYARD)),
)
BLOCKS: dict[str, Spec] = {
    "LMCache": LMCACHE,
    "Mooncake": MOONCAKE,
    "Nixl": NIXL,
    "HiCache": HICACHE,
    "AIBrix": AIBRIX,
}
# What may stand behind HiCache is a store.
BEHIND: dict[str, Spec] = {**BLOCKS, "AIBrix": STORES}


def _accepted(spec: Manifest) -> bool:
    try:
        api.parse(TierSpec, spec)
    except api.Invalid:
        return False
    return True


@st.composite
def _spec(draw: st.DrawFn, backend: str) -> Manifest:
    spec: dict[str, Any] = {**draw(COMMON), "backend": backend, backend.lower(): draw(BLOCKS[backend])}
    behind = spec.get("hicache", {}).get("l3", {}).get("backend")
    if behind in BLOCKS:
        spec[behind.lower()] = draw(BEHIND[behind])
    # What the API asks to go together is put together, so that most of what is drawn is accepted.
    if mooncake := spec.get("mooncake"):
        if "etcd" in mooncake:
            mooncake |= {"master": {"replicas": 3, "oplog": draw(st.booleans())}, "metadata": "P2P"}
        else:
            mooncake.pop("master", None)
        if mooncake.get("protocol", "RDMA") == "RDMA":
            spec["rdma"] = {**draw(RDMA), "agents": {"count": 1}, "engines": {"count": 2}}
    elif "p2p" in spec.get("nixl", {}) and draw(st.booleans()):
        spec["rdma"] = draw(RDMA)
    elif "aibrix" in spec and (counts := _nics(spec["aibrix"])):
        spec["rdma"] = {**draw(RDMA), **counts}
        if counts["agents"]["count"]:
            spec["rdma"].pop("hostNetwork", None)
    return spec


def _nics(aibrix: Manifest) -> Manifest | None:
    """Say how many NICs AIBrix's block asks for; None for none."""
    by_rdma, by_tcp = {"count": 2}, {"count": 0}
    if servers := aibrix.get("distributed", {}).get("infinistore"):
        return {"agents": {"count": 1}, "engines": by_rdma if servers.get("protocol", "RDMA") == "RDMA" else by_tcp}
    store = aibrix.get("offloading", {}).get("l2", {})
    if not {"infinistore", "hpkv", "priskv", "eic"} & store.keys():
        return None
    if store.get("infinistore", {}).get("protocol", "RDMA") == "TCP":
        return None
    return {"agents": by_tcp, "engines": by_rdma}


def of_backend(backend: str) -> Spec:
    """Give specs of a backend that the API accepts."""
    return _spec(backend).filter(_accepted)
