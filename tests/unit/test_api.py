"""What users write is read the same with and without the XRDs' defaults, and what is wrong is said by field."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from function import api
from function.api import annotations
from function.api.cluster import ClusterSpec
from function.api.deployment import DeploymentSpec
from function.api.tier import TierSpec
from function.kube import Manifest
from function.render import load, render

XRDS: Mapping[type[api.Model], Path] = {
    TierSpec: Path("apis/kvoffloadtier.yaml"),
    DeploymentSpec: Path("apis/standalone/modeldeployment.yaml"),
    ClusterSpec: Path("apis/standalone/inferencecluster.yaml"),
}

TIER: Manifest = {
    "inferenceClusterRef": {"name": "eu-h100"},
    "backend": "LMCache",
    "lmcache": {"cpuTierGiBPerNode": 64},
}
CLUSTER_REF: Manifest = {"inferenceClusterRef": {"name": "eu-h100"}}
MOONCAKE: Manifest = {
    **CLUSTER_REF,
    "backend": "Mooncake",
    "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"},
}
NIXL: Manifest = {
    **CLUSTER_REF,
    "backend": "Nixl",
    "nixl": {
        "storage": {"cpuTierGiBPerNode": 64, "fs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}},
    },
}
P2P: Manifest = {**CLUSTER_REF, "backend": "Nixl", "nixl": {"p2p": {}}}
HICACHE: Manifest = {**CLUSTER_REF, "backend": "HiCache", "hicache": {"hostMemoryGiBPerNode": 64}}
NICS: Manifest = {
    "extendedResource": {"name": "rdma/rdma_shared_device_a"},
    "agents": {"count": 1},
    "engines": {"count": 2},
}
CLAIMED: Manifest = {
    "dra": {"deviceClassName": "nics", "selectors": [{"cel": "true"}]},
    "agents": {"count": 1},
    "engines": {"count": 2},
}
AIBRIX: Manifest = {**CLUSTER_REF, "backend": "AIBrix", "aibrix": {"offloading": {}}}
# NICs of engines alone, as a store needs them that is there already.
FOR_ENGINES: Manifest = {**NICS, "agents": {"count": 0}}
SERVERS: Manifest = {
    **CLUSTER_REF,
    "backend": "AIBrix",
    "aibrix": {"distributed": {"infinistore": {"memoryGiBPerReplica": 400}}},
    "rdma": NICS,
}
VINEYARD: Manifest = {
    **CLUSTER_REF,
    "backend": "AIBrix",
    "aibrix": {"distributed": {"vineyard": {"memoryGiBPerReplica": 400}}},
}
DEPLOYMENT: Manifest = {
    "engine": {"name": "vLLM", "image": "vllm/vllm-openai:v0.33.0", "kvCache": {"tierRef": {"name": "shared"}}}
}
CLUSTER: Manifest = {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": "eu-h100"}}}}

GONE: Any = object()
SECRET = "c2VjcmV0LWtleS0" * 30
DISK: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}


def changed(spec: Manifest, **changes: Any) -> Manifest:
    """Change a copy of a spec by paths whose parts are joined by two underscores; GONE takes a field out."""
    result = copy.deepcopy(spec)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is GONE:
            del target[last]
        else:
            target[last] = value
    return result


# --- with and without the XRD's defaults --------------------------------------------------------------------------


def defaulted(value: Any, schema: Manifest) -> Any:
    """Fill in a schema's defaults, as the API server does."""
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for name, field in schema.get("properties", {}).items():
        if name not in result and "default" in field:
            result[name] = copy.deepcopy(field["default"])
        if name in result:
            result[name] = defaulted(result[name], field)
    return result


@functools.cache
def schema_of(model: type[api.Model]) -> Manifest:
    """Find the schema of a model's spec in its XRD."""
    (version,) = load(XRDS[model])[0]["spec"]["versions"]
    schema: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def with_defaults(model: type[api.Model], spec: Manifest) -> Manifest:
    """Fill in the defaults of the XRD of a spec's model."""
    filled: Manifest = defaulted(spec, schema_of(model))
    return filled


def test_the_api_server_fills_in_these() -> None:
    assert with_defaults(
        TierSpec, changed(TIER, lmcache__remote={"redis": {"host": "h", "secretRef": {"name": "s"}}})
    ) == {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "LMCache",
        "targetNamespace": "default",
        "allowedNamespaces": {"from": "All"},
        "lmcache": {
            "cpuTierGiBPerNode": 64,
            "mode": "Auto",
            "ipc": "Isolated",
            "chunkSize": 256,
            "remote": {
                "redis": {
                    "host": "h",
                    "port": 6379,
                    "tls": False,
                    "mode": "Standalone",
                    "secretRef": {
                        "name": "s",
                        "usernameKey": "username",
                        "passwordKey": "password",
                        "onCluster": False,
                    },
                }
            },
        },
        "placement": {"gpuAccess": {"type": "Runtime", "runtimeClassName": "nvidia"}},
        "updateStrategy": {"type": "RollingUpdate"},
    }
    assert with_defaults(DeploymentSpec, DEPLOYMENT) == {
        "replicas": 1,
        "engine": {
            "name": "vLLM",
            "image": "vllm/vllm-openai:v0.33.0",
            "kvCache": {
                "tierRef": {"name": "shared", "namespace": "modelplane-system", "kind": "KVOffloadTier"},
                "onUnavailable": "Wait",
            },
        },
    }
    assert with_defaults(ClusterSpec, CLUSTER) == {
        "cluster": {"source": "Existing", "existing": {"secretRef": {"name": "eu-h100", "key": "kubeconfig"}}}
    }


