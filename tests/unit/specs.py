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
    st.sampled_from([{"backend": "Mooncake"}, {"backend": "Nixl"}, {"tierRef": {"name": "behind"}}]),
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
AIBRIX = st.builds(
    lambda offloading: {"offloading": offloading},
    st.fixed_dictionaries(
        {},
        optional={
            "cpuTierGiBPerNode": GIB,
            "engineGiBPerRank": st.integers(1, 64),
            "evictionPolicy": st.sampled_from(["S3FIFO", "LRU", "FIFO"]),
        },
    ),
)
BLOCKS: dict[str, Spec] = {
    "LMCache": LMCACHE,
    "Mooncake": MOONCAKE,
    "Nixl": NIXL,
    "HiCache": HICACHE,
    "AIBrix": AIBRIX,
}


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
        spec[behind.lower()] = draw(BLOCKS[behind])
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
    return spec


def of_backend(backend: str) -> Spec:
    """Give specs of a backend that the API accepts."""
    return _spec(backend).filter(_accepted)
