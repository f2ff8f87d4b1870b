"""docs/fields.md names every field of a KVOffloadTier, and what changing it does is what rendering it twice shows."""

import base64
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from function import api, backends, changes, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends.base import AGENTS, Credential, EnginePatch, Site, Tier
from function.engines import Engine, pod
from function.kube import Manifest
from function.render import load
from tests import aibrix
from tests.render.changes import GONE, Changes, changed

DOC = Path("docs/fields.md")
IMMUTABLE = "immutable"
LIVE = "live"
EMPTIES = "empties the cache"
WAITS = "waits"
ROLLS = {"rolls agents", "rolls engines", "rolls control plane", WAITS}


# --- the table --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table: a field, its meaning, and what a change does, without what stands in brackets."""

    field: str
    meaning: str
    effects: frozenset[str]


@functools.cache
def table() -> Mapping[str, Row]:
    """Read the table, by field."""
    cells = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in DOC.read_text().splitlines()
        if line.startswith("| `")
    ]
    rows = [
        Row(field.strip("`"), meaning, frozenset(re.sub(r" \([^)]*\)", "", effects).split(", ")))
        for field, meaning, effects in cells
    ]
    found = {row.field: row for row in rows}
    assert len(found) == len(rows), "a field has two rows"
    return found


@functools.cache
def spec_schema() -> Manifest:
    """Read the schema of a tier's spec."""
    (version,) = load(Path("apis/kvoffloadtier.yaml"))[0]["spec"]["versions"]
    schema: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def walk(node: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Walk the spec's schema; gives every field with its path. Lists and maps are one field each."""
    for name, inner in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, inner
        yield from walk(inner, here)


def leaves() -> list[str]:
    """Give the fields that hold a value, a list or a map."""
    return [path for path, node in walk(spec_schema()) if "properties" not in node]


def held_equal() -> set[str]:
    """Give the fields that a rule compares with what they were: `self.x == oldSelf.x`, or all of an object x."""
    compared = set()
    for path, node in [("", spec_schema()), *walk(spec_schema())]:
        for rule in node.get("x-kubernetes-validations", ()):
            for name in re.findall(r"== oldSelf((?:\.[A-Za-z]+)*)(?![A-Za-z.(])", rule["rule"]):
                compared.add(f"{path}{name}".strip("."))
    return {leaf for leaf in leaves() if any(leaf == c or leaf.startswith(f"{c}.") for c in compared)}


def test_every_field_is_in_the_table_and_nothing_else_is() -> None:
    assert list(table()) == leaves()


def test_every_field_has_a_meaning() -> None:
    assert [row.field for row in table().values() if len(row.meaning) < len("of what")] == []


def test_what_a_change_does_is_said_in_these_words_alone() -> None:
    assert {row.field: row.effects - {IMMUTABLE, LIVE, EMPTIES} - ROLLS for row in table().values()} == dict.fromkeys(
        table(), frozenset()
    )


def test_what_is_live_or_immutable_is_nothing_else() -> None:
    assert [r.field for r in table().values() if r.effects & {IMMUTABLE, LIVE} and len(r.effects) > 1] == []


def test_what_is_called_immutable_is_what_the_api_server_refuses_to_change() -> None:
    assert {row.field for row in table().values() if IMMUTABLE in row.effects} == held_equal()


# --- what a change does -----------------------------------------------------------------------------------------------

SMALLEST: Manifest = {
    "inferenceClusterRef": {"name": "eu-h100"},
    "backend": "LMCache",
    "lmcache": {"cpuTierGiBPerNode": 64},
}
IN_PROCESS = {"lmcache.mode": "InProcess"}
DISK = {"lmcache.diskTier": {"sizePerNode": "1Ti", "storageClassName": "nvme"}}
FOLDER = {"sizePerNode": "1Ti", "hostPath": {"path": "/mnt/kv"}}
REDIS = {"lmcache.remote.redis.host": "redis"}
SECRET = {**REDIS, "lmcache.remote.redis.secretRef.name": "redis"}
ON_CLUSTER = {**SECRET, "lmcache.remote.redis.secretRef.onCluster": True}
BY_URL = {**IN_PROCESS, **ON_CLUSTER, "lmcache.remote.redis.tls": True, "lmcache.remote.redis.secretRef.urlKey": "url"}
VALKEY = {"lmcache.remote.redis.provision.memory": "64Gi"}
KEY = {**DISK, "lmcache.encryption.secretRef.name": "key"}
MOONCAKE = {"lmcache": GONE, "backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}
MEMBERS = {**MOONCAKE, "mooncake.master.replicas": 3, "mooncake.etcd.provision": {}}
GIVEN = {**MOONCAKE, "mooncake.master.replicas": 3, "mooncake.etcd.endpoints": ["https://etcd:2379"]}
TRUSTED = {**GIVEN, "mooncake.etcd.caSecretRef.name": "etcd"}
POOL_DISK = {**MOONCAKE, "mooncake.disk": {"sizePerNode": "1Ti", "storageClassName": "nvme"}}
POOL_FOLDER = {**MOONCAKE, "mooncake.disk": FOLDER}
NICS: Manifest = {"extendedResource": {"name": "rdma/shared"}, "agents": {"count": 1}, "engines": {"count": 2}}
CLAIM: Manifest = {"dra": {"deviceClassName": "nics"}, "agents": {"count": 1}, "engines": {"count": 2}}
ALONE: Manifest = {"agents": {"count": 0}}
OVER_NICS = {**MOONCAKE, "mooncake.protocol": "RDMA", "rdma": NICS}
OVER_CLAIMS = {**MOONCAKE, "mooncake.protocol": "RDMA", "rdma": CLAIM}
ON_HOST = {**OVER_NICS, "rdma.hostNetwork.firstPort": 20000}
FILES = {"lmcache": GONE, "backend": "Nixl", "nixl.storage": {"cpuTierGiBPerNode": 64, "fs": FOLDER}}
BUCKET: Manifest = {"bucket": "kv-cache", "region": "eu-west-1"}
OBJECTS = {"lmcache": GONE, "backend": "Nixl", "nixl.storage": {"cpuTierGiBPerNode": 64, "obj": BUCKET}}
BUCKET_SECRET = {**OBJECTS, "nixl.storage.obj.secretRef.name": "s3"}
BUCKET_ON_CLUSTER = {**BUCKET_SECRET, "nixl.storage.obj.secretRef.onCluster": True}
P2P = {"lmcache": GONE, "backend": "Nixl", "nixl.p2p": {}}
HICACHE = {"lmcache": GONE, "backend": "HiCache", "hicache.hostMemoryGiBPerNode": 640}
RATIO = {"lmcache": GONE, "backend": "HiCache", "hicache.ratio": 2}
AIBRIX: Changes = {"lmcache": GONE, "backend": "AIBrix", "aibrix": {"offloading": {}}}
OF_NODE = {**AIBRIX, "aibrix.offloading.cpuTierGiBPerNode": 640}
L2 = "aibrix.offloading.l2"
ADDRESS = {"address": "10.0.0.7"}
FOR_ENGINES = {**NICS, **ALONE}
INFINISTORE = {**AIBRIX, f"{L2}.infinistore": ADDRESS, "rdma": FOR_ENGINES}
HPKV = {**AIBRIX, f"{L2}.hpkv": ADDRESS, "rdma": FOR_ENGINES}
PRISKV = {**AIBRIX, f"{L2}.priskv": ADDRESS, "rdma": FOR_ENGINES}
PRISKV_SECRET = {**PRISKV, f"{L2}.priskv.secretRef.name": "priskv"}
EIC = {**AIBRIX, f"{L2}.eic.secretRef.name": "eic", "rdma": FOR_ENGINES}
SHFS = {**AIBRIX, f"{L2}.shfs": FOLDER}
ROCKSDB = {**AIBRIX, f"{L2}.rocksdb.sizePerPod": "500Gi"}
SERVERS = {**AIBRIX, "aibrix": {"distributed": {"infinistore": {"memoryGiBPerReplica": 400}}}, "rdma": NICS}
BY_CLAIM = {**SERVERS, "rdma": CLAIM}
VINEYARD: Changes = {**AIBRIX, "aibrix": {"distributed": {"vineyard": {"memoryGiBPerReplica": 400}}}}
RUN, LEGACY = "aibrix.distributed.infinistore", "aibrix.distributed.vineyard"
WRITTEN = {
    f"{L2}.infinistore": {**AIBRIX, f"{L2}.infinistore.metadata": {}, "rdma": FOR_ENGINES},
    f"{L2}.hpkv": {**AIBRIX, f"{L2}.hpkv.metadata": {}, "rdma": FOR_ENGINES},
    RUN: SERVERS,
}
OVER_MOONCAKE = {**HICACHE, "hicache.l3.backend": "Mooncake", "mooncake": MOONCAKE["mooncake"]}
BEHIND = {**HICACHE, "hicache.l3.tierRef.name": "pool"}
SHARED = {**HICACHE, "hicache.l3.backend": "File", "hicache.l3.file": {"claimName": "kv", "sizePerRank": "500Gi"}}
WATCHED = {**VALKEY, "monitoring": {}}
OTHER_IMAGE = "images.example/other:1"


def of_members(store: str) -> Mapping[str, Sequence[tuple[Changes, Any]]]:
    """Write the samples of a store's metadata: a Valkey of the tier's own, and a Redis that is there."""
    redis = f"{store}.metadata.redis"
    own: Changes = {**WRITTEN[store], f"{redis}.provision": {}}
    there = {**WRITTEN[store], f"{redis}.host": "redis"}
    known = {**there, f"{redis}.secretRef.name": "redis"}
    return {
        f"{redis}.provision.memory": [(own, "2Gi")],
        f"{redis}.host": [(there, "other")],
        f"{redis}.port": [(there, 6380)],
        f"{redis}.secretRef.name": [(known, "other"), (there, "redis")],
        f"{redis}.secretRef.key": [(known, "other")],
    }


# By field: specs that may have it, and another value. A change may bring others along, by their whole paths.
SAMPLES: Mapping[str, Sequence[tuple[Changes, Any]]] = {
    "allowedNamespaces.from": [({}, "Same"), (MOONCAKE, "Same")],
    "lmcache.cpuTierGiBPerNode": [({}, 128), (IN_PROCESS, 128)],
    "lmcache.diskTier.sizePerNode": [(DISK, "2Ti"), ({**DISK, **IN_PROCESS}, "2Ti")],
    "lmcache.diskTier.storageClassName": [(DISK, "fast"), ({**DISK, **IN_PROCESS}, "fast")],
    "lmcache.diskTier.hostPath.path": [({"lmcache.diskTier": FOLDER}, "/mnt/other")],
    "lmcache.remote.redis.provision.memory": [(VALKEY, "128Gi"), ({**VALKEY, **IN_PROCESS}, "128Gi")],
    "lmcache.remote.redis.host": [(REDIS, "other"), ({**REDIS, **IN_PROCESS}, "other")],
    "lmcache.remote.redis.port": [(REDIS, 6380), ({**REDIS, **IN_PROCESS}, 6380)],
    "lmcache.remote.redis.tls": [({**REDIS, **IN_PROCESS}, True)],
    "lmcache.remote.redis.mode": [({**REDIS, **IN_PROCESS}, "Cluster")],
    "lmcache.remote.redis.secretRef.name": [(SECRET, "other"), (ON_CLUSTER, "other")],
    "lmcache.remote.redis.secretRef.usernameKey": [(SECRET, "user"), (ON_CLUSTER, "user")],
    "lmcache.remote.redis.secretRef.passwordKey": [(SECRET, "pass"), (ON_CLUSTER, "pass")],
    "lmcache.remote.redis.secretRef.urlKey": [(BY_URL, "other")],
    "lmcache.remote.redis.secretRef.onCluster": [(SECRET, True)],
    "lmcache.remote.redis.maxCapacityGiB": [(REDIS, 64), ({**REDIS, **IN_PROCESS}, 64)],
    "lmcache.mode": [({}, "InProcess"), (REDIS, "InProcess")],
    "lmcache.ipc": [({}, "Shared")],
    "lmcache.chunkSize": [({}, 512), (IN_PROCESS, 512)],
    "lmcache.encryption.secretRef.name": [
        (KEY, "other"),
        ({**KEY, "lmcache.encryption.secretRef.onCluster": True}, "o"),
    ],
    "lmcache.encryption.secretRef.key": [(KEY, "other")],
    "lmcache.encryption.secretRef.onCluster": [(KEY, True)],
    "mooncake.segmentGiBPerNode": [(MOONCAKE, 128), (MEMBERS, 128), (OVER_MOONCAKE, 128)],
    "mooncake.protocol": [(MOONCAKE, {"mooncake.protocol": "RDMA", "rdma": NICS})],
    "mooncake.hugePages": [(MOONCAKE, "2Mi")],
    "mooncake.etcd.endpoints": [(GIVEN, ["https://other:2379"])],
    "mooncake.etcd.caSecretRef.name": [
        (TRUSTED, "other"),
        ({**TRUSTED, "mooncake.etcd.caSecretRef.onCluster": True}, "other"),
    ],
    "mooncake.etcd.caSecretRef.key": [
        (TRUSTED, "other"),
        ({**TRUSTED, "mooncake.etcd.caSecretRef.onCluster": True}, "other"),
    ],
    "mooncake.etcd.caSecretRef.onCluster": [(TRUSTED, True)],
    "mooncake.metadata": [(MOONCAKE, "HTTP")],
    "mooncake.disk.sizePerNode": [
        (POOL_DISK, "2Ti"),
        (POOL_FOLDER, "2Ti"),
        (MOONCAKE, {"mooncake.disk.sizePerNode": "1Ti", "mooncake.disk.storageClassName": "nvme"}),
    ],
    "mooncake.disk.storageClassName": [(POOL_DISK, "fast")],
    "mooncake.disk.hostPath.path": [(POOL_FOLDER, "/mnt/other")],
    "nixl.storage.cpuTierGiBPerNode": [(FILES, 128), (OBJECTS, 128)],
    "nixl.storage.fs.hostPath.path": [(FILES, "/mnt/other")],
    "nixl.storage.fs.sizePerNode": [(FILES, "2Ti")],
    "nixl.storage.obj.bucket": [(OBJECTS, "other")],
    "nixl.storage.obj.endpoint": [(OBJECTS, "http://minio:9000")],
    "nixl.storage.obj.region": [(OBJECTS, "eu-west-2")],
    "nixl.storage.obj.secretRef.name": [(BUCKET_SECRET, "other"), (BUCKET_ON_CLUSTER, "other")],
    "nixl.storage.obj.secretRef.accessKeyIdKey": [(BUCKET_SECRET, "id"), (BUCKET_ON_CLUSTER, "id")],
    "nixl.storage.obj.secretRef.secretAccessKeyKey": [(BUCKET_SECRET, "other"), (BUCKET_ON_CLUSTER, "other")],
    "nixl.storage.obj.secretRef.onCluster": [(BUCKET_SECRET, True)],
    "nixl.p2p.sideChannelPort": [(P2P, 5700)],
    "hicache.hostMemoryGiBPerNode": [(HICACHE, 1280)],
    "hicache.ratio": [(RATIO, 3)],
    "hicache.writePolicy": [(HICACHE, "WriteBack")],
    "hicache.l3.backend": [
        (HICACHE, {"hicache.l3.backend": "Mooncake", "mooncake": MOONCAKE["mooncake"]}),
        (HICACHE, {"hicache.l3.backend": "AIBrix", f"{L2}.shfs": FOLDER}),
        (HICACHE, {"hicache.l3.backend": "AIBrix", "aibrix": SERVERS["aibrix"], "rdma": NICS}),
    ],
    "hicache.l3.tierRef.name": [(BEHIND, "other"), (HICACHE, "pool")],
    "hicache.l3.tierRef.kind": [(BEHIND, "KVOffloadFleet")],
    "hicache.l3.file.claimName": [(SHARED, "other")],
    "hicache.l3.file.sizePerRank": [(SHARED, "1Ti")],
    "aibrix.offloading.cpuTierGiBPerNode": [(AIBRIX, 1280)],
    "aibrix.offloading.engineGiBPerRank": [(AIBRIX, 10)],
    "aibrix.offloading.evictionPolicy": [(AIBRIX, "LRU")],
    f"{L2}.ingestion": [(SHFS, "All"), (INFINISTORE, "Evicted")],
    f"{L2}.infinistore.address": [
        (INFINISTORE, "10.0.0.8"),
        (AIBRIX, {f"{L2}.infinistore.address": "10.0.0.7", "rdma": FOR_ENGINES}),
    ],
    f"{L2}.infinistore.port": [(INFINISTORE, 12346)],
    **of_members(f"{L2}.infinistore"),
    f"{L2}.infinistore.protocol": [(INFINISTORE, {f"{L2}.infinistore.protocol": "TCP", "rdma": GONE})],
    f"{L2}.infinistore.linkType": [(INFINISTORE, "InfiniBand")],
    f"{L2}.hpkv.address": [(HPKV, "10.0.0.8")],
    f"{L2}.hpkv.port": [(HPKV, 18513)],
    **of_members(f"{L2}.hpkv"),
    f"{L2}.priskv.address": [(PRISKV, "10.0.0.8")],
    f"{L2}.priskv.port": [(PRISKV, 6380)],
    f"{L2}.priskv.secretRef.name": [(PRISKV_SECRET, "other"), (PRISKV, "priskv")],
    f"{L2}.priskv.secretRef.key": [(PRISKV_SECRET, "other")],
    f"{L2}.eic.secretRef.name": [(EIC, "other")],
    f"{L2}.eic.secretRef.key": [(EIC, "other")],
    f"{L2}.shfs.hostPath.path": [(SHFS, "/mnt/other")],
    f"{L2}.shfs.sizePerNode": [(SHFS, "2Ti")],
    f"{L2}.rocksdb.sizePerPod": [(ROCKSDB, "1Ti")],
    f"{L2}.rocksdb.storageClassName": [(ROCKSDB, "fast")],
    f"{L2}.rocksdb.ttlSeconds": [(ROCKSDB, 3600)],
    f"{RUN}.replicas": [(SERVERS, 3)],
    f"{RUN}.memoryGiBPerReplica": [(SERVERS, 500)],
    **of_members(RUN),
    f"{RUN}.protocol": [(SERVERS, {f"{RUN}.protocol": "TCP", "rdma.engines.count": 0})],
    f"{RUN}.linkType": [(SERVERS, "InfiniBand")],
    f"{LEGACY}.replicas": [(VINEYARD, 3)],
    f"{LEGACY}.memoryGiBPerReplica": [(VINEYARD, 500)],
    f"{LEGACY}.cpuTierGiBPerNode": [(VINEYARD, 1280)],
    f"{LEGACY}.engineGiBPerRank": [(VINEYARD, 10)],
    "rdma.dra.deviceClassName": [
        (OVER_CLAIMS, "other"),
        ({**P2P, "rdma": {**CLAIM, **ALONE}}, "other"),
        (BY_CLAIM, "other"),
    ],
    "rdma.dra.selectors": [(OVER_CLAIMS, [{"cel": "true"}]), (BY_CLAIM, [{"cel": "true"}])],
    "rdma.dra.alignWithGPU": [(OVER_CLAIMS, True), ({**P2P, "rdma": {**CLAIM, **ALONE}}, True)],
    "rdma.extendedResource.name": [(OVER_NICS, "rdma/other"), (SERVERS, "rdma/other"), (HPKV, "rdma/other")],
    "rdma.agents.count": [(OVER_NICS, 3), (OVER_CLAIMS, 3), (SERVERS, 3), (BY_CLAIM, 3)],
    "rdma.engines.count": [
        (OVER_NICS, 3),
        (OVER_CLAIMS, 3),
        ({**P2P, "rdma": FOR_ENGINES}, 3),
        (SERVERS, 3),
        (HPKV, 3),
    ],
    "rdma.netDevices": [
        (OVER_NICS, ["mlx5_0"]),
        ({**P2P, "rdma": FOR_ENGINES}, ["mlx5_0"]),
        (SERVERS, ["mlx5_0"]),
        (INFINISTORE, ["mlx5_0"]),
    ],
    "rdma.gidIndex": [(OVER_NICS, 3), (SERVERS, 3), ({**INFINISTORE, "rdma.netDevices": ["mlx5_0"]}, 3)],
    "rdma.hostNetwork.firstPort": [(ON_HOST, 20100), (OVER_NICS, 20000)],
    "placement.nodeSelector": [
        (base, {"pool": "kv"}) for base in ({}, IN_PROCESS, MEMBERS, AIBRIX, SHFS, SERVERS, VINEYARD)
    ],
    "placement.tolerations": [(base, [{"operator": "Exists"}]) for base in ({}, MEMBERS, SHFS, SERVERS, VINEYARD)],
    "placement.gpuAccess.type": [({}, "CDI"), (MOONCAKE, "CDI")],
    "placement.gpuAccess.runtimeClassName": [({}, "other"), (MOONCAKE, "other")],
    "placement.priorityClassName": [
        (base, "high") for base in ({}, MOONCAKE, FILES, MEMBERS, SHFS, SERVERS, VINEYARD, WRITTEN[f"{L2}.hpkv"])
    ],
    "placement.gpusPerNode": [
        *((base, 4) for base in ({}, IN_PROCESS, FILES, HICACHE, OF_NODE)),
        ({**VINEYARD, f"{LEGACY}.cpuTierGiBPerNode": 640}, 4),
    ],
    "images.lmcache": [({}, OTHER_IMAGE)],
    "images.mooncake": [(MOONCAKE, OTHER_IMAGE), (MEMBERS, OTHER_IMAGE)],
    "images.etcd": [(MEMBERS, OTHER_IMAGE), (VINEYARD, OTHER_IMAGE)],
    "images.valkey": [(VALKEY, OTHER_IMAGE), ({**VALKEY, **IN_PROCESS}, OTHER_IMAGE), (SERVERS, OTHER_IMAGE)],
    "images.exporter": [
        (WATCHED, OTHER_IMAGE),
        ({**WATCHED, **IN_PROCESS}, OTHER_IMAGE),
        ({**SERVERS, "monitoring": {}}, OTHER_IMAGE),
    ],
    "images.shell": [(MEMBERS, OTHER_IMAGE), (FILES, OTHER_IMAGE), (SHFS, OTHER_IMAGE), (VINEYARD, OTHER_IMAGE)],
    "images.infinistore": [(SERVERS, OTHER_IMAGE)],
    "images.vineyard": [(VINEYARD, OTHER_IMAGE)],
    "images.watcher": [(SERVERS, OTHER_IMAGE)],
    "updateStrategy.type": [(base, "OnDelete") for base in ({}, MOONCAKE, FILES, SHFS, SERVERS)],
    "updateStrategy.maxUnavailable": [(base, 2) for base in ({}, MOONCAKE, FILES, SHFS, SERVERS)],
    "updateStrategy.minReadySeconds": [(base, 300) for base in ({}, MOONCAKE, FILES, SHFS)],
    "monitoring.podMonitors": [
        (WATCHED, False),
        ({**WATCHED, **IN_PROCESS}, False),
        ({**MEMBERS, "monitoring": {}}, False),
        ({"monitoring": {}}, False),
        ({**SERVERS, "monitoring": {}}, False),
        ({**VINEYARD, "monitoring": {}}, False),
    ],
    "monitoring.alerts": [(WATCHED, False), ({**MEMBERS, "monitoring": {}}, False)],
    "monitoring.dashboard": [(WATCHED, False), ({**MEMBERS, "monitoring": {}}, False)],
    "monitoring.labels": [(WATCHED, {"release": "prometheus"})],
    "monitoring.prometheusNamespace": [(WATCHED, "other"), ({**MEMBERS, "monitoring": {}}, "other")],
}


def read_engine(name: str, image: str, **fields: Any) -> Engine:
    """Read an engine of a deployment that names the tier."""
    spec: Manifest = {
        "resources": {"limits": {"memory": "200Gi", "nvidia.com/gpu": "1"}},
        "name": name,
        "image": image,
        "args": [f"{'--model' if name == 'vLLM' else '--model-path'}=Qwen/Qwen3-32B"],
        "kvCache": {"tierRef": {"name": "shared"}, **fields},
    }
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


ENGINES = [
    read_engine("vLLM", "vllm/vllm-openai:v0.33.0"),
    read_engine("vLLM", "vllm/vllm-openai:v0.33.0", role="Prefill"),
    # Attached in process where others speak to an agent, by a URL and without one.
    read_engine("vLLM", "vllm/vllm-openai:v0.11.0"),
    read_engine("vLLM", "vllm/vllm-openai:v0.20.2"),
    read_engine("SGLang", "lmsysorg/sglang:v0.5.23"),
    read_engine("vLLM", "aibrix/vllm-openai-aibrix-kvcache:v0.10.2"),
    # To which AIBrix's package was added, and its changed vLLM for Vineyard.
    read_engine("vLLM", "images.example/vllm-openai:v0.18.1"),
    read_engine("SGLang", "images.example/sglang:v0.5.23"),
    read_engine("vLLM", "aibrix/vllm-openai:v0.6.1"),
]


def secret(name: str) -> Credential:
    """Give a Secret of that name, with every key that a sample names."""
    text = "-----BEGIN CERTIFICATE-----\n" + 64 * "x"
    keys = ("username", "password", "user", "pass", "key", "other", "url", "ca.crt", "id", "access-key-id", "eic.yaml")
    return Credential(
        {k: base64.b64encode(text.encode()).decode() for k in (*keys, "secret-access-key")}, f"version of {name}"
    )


def tier_of(changes: Changes, release: releases.Release = releases.NEWEST, name: str = "shared") -> Tier:
    """Read a tier of the smallest spec, changed."""
    return Tier("modelplane-system", name, api.parse(TierSpec, changed(SMALLEST, changes)), release)


@dataclass(frozen=True)
class Running:
    """What runs for a tier: pod templates of agents and of its control plane, and engines' patches.

    `made` are the specs of what AIBrix's controller makes.
    """

    agents: Any
    control_plane: Mapping[str, Any]
    engines: Sequence[Any]
    made: Mapping[str, Any]


def running(tier: Tier) -> Running:
    """Render a tier and its engines."""
    backend = backends.of(tier.spec)
    behind = tier_of(MOONCAKE, name=tier.spec.l3_ref) if tier.spec.l3_ref else None
    site = Site(gpus_per_node=8, l3=behind)
    plan = backend.plan(tier, site, {part: secret(name) for part, name in backend.secrets(tier).items()})
    templates = {
        part.name: part.manifest["spec"]["template"]
        for part in plan.parts
        if part.manifest["kind"] in ("DaemonSet", "Deployment", "StatefulSet") and not part.maker
    }
    made = [m for part in plan.parts if part.manifest["kind"] == "KVCache" for m in aibrix.made(part.manifest)]
    patches = [backend.attach(tier, site, engine) for engine in ENGINES]
    return Running(
        templates.pop(AGENTS, None),
        templates,
        [
            replace(patch, notices=(), release=()).to_json() if isinstance(patch, EnginePatch) else None
            for patch in patches
        ],
        {m["metadata"]["name"]: m["spec"] for m in made if m["kind"] in {"Deployment", "StatefulSet"}},
    )


def applied(old: Manifest, new: Manifest) -> bool:
    """Whether AIBrix's controller changes what it made: for another image or number alone, and then all of it."""
    containers = [spec["template"]["spec"]["containers"] for spec in (old, new)]
    images = [[c["image"] for c in found] for found in containers]
    return images[0] != images[1] or old["replicas"] != new["replicas"]


def effects(before: Tier, after: Tier) -> set[str]:
    """Say what a change restarts."""
    old, new = running(before), running(after)
    assert any(old.engines), "no engine is attached"
    other = [
        (was, new.made[name])
        for name, was in old.made.items()
        if name in new.made and was["template"] != new.made[name]["template"]
    ]
    rolled = [pair for pair in other if applied(*pair)]
    control_plane = old.control_plane != new.control_plane or old.made.keys() != new.made.keys()
    found = {
        "rolls agents": old.agents != new.agents,
        "rolls control plane": control_plane or bool(rolled),
        "rolls engines": any(o and n and o != n for o, n in zip(old.engines, new.engines, strict=True)),
        WAITS: rolled != other,
    }
    return {effect for effect, true in found.items() if true}


def seen(field: str) -> set[str]:
    """Say what changes of a field restart, over all of its samples."""
    found = set()
    for base, value in SAMPLES[field]:
        change = value if isinstance(value, dict) and field in value else {field: value}
        found |= effects(tier_of(base), tier_of({**base, **change}))
    return found


def test_every_field_that_may_change_is_tried() -> None:
    assert {*SAMPLES, "release"} == set(leaves()) - held_equal()


@pytest.mark.parametrize("field", SAMPLES)
def test_the_table_says_what_a_change_restarts(field: str) -> None:
    assert seen(field) == table()[field].effects & ROLLS


# Where a fleet sees more than the table, since servers are written where their number is, or less, since what is new
# restarts nothing.
OF_SERVERS = {"aibrix.distributed.infinistore.replicas", "aibrix.distributed.vineyard.replicas"}
NEW = {"hicache.l3.backend"}


@pytest.mark.parametrize("field", SAMPLES)
def test_a_fleet_expects_of_a_change_what_the_table_says(field: str) -> None:
    said, engines, restarts, cold = table()[field].effects, False, False, False
    for base, value in SAMPLES[field]:
        change = value if isinstance(value, dict) and field in value else {field: value}
        found = changes.between(tier_of(base), tier_of({**base, **change}), Site(gpus_per_node=8))
        engines, restarts, cold = engines or found.engines, restarts or bool(found.restarts), cold or found.cold
    assert engines == ("rolls engines" in said)
    assert restarts == bool(said & {"rolls agents", "rolls control plane", WAITS}) or field in OF_SERVERS | NEW
    assert cold or EMPTIES not in said
    assert not cold or said - {LIVE} or field in OF_SERVERS


def test_the_table_says_what_another_release_restarts() -> None:
    images = {f.name: OTHER_IMAGE for f in fields(releases.Release) if f.name.endswith("_image")}
    other = replace(releases.NEWEST, **images)
    found = set()
    for base in ({}, {**VALKEY, **IN_PROCESS}, MEMBERS, FILES, SERVERS, VINEYARD):
        found |= effects(tier_of(base), tier_of(base, other))
    assert found == table()["release"].effects & ROLLS