SPECS: dict[str, tuple[type[api.Model], Manifest]] = {
    "a tier": (TierSpec, TIER),
    "a tier with a disk": (TierSpec, changed(TIER, lmcache__diskTier=DISK)),
    "a tier with Redis": (TierSpec, changed(TIER, lmcache__remote={"redis": {"host": "kv.cache.svc"}})),
    "a tier with credentials": (
        TierSpec,
        changed(TIER, lmcache__remote={"redis": {"host": "kv.cache.svc", "secretRef": {"name": "kv"}}}),
    ),
    "a tier with empty blocks": (
        TierSpec,
        changed(TIER, placement={"gpuAccess": {}}, updateStrategy={}, allowedNamespaces={}, images={}),
    ),
    "a tier with tolerations": (TierSpec, changed(TIER, placement={"tolerations": [{"operator": "Exists"}]})),
    "a tier that says OnDelete": (TierSpec, changed(TIER, updateStrategy={"type": "OnDelete"})),
    "a tier in process": (TierSpec, changed(TIER, lmcache__mode="InProcess", placement={"gpusPerNode": 8})),
    "a tier with a Valkey of its own": (
        TierSpec,
        changed(TIER, lmcache__remote={"redis": {"provision": {"memory": "64Gi", "persistence": {}}}}),
    ),
    "a tier that encrypts": (
        TierSpec,
        changed(TIER, lmcache__diskTier=DISK, lmcache__encryption={"secretRef": {"name": "key"}}),
    ),
    "a pool": (TierSpec, MOONCAKE),
    "a pool with an empty master": (TierSpec, changed(MOONCAKE, mooncake__master={})),
    "a pool of three masters": (
        TierSpec,
        changed(MOONCAKE, mooncake__master__replicas=3, mooncake__etcd={"provision": {"volume": {}}}),
    ),
    "a pool with an etcd that is there": (
        TierSpec,
        changed(
            MOONCAKE,
            mooncake__master__replicas=3,
            mooncake__etcd={"endpoints": ["https://etcd:2379"], "caSecretRef": {"name": "etcd"}},
        ),
    ),
    "a pool over RDMA": (TierSpec, changed(MOONCAKE, mooncake__protocol=GONE, rdma=NICS)),
    "a pool over claimed NICs": (TierSpec, changed(MOONCAKE, mooncake__protocol="RDMA", rdma=CLAIMED)),
    "a pool over claimed NICs beside their GPUs": (
        TierSpec,
        changed(
            MOONCAKE,
            mooncake__protocol="RDMA",
            rdma={**CLAIMED, "dra": {"deviceClassName": "nics", "alignWithGPU": True}},
        ),
    ),
    "files": (TierSpec, NIXL),
    "objects": (
        TierSpec,
        changed(
            NIXL,
            nixl__storage__fs=GONE,
            nixl__storage__obj={"bucket": "kv-cache", "region": "eu-west-1", "secretRef": {"name": "s3"}},
        ),
    ),
    "peer to peer": (TierSpec, P2P),
    "HiCache": (TierSpec, HICACHE),
    "HiCache before a pool": (TierSpec, {**MOONCAKE, **changed(HICACHE, hicache__l3={"backend": "Mooncake"})}),
    "HiCache before another tier": (TierSpec, changed(HICACHE, hicache__l3={"tierRef": {"name": "pool"}})),
    "HiCache before a store of AIBrix's": (
        TierSpec,
        {**SERVERS, **changed(HICACHE, hicache__l3={"backend": "AIBrix"})},
    ),
    "each rank's memory": (TierSpec, AIBRIX),
    **{
        f"each rank's memory before {what}": (
            TierSpec,
            changed(AIBRIX, aibrix__offloading__l2={store: block}, rdma=FOR_ENGINES),
        )
        for what, store, block in (
            ("an InfiniStore", "infinistore", {"address": "10.0.0.7"}),
            ("several InfiniStores", "infinistore", {"metadata": {}}),
            ("an HPKV", "hpkv", {"address": "fd00::7"}),
            ("several HPKVs", "hpkv", {"metadata": {"redis": {"host": "redis", "secretRef": {"name": "redis"}}}}),
            ("PrisKV", "priskv", {"address": "10.0.0.7", "secretRef": {"name": "priskv"}}),
            ("EIC", "eic", {"secretRef": {"name": "eic"}}),
        )
    },
    "each rank's memory before files": (
        TierSpec,
        changed(AIBRIX, aibrix__offloading__l2={"shfs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}}),
    ),
    "each rank's memory before a RocksDB": (
        TierSpec,
        changed(AIBRIX, aibrix__offloading__l2={"rocksdb": {"sizePerPod": "1Ti"}}),
    ),
    "InfiniStore": (TierSpec, SERVERS),
    "InfiniStore with metadata that is nothing": (
        TierSpec,
        changed(SERVERS, aibrix__distributed__infinistore__metadata={}),
    ),
    "InfiniStore with a Valkey": (
        TierSpec,
        changed(SERVERS, aibrix__distributed__infinistore__metadata={"redis": {"provision": {}}}),
    ),
    "Vineyard": (TierSpec, VINEYARD),
    "Vineyard with an etcd that is nothing": (TierSpec, changed(VINEYARD, aibrix__distributed__vineyard__etcd={})),
    "Vineyard with an etcd that forgets": (
        TierSpec,
        changed(VINEYARD, aibrix__distributed__vineyard__etcd={"replicas": 1, "ephemeral": True}),
    ),
    "a tier that is watched": (TierSpec, changed(TIER, monitoring={})),
    "a tier that is watched a little": (TierSpec, changed(TIER, monitoring={"alerts": False, "labels": {"a": "b"}})),
    "a tier that says everything otherwise": (
        TierSpec,
        changed(
            TIER,
            targetNamespace="kv",
            allowedNamespaces={"from": "Same"},
            release="2026.11",
            lmcache__ipc="Shared",
            lmcache__chunkSize=512,
            placement={"gpuAccess": {"type": "CDI", "runtimeClassName": ""}},
            updateStrategy={"type": "RollingUpdate", "maxUnavailable": "10%"},
        ),
    ),
    "a deployment": (DeploymentSpec, DEPLOYMENT),
    "a deployment without a tier": (
        DeploymentSpec,
        changed(DEPLOYMENT, engine__kvCache=GONE, inferenceClusterRef={"name": "eu-h100"}),
    ),
    "a deployment with much": (
        DeploymentSpec,
        changed(
            DEPLOYMENT,
            replicas=0,
            engine__args=["--model=Q/Q"],
            engine__env=[{"name": "A"}, {"name": "B", "value": "b"}, {"name": "C", "valueFrom": {"x": {}}}],
            engine__resources={"limits": {"nvidia.com/gpu": 2}, "claims": []},
            engine__kvCache__tierRef__namespace="team",
        ),
    ),
    "a cluster": (ClusterSpec, CLUSTER),
    "a local cluster": (ClusterSpec, {"cluster": {"source": "Local"}}),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_is_read_the_same_with_and_without_the_xrds_defaults(case: str) -> None:
    model, spec = SPECS[case]
    plain, filled = api.parse(model, spec), api.parse(model, with_defaults(model, spec))
    assert plain == filled
    assert plain.model_dump() == filled.model_dump()


@pytest.mark.parametrize("example", ["lmcache", "lmcache-current", "lmcache-inprocess"])
@pytest.mark.parametrize(("part", "model"), [("tier", TierSpec), ("deployment", DeploymentSpec)])
def test_an_example_is_composed_the_same_with_and_without_the_xrds_defaults(
    example: str, part: str, model: type[api.Model]
) -> None:
    folder = Path("examples") / example
    plain = load(folder / f"{part}.yaml")[0]
    filled = {**plain, "spec": with_defaults(model, plain["spec"])}
    required = [*load(folder / "required.yaml"), *load(folder / "tier.yaml")]
    assert filled != plain
    composed = render(plain, [], required).composed
    assert composed
    assert render(filled, [], required).composed == composed


# --- what Crossplane sends ----------------------------------------------------------------------------------------


def test_a_whole_number_may_come_as_a_float() -> None:
    tier = api.parse(TierSpec, changed(TIER, lmcache__cpuTierGiBPerNode=64.0, placement={"gpusPerNode": 8.0}))
    assert tier.lmcache
    assert (tier.lmcache.cpu_tier_gib_per_node, tier.placement.gpus_per_node) == (64, 8)
    assert isinstance(tier.lmcache.cpu_tier_gib_per_node, int)
    strategy = api.parse(TierSpec, changed(TIER, updateStrategy={"maxUnavailable": 2.0})).update_strategy
    assert repr(strategy.max_unavailable) == "2"
    deployment = changed(
        DEPLOYMENT, replicas=3.0, engine__resources={"limits": {"nvidia.com/gpu": 2.0, "memory": "8Gi"}}
    )
    read = api.parse(DeploymentSpec, deployment)
    assert read.replicas == 3
    assert read.engine.resources
    assert read.engine.resources.limits == {"nvidia.com/gpu": "2", "memory": "8Gi"}


def floats(value: Any) -> Any:
    """Turn every number into a float, as a request does."""
    if isinstance(value, dict):
        return {key: floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("case", [case for case, (model, _) in SPECS.items() if model is TierSpec])
def test_a_tier_of_floats_is_read_as_one_of_whole_numbers(case: str) -> None:
    model, spec = SPECS[case]
    spec = with_defaults(model, spec)
    assert repr(api.parse(model, floats(spec))) == repr(api.parse(model, spec))


def test_a_ratio_may_be_whole_and_stays_a_ratio() -> None:
    spec = api.parse(TierSpec, changed(HICACHE, hicache={"ratio": 2}))
    assert spec.hicache
    assert repr(spec.hicache.ratio) == "2.0"


def test_a_field_of_a_newer_api_is_none_of_our_business() -> None:
    written = changed(TIER, crossplane={"compositionRef": {"name": "x"}}, lmcache__later=1, placement={"later": {}})
    assert api.parse(TierSpec, written) == api.parse(TierSpec, TIER)


# --- what is wrong ------------------------------------------------------------------------------------------------

REDIS_MODE = (
    "spec.lmcache: remote.redis.tls and remote.redis.mode Cluster need mode InProcess: the agent's Redis adapter "
    "speaks neither"
)
ONE_DISK = "spec.lmcache.diskTier: set exactly one of storageClassName and hostPath"
QUANTITY = "not a positive quantity; write it as 500Gi or 1Ti"


def redis(**fields: Any) -> Manifest:
    return {"redis": {"host": "kv.cache.svc", **fields}}


BACKENDS = "should be 'LMCache', 'Mooncake', 'Nixl', 'HiCache' or 'AIBrix'"

WRONG_TIERS: dict[str, tuple[Manifest, str]] = {
    "no cache": (
        {"lmcache__cpuTierGiBPerNode": 0},
        "spec.lmcache.cpuTierGiBPerNode (is 0): should be greater than or equal to 1",
    ),
    "a negative cache": (
        {"lmcache__cpuTierGiBPerNode": -64},
        "spec.lmcache.cpuTierGiBPerNode (is -64): should be greater than or equal to 1",
    ),
    "a cache of half GiBs": (
        {"lmcache__cpuTierGiBPerNode": 64.5},
        "spec.lmcache.cpuTierGiBPerNode (is 64.5): should be a valid integer, got a number with a fractional part",
    ),
    "a cache in letters": (
        {"lmcache__cpuTierGiBPerNode": "64"},
        "spec.lmcache.cpuTierGiBPerNode (is '64'): must be a whole number",
    ),
    "a cache that is true": (
        {"lmcache__cpuTierGiBPerNode": True},
        "spec.lmcache.cpuTierGiBPerNode (is True): must be a whole number",
    ),
    "a cache beyond any node": (
        {"lmcache__cpuTierGiBPerNode": 65537},
        "spec.lmcache.cpuTierGiBPerNode (is 65537): should be less than or equal to 65536",
    ),
    "no size of the cache": ({"lmcache__cpuTierGiBPerNode": GONE}, "spec.lmcache.cpuTierGiBPerNode is required"),
    "both kinds of disk": ({"lmcache__diskTier": {**DISK, "hostPath": {"path": "/mnt/kv"}}}, ONE_DISK),
    "no kind of disk": ({"lmcache__diskTier": {"sizePerNode": "1Ti"}}, ONE_DISK),
    "no size of the disk": (
        {"lmcache__diskTier": {"storageClassName": "nvme"}},
        "spec.lmcache.diskTier.sizePerNode is required",
    ),
    "an empty disk": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "0"}},
        f"spec.lmcache.diskTier.sizePerNode (is '0'): {QUANTITY}",
    ),
    "an empty disk in GiB": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "0Gi"}},
        f"spec.lmcache.diskTier.sizePerNode (is '0Gi'): {QUANTITY}",
    ),
    "a negative disk": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "-1Ti"}},
        f"spec.lmcache.diskTier.sizePerNode (is '-1Ti'): {QUANTITY}",
    ),
    "a disk in no unit of Kubernetes": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "1TB"}},
        f"spec.lmcache.diskTier.sizePerNode (is '1TB'): {QUANTITY}",
    ),
    "a disk too small to be limited": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "1023Mi"}},
        "spec.lmcache.diskTier.sizePerNode (is '1023Mi'): must be at least 1Gi",
    ),
    "a relative path": (
        {"lmcache__diskTier": {"sizePerNode": "1Ti", "hostPath": {"path": "mnt/kv"}}},
        "spec.lmcache.diskTier.hostPath.path (is 'mnt/kv'): must be an absolute path without colons",
    ),
    "a folder of the node in process": (
        {"lmcache__mode": "InProcess", "lmcache__diskTier": {"sizePerNode": "1Ti", "hostPath": {"path": "/mnt/kv"}}},
        "spec.lmcache: diskTier.hostPath needs an agent that empties it; with mode InProcess set "
        "diskTier.storageClassName",
    ),
    "a remote that is nothing": ({"lmcache__remote": {}}, "spec.lmcache.remote.redis is required"),
    "no host": (
        {"lmcache__remote": {"redis": {"port": 6379}}},
        "spec.lmcache.remote.redis: set exactly one of host and provision",
    ),
    "an empty host": (
        {"lmcache__remote": redis(host="")},
        "spec.lmcache.remote.redis.host (is ''): String should have at least 1 character",
    ),
    "a host with a port": (
        {"lmcache__remote": redis(host="kv:6379")},
        "spec.lmcache.remote.redis.host (is 'kv:6379'): must be a host name or an IPv4 address, without a port",
    ),
    "a port that is none": (
        {"lmcache__remote": redis(port=65536)},
        "spec.lmcache.remote.redis.port (is 65536): should be less than or equal to 65535",
    ),
    "another mode of Redis": (
        {"lmcache__remote": redis(mode="Sentinel")},
        "spec.lmcache.remote.redis.mode (is 'Sentinel'): should be 'Standalone' or 'Cluster'",
    ),
    "TLS in letters": (
        {"lmcache__remote": redis(tls="yes")},
        "spec.lmcache.remote.redis.tls (is 'yes'): should be a valid boolean",
    ),
    "TLS with Auto": ({"lmcache__remote": redis(tls=True)}, REDIS_MODE),
    "TLS with Multiprocess": ({"lmcache__mode": "Multiprocess", "lmcache__remote": redis(tls=True)}, REDIS_MODE),
    "a Redis Cluster with Auto": ({"lmcache__remote": redis(mode="Cluster")}, REDIS_MODE),
    "a Redis Cluster with Multiprocess": (
        {"lmcache__mode": "Multiprocess", "lmcache__remote": redis(mode="Cluster")},
        REDIS_MODE,
    ),
    "TLS to a Redis Cluster": (
        {"lmcache__mode": "InProcess", "lmcache__remote": redis(tls=True, mode="Cluster")},
        "spec.lmcache: remote.redis.tls with remote.redis.mode Cluster is not supported by LMCache: choose one",
    ),
    "a Secret without a name": (
        {"lmcache__remote": redis(secretRef={"passwordKey": "p"})},
        "spec.lmcache.remote.redis.secretRef.name is required",
    ),
    "no capacity": (
        {"lmcache__remote": redis(maxCapacityGiB=0)},
        "spec.lmcache.remote.redis.maxCapacityGiB (is 0): should be greater than or equal to 1",
    ),
    "another mode": (
        {"lmcache__mode": "multiprocess"},
        "spec.lmcache.mode (is 'multiprocess'): should be 'Auto', 'Multiprocess' or 'InProcess'",
    ),
    "another ipc": ({"lmcache__ipc": "Host"}, "spec.lmcache.ipc (is 'Host'): should be 'Isolated' or 'Shared'"),
    "too small chunks": (
        {"lmcache__chunkSize": 8},
        "spec.lmcache.chunkSize (is 8): should be a multiple of 16",
    ),
    "an unknown backend": ({"backend": "Dynamo"}, f"spec.backend (is 'Dynamo'): {BACKENDS}"),
    "another backend's block": (
        {"backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}},
        "spec.lmcache does not go with spec.backend Mooncake; remove it",
    ),
    "no backend": ({"backend": GONE}, "spec.backend is required"),
    "a backend without its block": (
        {"lmcache": GONE},
        "spec.lmcache is required when spec.backend is LMCache",
    ),
    "no cluster": ({"inferenceClusterRef": GONE}, "spec.inferenceClusterRef is required"),
    "a cluster without a name": (
        {"inferenceClusterRef__name": ""},
        "spec.inferenceClusterRef.name (is ''): String should have at least 1 character",
    ),
    "an unknown release": (
        {"release": "2020.01"},
        "spec.release (is '2020.01'): this function knows the releases 2026.11",
    ),
    "a namespace that is none": (
        {"targetNamespace": "Default"},
        "spec.targetNamespace (is 'Default'): must be a namespace's name: lower-case letters, digits and dashes",
    ),
    "namespaces by selector": (
        {"allowedNamespaces": {"from": "Selector"}},
        "spec.allowedNamespaces.from (is 'Selector'): should be 'All' or 'Same'",
    ),
    "no GPUs": (
        {"placement": {"gpusPerNode": 0}},
        "spec.placement.gpusPerNode (is 0): should be greater than or equal to 1",
    ),
    "a toleration of nothing": (
        {"placement": {"tolerations": [{"effect": "NoSchedule"}]}},
        "spec.placement.tolerations[0]: a toleration without a key needs operator Exists, and tolerates every taint",
    ),
    "a toleration with a value for Exists": (
        {"placement": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "spec.placement.tolerations[0]: a toleration with operator Exists has no value; remove it, or use Equal",
    ),
    "another access to GPUs": (
        {"placement": {"gpuAccess": {"type": "Claim"}}},
        "spec.placement.gpuAccess.type (is 'Claim'): should be 'Runtime' or 'CDI'",
    ),
    "nobody away": (
        {"updateStrategy": {"maxUnavailable": 0}},
        "spec.updateStrategy.maxUnavailable (is 0): must be a number from 1 on or a percentage such as 10%",
    ),
    "more than all away": (
        {"updateStrategy": {"maxUnavailable": "101%"}},
        "spec.updateStrategy.maxUnavailable (is '101%'): must be a number from 1 on or a percentage such as 10%",
    ),
    "half an agent away": (
        {"updateStrategy": {"maxUnavailable": 1.5}},
        "spec.updateStrategy.maxUnavailable (is 1.5): must be a number from 1 on or a percentage such as 10%",
    ),
    "a number with OnDelete": (
        {"updateStrategy": {"type": "OnDelete", "maxUnavailable": 1}},
        "spec.updateStrategy: maxUnavailable goes with type RollingUpdate only; remove it for OnDelete",
    ),
    "an image without a tag": (
        {"images": {"lmcache": "lmcache/standalone"}},
        "spec.images.lmcache (is 'lmcache/standalone'): must be an image that is pinned by a tag or a digest",
    ),
    "several fields": (
        {"backend": "Foo", "lmcache__chunkSize": 1, "inferenceClusterRef": GONE},
        f"spec.inferenceClusterRef is required; spec.backend (is 'Foo'): {BACKENDS}; "
        "spec.lmcache.chunkSize (is 1): should be a multiple of 16",
    ),
}

ONE_STORE = "set exactly one of storage and p2p"
NAME = "must be a name of a Kubernetes object: lower-case letters, digits, dashes and dots"
KEY = "must be a key of a Secret: letters, digits, dashes, dots and underscores"
ENDPOINT = "must be a URL with a port and no path, such as http://store.example:2379"
ONE_OR_THREE = "should be 1 or 3"
LEAST = "must be at least 1Gi"
FORGETFUL = (
    "an ephemeral etcd has one member, since of three each one that is replaced would have to be repaired by hand: set "
    "replicas to 1, or ephemeral to false"
)
NEEDS_NICS = (
    "spec: mooncake.protocol RDMA needs spec.rdma, with agents.count and engines.count of at least 1, since a NIC on "
    "one side only fails at transfer: set both, or mooncake.protocol to TCP"
)
NICS_FOR_NOTHING = (
    "spec.rdma goes with what moves KV by it, which is mooncake with protocol RDMA, nixl.p2p, and of aibrix "
    "distributed.infinistore and an l2 other than shfs, rocksdb and infinistore with protocol TCP: set one of these, "
    "or remove rdma"
)
HIGHLY = {"mooncake__master__replicas": 3}


def provisioned(**fields: Any) -> Manifest:
    return {"redis": {"provision": {"memory": "64Gi"}, **fields}}


VALKEY_HAS = (
    "spec.lmcache.remote.redis: port, tls, mode, secretRef and maxCapacityGiB go with host; a provisioned Valkey has "
    "its own"
)

WRONG_VALKEYS: dict[str, tuple[Manifest, str]] = {
    "host and provision": (
        {"lmcache__remote": provisioned(host="kv")},
        "spec.lmcache.remote.redis: set exactly one of host and provision",
    ),
    "a Valkey on another port": ({"lmcache__remote": provisioned(port=6380)}, VALKEY_HAS),
    "a Valkey with TLS": ({"lmcache__mode": "InProcess", "lmcache__remote": provisioned(tls=True)}, VALKEY_HAS),
    "a Valkey with a Secret": ({"lmcache__remote": provisioned(secretRef={"name": "kv"})}, VALKEY_HAS),
    "a Valkey with a capacity": ({"lmcache__remote": provisioned(maxCapacityGiB=1)}, VALKEY_HAS),
    "a Valkey without memory": (
        {"lmcache__remote": {"redis": {"provision": {}}}},
        "spec.lmcache.remote.redis.provision.memory is required",
    ),
    "a Valkey that is too small": (
        {"lmcache__remote": {"redis": {"provision": {"memory": "512Mi"}}}},
        "spec.lmcache.remote.redis.provision.memory (is '512Mi'): must be at least 1Gi",
    ),
    "a volume in no unit of Kubernetes": (
        {"lmcache__remote": {"redis": {"provision": {"memory": "64Gi", "persistence": {"size": "8GB"}}}}},
        f"spec.lmcache.remote.redis.provision.persistence.size (is '8GB'): {QUANTITY}",
    ),
    "a storage class in capitals": (
        {"lmcache__diskTier": {**DISK, "storageClassName": "NVMe"}},
        f"spec.lmcache.diskTier.storageClassName (is 'NVMe'): {NAME}",
    ),
    "a Secret with a path": (
        {"lmcache__remote": redis(secretRef={"name": "cache/kv"})},
        f"spec.lmcache.remote.redis.secretRef.name (is 'cache/kv'): {NAME}",
    ),
    "a key with a space": (
        {"lmcache__remote": redis(secretRef={"name": "kv", "passwordKey": "the key"})},
        f"spec.lmcache.remote.redis.secretRef.passwordKey (is 'the key'): {KEY}",
    ),
    "an encryption without a Secret": (
        {"lmcache__diskTier": DISK, "lmcache__encryption": {}},
        "spec.lmcache.encryption.secretRef is required",
    ),
    "an encryption of nothing": (
        {"lmcache__encryption": {"secretRef": {"name": "key"}}},
        "spec.lmcache: encryption is of what lies on disk and in Redis, memory stays plain: set diskTier or remote, or "
        "remove encryption",
    ),
    "an encryption in process": (
        {
            "lmcache__mode": "InProcess",
            "lmcache__remote": redis(),
            "lmcache__encryption": {"secretRef": {"name": "key"}},
        },
        "spec.lmcache: encryption is the agents', and engines in process have none: set mode to Auto or Multiprocess, "
        "or remove encryption",
    ),
    "NICs for agents within a node": ({"rdma": NICS}, NICS_FOR_NOTHING),
    "HiCache's block": (
        {"hicache": {"ratio": 2}},
        "spec.hicache does not go with spec.backend LMCache; remove it",
    ),
    "a dashboard in letters": (
        {"monitoring": {"dashboard": "yes"}},
        "spec.monitoring.dashboard (is 'yes'): should be a valid boolean",
    ),
    "a Prometheus nowhere": (
        {"monitoring": {"prometheusNamespace": "Monitoring"}},
        "spec.monitoring.prometheusNamespace (is 'Monitoring'): must be a namespace's name: lower-case letters, digits "
        "and dashes",
    ),
    "a label that is a number": (
        {"monitoring": {"labels": {"release": 1}}},
        "spec.monitoring.labels.release (is 1): should be a valid string",
    ),
    **{
        f"an image of {image} without a tag": (
            {"images": {image: "images.example:5000/x"}},
            f"spec.images.{image} (is 'images.example:5000/x'): must be an image that is pinned by a tag or a digest",
        )
        for image in ("mooncake", "etcd", "valkey", "exporter", "shell", "infinistore", "vineyard", "watcher")
    },
}

WRONG_POOLS: dict[str, tuple[Manifest, str]] = {
    "no block": ({"mooncake": GONE}, "spec.mooncake is required when spec.backend is Mooncake"),
    "no segment": ({"mooncake__segmentGiBPerNode": GONE}, "spec.mooncake.segmentGiBPerNode is required"),
    "an empty segment": (
        {"mooncake__segmentGiBPerNode": 0},
        "spec.mooncake.segmentGiBPerNode (is 0): should be greater than or equal to 1",
    ),
    "a protocol in small letters": (
        {"mooncake__protocol": "tcp"},
        "spec.mooncake.protocol (is 'tcp'): should be 'RDMA' or 'TCP'",
    ),
    "pages of no size that there is": (
        {"mooncake__hugePages": "4Mi"},
        "spec.mooncake.hugePages (is '4Mi'): should be '2Mi' or '1Gi'",
    ),
    "another metadata server": (
        {"mooncake__metadata": "etcd"},
        "spec.mooncake.metadata (is 'etcd'): should be 'P2P' or 'HTTP'",
    ),
    "two masters": ({"mooncake__master__replicas": 2}, f"spec.mooncake.master.replicas (is 2): {ONE_OR_THREE}"),
    "five masters": ({"mooncake__master__replicas": 5.0}, f"spec.mooncake.master.replicas (is 5.0): {ONE_OR_THREE}"),
    "a master that is true": (
        {"mooncake__master__replicas": True},
        "spec.mooncake.master.replicas (is True): must be a whole number",
    ),
    "a log for standbys that there are not": (
        {"mooncake__master": {"oplog": True}},
        "spec.mooncake.master: oplog is what standbys learn keys from; it goes with replicas 3 only",
    ),
    "three masters without an etcd": (
        HIGHLY,
        "spec.mooncake: master.replicas 3 needs etcd, and etcd goes with master.replicas 3 only",
    ),
    "an etcd for one master": (
        {"mooncake__etcd": {"provision": {}}},
        "spec.mooncake: master.replicas 3 needs etcd, and etcd goes with master.replicas 3 only",
    ),
    "an etcd that is nothing": (
        {**HIGHLY, "mooncake__etcd": {}},
        "spec.mooncake.etcd: set exactly one of provision and endpoints",
    ),
    "two kinds of etcd": (
        {**HIGHLY, "mooncake__etcd": {"provision": {}, "endpoints": ["http://etcd:2379"]}},
        "spec.mooncake.etcd: set exactly one of provision and endpoints",
    ),
    "two members": (
        {**HIGHLY, "mooncake__etcd": {"provision": {"replicas": 2}}},
        f"spec.mooncake.etcd.provision.replicas (is 2): {ONE_OR_THREE}",
    ),
    "three members that forget": (
        {**HIGHLY, "mooncake__etcd": {"provision": {"ephemeral": True}}},
        f"spec.mooncake.etcd.provision: {FORGETFUL}",
    ),
    "members with a volume and without": (
        {**HIGHLY, "mooncake__etcd": {"provision": {"replicas": 1, "ephemeral": True, "volume": {}}}},
        "spec.mooncake.etcd.provision: ephemeral members have no volume; set one of them",
    ),
    "no URL of an etcd": (
        {**HIGHLY, "mooncake__etcd": {"endpoints": []}},
        "spec.mooncake.etcd.endpoints: must be one to nine URLs",
    ),
    "an etcd without a scheme": (
        {**HIGHLY, "mooncake__etcd": {"endpoints": ["http://a:2379", "etcd:2379"]}},
        f"spec.mooncake.etcd.endpoints[1] (is 'etcd:2379'): {ENDPOINT}",
    ),
    "an etcd with a password": (
        {**HIGHLY, "mooncake__etcd": {"endpoints": ["http://root:hunter2@etcd:2379"]}},
        f"spec.mooncake.etcd.endpoints[0]: {ENDPOINT}",
    ),
    "an authority of an etcd that speaks no TLS": (
        {**HIGHLY, "mooncake__etcd": {"provision": {}, "caSecretRef": {"name": "etcd"}}},
        "spec.mooncake.etcd: caSecretRef goes with endpoints; a provisioned etcd speaks no TLS",
    ),
    "three masters that hold metadata": (
        {**HIGHLY, "mooncake__etcd": {"provision": {}}, "mooncake__metadata": "HTTP"},
        "spec.mooncake: metadata HTTP is held by a single master; with master.replicas 3 use P2P",
    ),
    "both kinds of disk": (
        {"mooncake__disk": {**DISK, "hostPath": {"path": "/mnt/kv"}}},
        "spec.mooncake.disk: set exactly one of storageClassName and hostPath",
    ),
    "RDMA without NICs": ({"mooncake__protocol": "RDMA"}, NEEDS_NICS),
    "RDMA by default without NICs": ({"mooncake__protocol": GONE}, NEEDS_NICS),
    "RDMA without NICs for agents": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "agents": {"count": 0}}},
        NEEDS_NICS,
    ),
    "RDMA without NICs for engines": (
        {"mooncake__protocol": "RDMA", "rdma": {**CLAIMED, "engines": {"count": 0.0}}},
        NEEDS_NICS,
    ),
    "NICs for TCP": ({"rdma": NICS}, NICS_FOR_NOTHING),
    "alignment by a word": (
        {"mooncake__protocol": "RDMA", "rdma": {**CLAIMED, "dra": {"deviceClassName": "nics", "alignWithGPU": "yes"}}},
        "spec.rdma.dra.alignWithGPU (is 'yes'): should be a valid boolean",
    ),
    "NICs without a class or a resource": (
        {"mooncake__protocol": "RDMA", "rdma": {"agents": {"count": 1}, "engines": {"count": 1}}},
        "spec.rdma: set exactly one of dra and extendedResource",
    ),
    "NICs by class and by resource": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, **CLAIMED}},
        "spec.rdma: set exactly one of dra and extendedResource",
    ),
    "NICs of nobody": (
        {"mooncake__protocol": "RDMA", "rdma": {"extendedResource": NICS["extendedResource"]}},
        "spec.rdma.agents is required; spec.rdma.engines is required",
    ),
    "a resource without a domain": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "extendedResource": {"name": "rdma"}}},
        "spec.rdma.extendedResource.name (is 'rdma'): must be a resource with its domain, such as "
        "rdma/rdma_shared_device_a",
    ),
    "a class in capitals": (
        {"mooncake__protocol": "RDMA", "rdma": {**CLAIMED, "dra": {"deviceClassName": "NICs"}}},
        f"spec.rdma.dra.deviceClassName (is 'NICs'): {NAME}",
    ),
    "a selector without an expression": (
        {"mooncake__protocol": "RDMA", "rdma": {**CLAIMED, "dra": {"deviceClassName": "nics", "selectors": [{}]}}},
        "spec.rdma.dra.selectors[0].cel is required",
    ),
    "two devices in one": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "netDevices": ["mlx5_0,mlx5_1"]}},
        "spec.rdma.netDevices[0] (is 'mlx5_0,mlx5_1'): must be an RDMA device, such as mlx5_0",
    ),
    "a GID index beyond any": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "gidIndex": 256}},
        "spec.rdma.gidIndex (is 256): should be less than or equal to 255",
    ),
    "a port of root's": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "hostNetwork": {"firstPort": 1000}}},
        "spec.rdma.hostNetwork.firstPort (is 1000): should be greater than or equal to 1024",
    ),
    "a port of the kubelet's": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "hostNetwork": {"firstPort": 10250}}},
        "spec.rdma.hostNetwork.firstPort (is 10250): it and the 7 ports after it must not be among 10248 to 10256, "
        "which are the kubelet's and kube-proxy's",
    ),
    "a last port that is a node port": (
        {"mooncake__protocol": "RDMA", "rdma": {**NICS, "hostNetwork": {"firstPort": 29993}}},
        "spec.rdma.hostNetwork.firstPort (is 29993): it and the 7 ports after it must not be among 30000 to 60999, "
        "which are the node ports and those of outgoing connections",
    ),
}

WRONG_STORES: dict[str, tuple[Manifest, str]] = {
    "neither storage nor p2p": ({"nixl": {}}, f"spec.nixl: {ONE_STORE}"),
    "storage and p2p": ({"nixl__p2p": {}}, f"spec.nixl: {ONE_STORE}"),
    "no memory": (
        {"nixl__storage__cpuTierGiBPerNode": GONE},
        "spec.nixl.storage.cpuTierGiBPerNode is required",
    ),
    "neither files nor objects": (
        {"nixl__storage__fs": GONE},
        "spec.nixl.storage: set exactly one of fs and obj",
    ),
    "files and objects": (
        {"nixl__storage__obj": {"bucket": "kv-cache", "region": "eu-west-1"}},
        "spec.nixl.storage: set exactly one of fs and obj",
    ),
    "files of no size": (
        {"nixl__storage__fs__sizePerNode": GONE},
        "spec.nixl.storage.fs.sizePerNode is required",
    ),
    "files nowhere": (
        {"nixl__storage__fs__hostPath": {"path": "kv"}},
        "spec.nixl.storage.fs.hostPath.path (is 'kv'): must be an absolute path without colons",
    ),
    "a bucket in capitals": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "KV-Cache"}},
        "spec.nixl.storage.obj.bucket (is 'KV-Cache'): must be a bucket's name: lower-case letters, digits, dashes and "
        "dots",
    ),
    "a bucket of two letters": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "kv"}},
        "spec.nixl.storage.obj.bucket (is 'kv'): String should have at least 3 characters",
    ),
    "a store without a scheme": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "kv-cache", "endpoint": "minio:9000"}},
        f"spec.nixl.storage.obj.endpoint (is 'minio:9000'): {ENDPOINT}",
    ),
    "a bucket of nobody's": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "kv-cache"}},
        "spec.nixl.storage.obj: set endpoint, or region for a bucket of Amazon's",
    ),
    "a region with a space": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "kv-cache", "region": "eu west"}},
        "spec.nixl.storage.obj.region (is 'eu west'): must be a region: lower-case letters, digits and dashes",
    ),
    "a bucket's Secret without a name": (
        {"nixl__storage__fs": GONE, "nixl__storage__obj": {"bucket": "kv-cache", "secretRef": {}}},
        "spec.nixl.storage.obj.secretRef.name is required",
    ),
    "a side channel on a port of root's": (
        {"nixl": {"p2p": {"sideChannelPort": 80}}},
        "spec.nixl.p2p.sideChannelPort (is 80): should be greater than or equal to 1024",
    ),
    "NICs for storage": ({"rdma": NICS}, NICS_FOR_NOTHING),
}

ONE_SIZE = "spec.hicache: set exactly one of hostMemoryGiBPerNode and ratio"
FILE = "spec.hicache.l3: file is required when backend is File, and wrong otherwise"
NO_STORE = (
    "spec: hicache.l3.backend AIBrix needs aibrix.offloading.l2 or aibrix.distributed.infinistore, since nothing else "
    "of AIBrix's is a store for SGLang"
)
NO_NICS = (
    "spec: aibrix.offloading.l2 is reached by RDMA, for which engines need NICs: set spec.rdma, or with infinistore "
    "protocol to TCP"
)

WRONG_HICACHES: dict[str, tuple[Manifest, str]] = {
    "no size": ({"hicache": {}}, ONE_SIZE),
    "two sizes": ({"hicache__ratio": 2}, ONE_SIZE),
    "a ratio of one": ({"hicache": {"ratio": 1}}, "spec.hicache.ratio (is 1): should be greater than 1"),
    "a ratio in letters": ({"hicache": {"ratio": "2"}}, "spec.hicache.ratio (is '2'): must be a number"),
    "a ratio that is true": ({"hicache": {"ratio": True}}, "spec.hicache.ratio (is True): must be a number"),
    "SGLang's own spelling": (
        {"hicache__writePolicy": "write_back"},
        "spec.hicache.writePolicy (is 'write_back'): should be 'WriteThrough', 'WriteThroughSelective' or 'WriteBack'",
    ),
    "nothing behind": ({"hicache__l3": {}}, "spec.hicache.l3: set exactly one of backend and tierRef"),
    "two things behind": (
        {"hicache__l3": {"backend": "File", "tierRef": {"name": "pool"}}},
        "spec.hicache.l3: set exactly one of backend and tierRef",
    ),
    "LMCache behind": (
        {"hicache__l3": {"backend": "LMCache"}},
        "spec.hicache.l3.backend (is 'LMCache'): SGLang refuses LMCache beside HiCache; for LMCache make a tier of "
        "that backend",
    ),
    "HiCache behind": (
        {"hicache__l3": {"backend": "HiCache"}},
        "spec.hicache.l3.backend (is 'HiCache'): should be 'Mooncake', 'Nixl', 'AIBrix' or 'File'",
    ),
    "Mooncake behind without its block": (
        {"hicache__l3": {"backend": "Mooncake"}},
        "spec.mooncake is required when spec.hicache.l3.backend is Mooncake",
    ),
    "Mooncake's block behind nothing": (
        {"mooncake": MOONCAKE["mooncake"]},
        "spec.mooncake does not go with spec.backend HiCache; remove it",
    ),
    "Nixl that stores nothing behind": (
        {"hicache__l3": {"backend": "Nixl"}, "nixl": {"p2p": {}}},
        "spec: hicache.l3.backend Nixl needs nixl.storage, since nixl.p2p stores nothing",
    ),
    "AIBrix behind without its block": (
        {"hicache__l3": {"backend": "AIBrix"}},
        "spec.aibrix is required when spec.hicache.l3.backend is AIBrix",
    ),
    "AIBrix's block behind nothing": (
        {"aibrix": AIBRIX["aibrix"]},
        "spec.aibrix does not go with spec.backend HiCache; remove it",
    ),
    "AIBrix that is memory alone behind": (
        {"hicache__l3": {"backend": "AIBrix"}, "aibrix": AIBRIX["aibrix"]},
        NO_STORE,
    ),
    "Vineyard behind": ({"hicache__l3": {"backend": "AIBrix"}, "aibrix": VINEYARD["aibrix"]}, NO_STORE),
    "a store by RDMA behind without NICs": (
        {"hicache__l3": {"backend": "AIBrix"}, "aibrix": {"offloading": {"l2": {"priskv": {"address": "10.0.0.7"}}}}},
        NO_NICS,
    ),
    "a tier without a name behind": ({"hicache__l3": {"tierRef": {}}}, "spec.hicache.l3.tierRef.name is required"),
    "files without a claim": ({"hicache__l3": {"backend": "File"}}, FILE),
    "a claim without files": (
        {"hicache__l3": {"tierRef": {"name": "pool"}, "file": {"claimName": "kv", "sizePerRank": "1Ti"}}},
        FILE,
    ),
    "a claim in capitals": (
        {"hicache__l3": {"backend": "File", "file": {"claimName": "KV", "sizePerRank": "1Ti"}}},
        f"spec.hicache.l3.file.claimName (is 'KV'): {NAME}",
    ),
    "no room for a rank": (
        {"hicache__l3": {"backend": "File", "file": {"claimName": "kv", "sizePerRank": "1Mi"}}},
        "spec.hicache.l3.file.sizePerRank (is '1Mi'): must be at least 1Gi",
    ),
    "NICs for host memory": ({"rdma": NICS}, NICS_FOR_NOTHING),
}

ONE_L2 = "spec.aibrix.offloading.l2: set exactly one of infinistore, hpkv, priskv, eic, shfs and rocksdb"
IP = "must be an IPv4 or IPv6 address, since AIBrix looks up no names"
PORTS = "port and secretRef go with host; a provisioned Valkey has its own"
HOST_OR_PROVISION = "set exactly one of host and provision"
ENGINES_ALONE = (
    "spec.rdma with nixl.p2p or aibrix.offloading needs engines.count of at least 1 and agents.count 0, since "
    "only engines move KV and no agent has a NIC"
)


def l2(**stores: Any) -> Manifest:
    return {"aibrix__offloading__l2": stores, "rdma": FOR_ENGINES}


def written(**fields: Any) -> Manifest:
    return {"metadata": {"redis": fields}}


WRONG_OFFLOADING: dict[str, tuple[Manifest, str]] = {
    "neither offloading nor distributed": (
        {"aibrix": {}},
        "spec.aibrix: set exactly one of offloading and distributed",
    ),
    "offloading and distributed": (
        {"aibrix__distributed": VINEYARD["aibrix"]["distributed"]},
        "spec.aibrix: set exactly one of offloading and distributed",
    ),
    "no memory": (
        {"aibrix__offloading__cpuTierGiBPerNode": 0},
        "spec.aibrix.offloading.cpuTierGiBPerNode (is 0): should be greater than or equal to 1",
    ),
    "an engine that needs nothing": (
        {"aibrix__offloading__engineGiBPerRank": 0},
        "spec.aibrix.offloading.engineGiBPerRank (is 0): should be greater than or equal to 1",
    ),
    "another policy": (
        {"aibrix__offloading__evictionPolicy": "LFU"},
        "spec.aibrix.offloading.evictionPolicy (is 'LFU'): should be 'S3FIFO', 'LRU' or 'FIFO'",
    ),
    "an L2 that is nothing": (l2(), ONE_L2),
    "an L2 that says only what goes there": (l2(ingestion="All"), ONE_L2),
    "two L2": (l2(hpkv={"address": "10.0.0.7"}, priskv={"address": "10.0.0.7"}), ONE_L2),
    "AIBrix's own spelling": (
        l2(ingestion="HOT", hpkv={"address": "10.0.0.7"}),
        "spec.aibrix.offloading.l2.ingestion (is 'HOT'): should be 'Hot', 'All' or 'Evicted'",
    ),
    **{
        f"{store} {how}": (
            l2(**{store: {**block, "port": 1}}),
            f"spec.aibrix.offloading.l2.{store}: set exactly one of address and metadata",
        )
        for store in ("infinistore", "hpkv")
        for how, block in (("nowhere", {}), ("in two places", {"address": "10.0.0.7", "metadata": {}}))
    },
    **{
        f"{store} by its name": (
            l2(**{store: {"address": "store.kv"}}),
            f"spec.aibrix.offloading.l2.{store}.address (is 'store.kv'): {IP}",
        )
        for store in ("infinistore", "hpkv", "priskv")
    },
    **{
        f"{store} on no port": (
            l2(**{store: {"address": "10.0.0.7", "port": 0}}),
            f"spec.aibrix.offloading.l2.{store}.port (is 0): should be greater than or equal to 1",
        )
        for store in ("infinistore", "hpkv", "priskv")
    },
    **{
        f"{store} with {what}": (
            l2(**{store: written(**fields)}),
            f"spec.aibrix.offloading.l2.{store}.metadata.redis{said}",
        )
        for store in ("infinistore", "hpkv")
        for what, fields, said in (
            ("a Redis that is nothing", {}, f": {HOST_OR_PROVISION}"),
            ("two kinds of Redis", {"host": "redis", "provision": {}}, f": {HOST_OR_PROVISION}"),
            ("a Valkey on another port", {"provision": {}, "port": 6380}, f": {PORTS}"),
            ("a Valkey with a Secret", {"provision": {}, "secretRef": {"name": "kv"}}, f": {PORTS}"),
            ("a Valkey that is too small", {"provision": {"memory": "1G"}}, ".provision.memory (is '1G'): " + LEAST),
            ("a Secret without a name", {"host": "redis", "secretRef": {}}, ".secretRef.name is required"),
        )
    },
    "a protocol in small letters": (
        l2(infinistore={"address": "10.0.0.7", "protocol": "tcp"}),
        "spec.aibrix.offloading.l2.infinistore.protocol (is 'tcp'): should be 'RDMA' or 'TCP'",
    ),
    "a link as InfiniStore calls it": (
        l2(infinistore={"address": "10.0.0.7", "linkType": "IB"}),
        "spec.aibrix.offloading.l2.infinistore.linkType (is 'IB'): should be 'Ethernet' or 'InfiniBand'",
    ),
    "PrisKV nowhere": (l2(priskv={}), "spec.aibrix.offloading.l2.priskv.address is required"),
    "a password's key with a space": (
        l2(priskv={"address": "10.0.0.7", "secretRef": {"name": "priskv", "key": "the key"}}),
        f"spec.aibrix.offloading.l2.priskv.secretRef.key (is 'the key'): {KEY}",
    ),
    "EIC without its file": (l2(eic={}), "spec.aibrix.offloading.l2.eic.secretRef is required"),
    "a Secret of EIC's with a path": (
        l2(eic={"secretRef": {"name": "kv/eic"}}),
        f"spec.aibrix.offloading.l2.eic.secretRef.name (is 'kv/eic'): {NAME}",
    ),
    "a key of EIC's with a path": (
        l2(eic={"secretRef": {"name": "eic", "key": "kv/eic.yaml"}}),
        f"spec.aibrix.offloading.l2.eic.secretRef.key (is 'kv/eic.yaml'): {KEY}",
    ),
    "files of no size": (
        {"aibrix__offloading__l2": {"shfs": {"hostPath": {"path": "/mnt/kv"}}}},
        "spec.aibrix.offloading.l2.shfs.sizePerNode is required",
    ),
    "a database of no size": (
        {"aibrix__offloading__l2": {"rocksdb": {}}},
        "spec.aibrix.offloading.l2.rocksdb.sizePerPod is required",
    ),
    "a database that is too small": (
        {"aibrix__offloading__l2": {"rocksdb": {"sizePerPod": "1023Mi"}}},
        f"spec.aibrix.offloading.l2.rocksdb.sizePerPod (is '1023Mi'): {LEAST}",
    ),
    "a database that keeps nothing": (
        {"aibrix__offloading__l2": {"rocksdb": {"sizePerPod": "1Ti", "ttlSeconds": 0}}},
        "spec.aibrix.offloading.l2.rocksdb.ttlSeconds (is 0): should be greater than or equal to 60",
    ),
    **{
        f"{store} without NICs": ({"aibrix__offloading__l2": {store: block}}, NO_NICS)
        for store, block in (
            ("infinistore", {"address": "10.0.0.7"}),
            ("hpkv", {"metadata": {}}),
            ("priskv", {"address": "10.0.0.7"}),
            ("eic", {"secretRef": {"name": "eic"}}),
        )
    },
    "NICs for agents that there are not": ({**l2(hpkv={"metadata": {}}), "rdma": NICS}, ENGINES_ALONE),
    "NICs for nobody": (
        {**l2(hpkv={"metadata": {}}), "rdma": {**FOR_ENGINES, "engines": {"count": 0}}},
        ENGINES_ALONE,
    ),
    "NICs for memory": ({"rdma": FOR_ENGINES}, NICS_FOR_NOTHING),
    **{
        f"NICs for {what}": (l2(**{store: block}), NICS_FOR_NOTHING)
        for what, store, block in (
            ("files", "shfs", {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}),
            ("a database", "rocksdb", {"sizePerPod": "1Ti"}),
            ("InfiniStore by TCP", "infinistore", {"address": "10.0.0.7", "protocol": "TCP"}),
        )
    },
}

ONE_KIND = "spec.aibrix.distributed: set exactly one of infinistore and vineyard"
SERVERS_NEED_NICS = (
    "spec: aibrix.distributed.infinistore needs spec.rdma, with agents.count of at least 1, since "
    "its servers do not start without a NIC, and engines.count of at least 1 with protocol RDMA, and 0 with TCP"
)
RUN = "aibrix__distributed__infinistore"

WRONG_SERVERS: dict[str, tuple[Manifest, str]] = {
    "neither InfiniStore nor Vineyard": ({"aibrix": {"distributed": {}}}, ONE_KIND),
    "InfiniStore and Vineyard": ({"aibrix__distributed__vineyard": {"memoryGiBPerReplica": 400}}, ONE_KIND),
    "no memory": (
        {f"{RUN}__memoryGiBPerReplica": GONE},
        "spec.aibrix.distributed.infinistore.memoryGiBPerReplica is required",
    ),
    "memory beyond any server": (
        {f"{RUN}__memoryGiBPerReplica": 4097},
        "spec.aibrix.distributed.infinistore.memoryGiBPerReplica (is 4097): should be less than or equal to 4096",
    ),
    "no servers": (
        {f"{RUN}__replicas": 0},
        "spec.aibrix.distributed.infinistore.replicas (is 0): should be greater than or equal to 1",
    ),
    "metadata nowhere": (
        {f"{RUN}__metadata": {"redis": {}}},
        f"spec.aibrix.distributed.infinistore.metadata.redis: {HOST_OR_PROVISION}",
    ),
    "a Valkey on another port": (
        {f"{RUN}__metadata": {"redis": {"provision": {}, "port": 1}}},
        f"spec.aibrix.distributed.infinistore.metadata.redis: {PORTS}",
    ),
    "another protocol": (
        {f"{RUN}__protocol": "UCX"},
        "spec.aibrix.distributed.infinistore.protocol (is 'UCX'): should be 'RDMA' or 'TCP'",
    ),
    "another link": (
        {f"{RUN}__linkType": "RoCE"},
        "spec.aibrix.distributed.infinistore.linkType (is 'RoCE'): should be 'Ethernet' or 'InfiniBand'",
    ),
    "servers without NICs": ({"rdma": GONE}, SERVERS_NEED_NICS),
    "NICs of engines alone": ({"rdma": FOR_ENGINES}, SERVERS_NEED_NICS),
    "NICs of servers alone": ({"rdma": {**NICS, "engines": {"count": 0}}}, SERVERS_NEED_NICS),
    "NICs of engines that speak TCP": ({f"{RUN}__protocol": "TCP"}, SERVERS_NEED_NICS),
    "the nodes' own network": (
        {"rdma": {**NICS, "hostNetwork": {"firstPort": 20000}}},
        "spec: rdma.hostNetwork does not go with aibrix, whose servers and list of members let in pods by their "
        "labels: remove it",
    ),
}

WRONG_VINEYARDS: dict[str, tuple[Manifest, str]] = {
    "no memory": (
        {"aibrix__distributed__vineyard": {}},
        "spec.aibrix.distributed.vineyard.memoryGiBPerReplica is required",
    ),
    "no servers": (
        {"aibrix__distributed__vineyard__replicas": 0},
        "spec.aibrix.distributed.vineyard.replicas (is 0): should be greater than or equal to 1",
    ),
    "an engine's memory in letters": (
        {"aibrix__distributed__vineyard__cpuTierGiBPerNode": "64Gi"},
        "spec.aibrix.distributed.vineyard.cpuTierGiBPerNode (is '64Gi'): must be a whole number",
    ),
    "two members": (
        {"aibrix__distributed__vineyard__etcd": {"replicas": 2}},
        f"spec.aibrix.distributed.vineyard.etcd.replicas (is 2): {ONE_OR_THREE}",
    ),
    "three members that forget": (
        {"aibrix__distributed__vineyard__etcd": {"ephemeral": True}},
        f"spec.aibrix.distributed.vineyard.etcd: {FORGETFUL}",
    ),
    "a member with a volume and without": (
        {"aibrix__distributed__vineyard__etcd": {"replicas": 1, "ephemeral": True, "volume": {}}},
        "spec.aibrix.distributed.vineyard.etcd: ephemeral members have no volume; set one of them",
    ),
    "NICs for a socket": ({"rdma": NICS}, NICS_FOR_NOTHING),
}

VERSION = "must be a version, such as 0.33.0"

WRONG_DEPLOYMENTS: dict[str, tuple[Manifest, str]] = {
    "an unknown engine": (
        {"engine__name": "TensorRT"},
        "spec.engine.name (is 'TensorRT'): should be 'vLLM' or 'SGLang'",
    ),
    "no engine": ({"engine": GONE}, "spec.engine is required"),
    "no image": ({"engine__image": GONE}, "spec.engine.image is required"),
    "a version that is a word": ({"engine__version": "latest"}, f"spec.engine.version (is 'latest'): {VERSION}"),
    "a version that is a candidate": ({"engine__version": "0.33rc1"}, f"spec.engine.version (is '0.33rc1'): {VERSION}"),
    "a version that is a number": (
        {"engine__version": 0.33},
        "spec.engine.version (is 0.33): should be a valid string",
    ),
    "neither cluster nor tier": (
        {"engine__kvCache": GONE},
        "spec: inferenceClusterRef is required without engine.kvCache.tierRef, whose cluster it would be",
    ),
    "a cache without a tier": ({"engine__kvCache": {}}, "spec.engine.kvCache.tierRef is required"),
    "a tier without a name": ({"engine__kvCache": {"tierRef": {}}}, "spec.engine.kvCache.tierRef.name is required"),
    "another kind of tier": (
        {"engine__kvCache__tierRef__kind": "HiCacheTier"},
        "spec.engine.kvCache.tierRef.kind (is 'HiCacheTier'): should be 'KVOffloadTier' or 'KVOffloadFleet'",
    ),
    "something else than waiting": (
        {"engine__kvCache__onUnavailable": "Fail"},
        "spec.engine.kvCache.onUnavailable (is 'Fail'): should be 'Wait' or 'ServeWithout'",
    ),
    "an empty identity": (
        {"engine__kvCache__identity": ""},
        "spec.engine.kvCache.identity (is ''): String should have at least 1 character",
    ),
    "negative replicas": ({"replicas": -1}, "spec.replicas (is -1): should be greater than or equal to 0"),
    "half a replica": (
        {"replicas": 1.5},
        "spec.replicas (is 1.5): should be a valid integer, got a number with a fractional part",
    ),
    "too many replicas": ({"replicas": 1001}, "spec.replicas (is 1001): should be less than or equal to 1000"),
    "a variable without a name": ({"engine__env": [{"value": "a"}]}, "spec.engine.env[0].name is required"),
    "a variable of two sources": (
        {"engine__env": [{"name": "A", "value": "a", "valueFrom": {"x": {}}}]},
        "spec.engine.env[0]: set only one of value and valueFrom",
    ),
    "half a GPU": (
        {"engine__resources": {"limits": {"nvidia.com/gpu": 0.5}}},
        "spec.engine.resources.limits.nvidia.com/gpu (is 0.5): must be a quantity, such as 2 or 64Gi",
    ),
    "a claim of nothing": (
        {"engine__resources": {"claims": [{"name": "gpu"}]}},
        "spec.engine.resources.claims[0].resourceClaimTemplateName is required",
    ),
    "an argument that is a number": (
        {"engine__args": ["-tp", 2]},
        "spec.engine.args[1] (is 2): should be a valid string",
    ),
}

SOURCE = "spec.cluster: existing is required when source is Existing, and wrong otherwise"

WRONG_CLUSTERS: dict[str, tuple[Manifest, str]] = {
    "Existing without a kubeconfig": ({"cluster__existing": GONE}, SOURCE),
    "Local with a kubeconfig": ({"cluster__source": "Local"}, SOURCE),
    "another source": ({"cluster__source": "GKE"}, "spec.cluster.source (is 'GKE'): should be 'Existing' or 'Local'"),
    "no source": ({"cluster__source": GONE}, "spec.cluster.source is required"),
    "no Secret": ({"cluster__existing": {}}, "spec.cluster.existing.secretRef is required"),
    "a Secret without a name": (
        {"cluster__existing": {"secretRef": {}}},
        "spec.cluster.existing.secretRef.name is required",
    ),
    "nothing": ({"cluster": GONE}, "spec.cluster is required"),
}

WRONG: dict[str, tuple[type[api.Model], Manifest, str]] = {
    **{
        f"{name}: {case}": (TierSpec, changed(spec, **c), said)
        for name, spec, cases in (
            ("tier", TIER, WRONG_TIERS),
            ("tier", TIER, WRONG_VALKEYS),
            ("Mooncake", MOONCAKE, WRONG_POOLS),
            ("Nixl", NIXL, WRONG_STORES),
            ("HiCache", HICACHE, WRONG_HICACHES),
            ("AIBrix", AIBRIX, WRONG_OFFLOADING),
            ("InfiniStore", SERVERS, WRONG_SERVERS),
            ("Vineyard", VINEYARD, WRONG_VINEYARDS),
        )
        for case, (c, said) in cases.items()
    },
    **{
        f"deployment: {case}": (DeploymentSpec, changed(DEPLOYMENT, **c), said)
        for case, (c, said) in WRONG_DEPLOYMENTS.items()
    },
    **{f"cluster: {case}": (ClusterSpec, changed(CLUSTER, **c), said) for case, (c, said) in WRONG_CLUSTERS.items()},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_answered_by_field_value_and_fix(case: str) -> None:
    model, spec, said = WRONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, spec)
    assert str(caught.value) == said


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_as_wrong_with_the_xrds_defaults(case: str) -> None:
    model, spec, said = WRONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, with_defaults(model, spec))
    assert str(caught.value) == said


def patterns(schema: Any) -> set[str]:
    """Find every pattern of a model's schema."""
    if isinstance(schema, list):
        return set().union(*map(patterns, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    return own.union(*map(patterns, schema.values()))


def test_every_pattern_is_said_in_words() -> None:
    read: list[type[api.Model]] = [*XRDS, annotations.Written]
    assert set().union(*(patterns(model.model_json_schema()) for model in read)) == set(api.FORMS)


@pytest.mark.parametrize("mode", ["InProcess"])
@pytest.mark.parametrize("fields", [{"tls": True}, {"mode": "Cluster"}], ids=str)
def test_in_process_redis_may_speak_tls_or_be_a_cluster(mode: str, fields: Manifest) -> None:
    tier = api.parse(TierSpec, changed(TIER, lmcache__mode=mode, lmcache__remote=redis(**fields)))
    assert tier.lmcache
    assert tier.lmcache.redis
    assert (tier.lmcache.redis.tls, tier.lmcache.redis.mode) == (
        fields.get("tls", False),
        fields.get("mode", "Standalone"),
    )


# --- secrets ------------------------------------------------------------------------------------------------------

LONG: dict[str, tuple[type[api.Model], Manifest]] = {
    "the cache": (TierSpec, changed(TIER, lmcache__cpuTierGiBPerNode=SECRET)),
    "the disk": (TierSpec, changed(TIER, lmcache__diskTier={**DISK, "sizePerNode": SECRET})),
    "the path": (TierSpec, changed(TIER, lmcache__diskTier={"sizePerNode": "1Ti", "hostPath": {"path": SECRET}})),
    "the host": (TierSpec, changed(TIER, lmcache__remote=redis(host=f"redis://:{SECRET}@h"))),
    "the port": (TierSpec, changed(TIER, lmcache__remote=redis(port=SECRET))),
    "the mode of Redis": (TierSpec, changed(TIER, lmcache__remote=redis(mode=SECRET))),
    "TLS": (TierSpec, changed(TIER, lmcache__remote=redis(tls=SECRET))),
    "the Secret": (TierSpec, changed(TIER, lmcache__remote=redis(secretRef=SECRET))),
    "the Secret's fields": (TierSpec, changed(TIER, lmcache__remote=redis(secretRef={"password": SECRET}))),
    "Redis": (TierSpec, changed(TIER, lmcache__remote={"redis": SECRET})),
    "the remote": (TierSpec, changed(TIER, lmcache__remote=[SECRET])),
    "the backend": (TierSpec, changed(TIER, backend=SECRET)),
    "the release": (TierSpec, changed(TIER, release=SECRET)),
    "a toleration": (TierSpec, changed(TIER, placement={"tolerations": [{"key": "a", "operator": SECRET}]})),
    "the memory of a Valkey": (TierSpec, changed(TIER, lmcache__remote={"redis": {"provision": {"memory": SECRET}}})),
    "the etcd": (TierSpec, changed(MOONCAKE, mooncake__etcd={"endpoints": [f"http://{SECRET}@etcd:2379"]})),
    "the authority": (TierSpec, changed(MOONCAKE, mooncake__etcd={"endpoints": [], "caSecretRef": SECRET})),
    "the key": (TierSpec, changed(TIER, lmcache__encryption={"secretRef": {"name": "key", "key": f"{SECRET}/"}})),
    "the bucket": (TierSpec, changed(NIXL, nixl__storage__obj={"bucket": SECRET})),
    "the store": (
        TierSpec,
        changed(NIXL, nixl__storage__obj={"bucket": "kv-cache", "endpoint": f"http://key:{SECRET}@minio:9000"}),
    ),
    "the bucket's Secret": (
        TierSpec,
        changed(
            NIXL, nixl__storage__obj={"bucket": "kv-cache", "secretRef": {"name": "s3", "accessKeyIdKey": [SECRET]}}
        ),
    ),
    "what is behind": (TierSpec, changed(HICACHE, hicache__l3={"backend": SECRET})),
    "an address": (TierSpec, changed(AIBRIX, **l2(priskv={"address": SECRET}))),
    "a server's Secret": (TierSpec, changed(AIBRIX, **l2(priskv={"address": "10.0.0.7", "secretRef": SECRET}))),
    "EIC's file": (TierSpec, changed(AIBRIX, **l2(eic={"secretRef": {"name": "eic", "key": f"{SECRET}/"}}))),
    "where members are": (TierSpec, changed(AIBRIX, **l2(hpkv=written(host=f"redis://:{SECRET}@h")))),
    "a selector": (TierSpec, changed(MOONCAKE, rdma={**CLAIMED, "dra": {"deviceClassName": SECRET}})),
    "the image": (TierSpec, changed(TIER, images={"lmcache": f"{SECRET} "})),
    "how many may be away": (TierSpec, changed(TIER, updateStrategy={"maxUnavailable": SECRET})),
    "the version": (DeploymentSpec, changed(DEPLOYMENT, engine__version=SECRET)),
    "the identity": (DeploymentSpec, changed(DEPLOYMENT, engine__kvCache__identity=SECRET)),
    "the args": (DeploymentSpec, changed(DEPLOYMENT, engine__args=f"--api-key={SECRET}")),
    "a variable": (DeploymentSpec, changed(DEPLOYMENT, engine__env=[{"name": "A", "value": [SECRET]}])),
    "a variable without a name": (DeploymentSpec, changed(DEPLOYMENT, engine__env=[{"value": SECRET}])),
    "the variables": (DeploymentSpec, changed(DEPLOYMENT, engine__env={"TOKEN": SECRET})),
    "the cluster": (ClusterSpec, changed(CLUSTER, cluster__source=SECRET)),
}


@pytest.mark.parametrize("case", LONG)
def test_a_value_long_enough_to_be_a_secret_is_never_echoed(case: str) -> None:
    model, spec = LONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, spec)
    assert SECRET[:15] not in str(caught.value)


@pytest.mark.parametrize(("length", "shown"), [(64, True), (65, False)])
def test_a_value_of_up_to_64_characters_is_shown(length: int, shown: bool) -> None:
    with pytest.raises(api.Invalid) as caught:
        api.parse(TierSpec, changed(TIER, backend="x" * length))
    assert ("x" * length in str(caught.value)) == shown
    assert str(caught.value).endswith(BACKENDS)


# --- what goes into a pod -----------------------------------------------------------------------------------------


def test_a_toleration_and_a_variable_go_into_a_pod_as_they_were_written() -> None:
    tolerations: list[Manifest] = [
        {"key": "a", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0},
        {"operator": "Exists"},
    ]
    tier = api.parse(TierSpec, changed(TIER, placement={"tolerations": tolerations}))
    assert [t.manifest() for t in tier.placement.tolerations] == tolerations
    variables: list[Manifest] = [
        {"name": "A", "value": ""},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": False}}},
        {"name": "C"},
    ]
    deployment = api.parse(DeploymentSpec, changed(DEPLOYMENT, engine__env=variables))
    assert [e.manifest() for e in deployment.engine.env] == variables
