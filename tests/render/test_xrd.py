"""What an API server makes of our XRDs: it takes them, and it says the right thing to each mistake.

Cases are changes to the smallest valid spec of a kind, by dotted path. All of a kind go through the xrd tool at once.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from crossplane.function import resource as sdk

from function import api, fleet, tier
from function.api.cluster import ClusterSpec
from function.api.deployment import DeploymentSpec
from function.api.tier import TierSpec
from function.kube import Manifest
from function.render import EXAMPLES, load
from tests.examples import names
from tests.render.changes import GONE, NOTHING, Changes, changed
from tests.tools import crossplane
from tests.unit import test_api

TIER, FLEET = "KVOffloadTier", "KVOffloadFleet"
DEPLOYMENT, CLUSTER = "ModelDeployment", "InferenceCluster"
XRDS = {
    TIER: Path("apis/kvoffloadtier.yaml"),
    FLEET: Path("apis/kvoffloadfleet.yaml"),
    DEPLOYMENT: Path("apis/standalone/modeldeployment.yaml"),
    CLUSTER: Path("apis/standalone/inferencecluster.yaml"),
}
MODELS: Mapping[type[api.Model], str] = {TierSpec: TIER, DeploymentSpec: DEPLOYMENT, ClusterSpec: CLUSTER}
SPECS: Mapping[str, type[api.Model]] = {DEPLOYMENT: DeploymentSpec, CLUSTER: ClusterSpec}

SMALLEST: Mapping[str, Manifest] = {
    FLEET: {
        "clusterSelector": {},
        "template": {"spec": {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}}},
    },
    TIER: {
        "inferenceClusterRef": {"name": "gke"},
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64},
    },
    DEPLOYMENT: {
        "inferenceClusterRef": {"name": "gke"},
        "engine": {"name": "vLLM", "image": "vllm/vllm-openai:v0.33.0"},
    },
    CLUSTER: {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": "gke"}}}},
}

DISK = "lmcache.diskTier"
REDIS = "lmcache.remote.redis"
HOST = {f"{REDIS}.host": "redis"}
VALKEY = {f"{REDIS}.provision.memory": "64Gi"}
SAVED = f"{REDIS}.provision.persistence"
ENCRYPTED = {"lmcache.encryption.secretRef.name": "key"}
TOLERATIONS = "placement.tolerations"
FROM = {"fieldRef": {"fieldPath": "spec.nodeName"}}
CLAIM = {"name": "gpu", "resourceClaimTemplateName": "h100"}

# The smallest tier of each other backend, and what it may have.
MOONCAKE = {
    "lmcache": GONE,
    "backend": "Mooncake",
    "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"},
}
ETCD = "mooncake.etcd"
MEMBERS = {**MOONCAKE, "mooncake.master.replicas": 3, f"{ETCD}.provision": {}}
ALONE = {f"{ETCD}.provision.replicas": 1}
GIVEN = {**MOONCAKE, "mooncake.master.replicas": 3, f"{ETCD}.endpoints": ["http://etcd:2379"]}
NICS = {
    "rdma.extendedResource.name": "rdma/shared",
    "rdma.agents.count": 1,
    "rdma.engines.count": 2,
}
OVER_NICS = {**MOONCAKE, **NICS, "mooncake.protocol": "RDMA"}
PORT = "rdma.hostNetwork.firstPort"
STORAGE = "nixl.storage"
FILES = {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}
NIXL = {"lmcache": GONE, "backend": "Nixl", f"{STORAGE}.cpuTierGiBPerNode": 64, f"{STORAGE}.fs": FILES}
OBJECTS = {**NIXL, f"{STORAGE}.fs": GONE, f"{STORAGE}.obj": {"bucket": "kv-cache", "region": "eu-west-1"}}
P2P = {"lmcache": GONE, "backend": "Nixl", "nixl.p2p": {}}
HICACHE = {"lmcache": GONE, "backend": "HiCache", "hicache.hostMemoryGiBPerNode": 64}
AIBRIX: Changes = {"lmcache": GONE, "backend": "AIBrix", "aibrix": {"offloading": {}}}
L1 = "aibrix.offloading"
L2 = f"{L1}.l2"
FOR_ENGINES = {**NICS, "rdma.agents.count": 0}
ADDRESS = {"address": "10.0.0.7"}
INFINISTORE = {**AIBRIX, **FOR_ENGINES, f"{L2}.infinistore": ADDRESS}
OVER_TCP = {**AIBRIX, f"{L2}.infinistore": {**ADDRESS, "protocol": "TCP"}}
HPKV = {**AIBRIX, **FOR_ENGINES, f"{L2}.hpkv": ADDRESS}
PRISKV = {**AIBRIX, **FOR_ENGINES, f"{L2}.priskv": ADDRESS}
EIC = {**AIBRIX, **FOR_ENGINES, f"{L2}.eic.secretRef.name": "eic"}
SHFS = {**AIBRIX, f"{L2}.shfs": FILES}
ROCKSDB = {**AIBRIX, f"{L2}.rocksdb.sizePerPod": "500Gi"}
SERVERS = {**AIBRIX, **NICS, "aibrix": {"distributed": {"infinistore": {"memoryGiBPerReplica": 400}}}}
VINEYARD: Changes = {**AIBRIX, "aibrix": {"distributed": {"vineyard": {"memoryGiBPerReplica": 400}}}}
RUN, LEGACY = "aibrix.distributed.infinistore", "aibrix.distributed.vineyard"
# What writes its members down, by the name that messages have for it.
WRITTEN: Mapping[str, Changes] = {
    "l2.infinistore": {**AIBRIX, **FOR_ENGINES, f"{L2}.infinistore.metadata": {}},
    "l2.hpkv": {**AIBRIX, **FOR_ENGINES, f"{L2}.hpkv.metadata": {}},
    "distributed.infinistore": SERVERS,
}
WHERE = {"l2.infinistore": f"{L2}.infinistore", "l2.hpkv": f"{L2}.hpkv", "distributed.infinistore": RUN}
MEMBERS_IN = {name: (WRITTEN[name], f"{path}.metadata.redis") for name, path in WHERE.items()}
L3 = "hicache.l3"
BEHIND = {**HICACHE, f"{L3}.tierRef.name": "y"}
SHARED = {**HICACHE, f"{L3}.backend": "File", f"{L3}.file": {"claimName": "kv", "sizePerRank": "500Gi"}}
OVER_MOONCAKE = {**HICACHE, f"{L3}.backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}}
OVER_NIXL = {**HICACHE, f"{L3}.backend": "Nixl", f"{STORAGE}.cpuTierGiBPerNode": 64, f"{STORAGE}.fs": FILES}
OVER_AIBRIX = {**HICACHE, f"{L3}.backend": "AIBrix", f"{L2}.shfs": FILES}
OVER_SERVERS = {**HICACHE, **NICS, f"{L3}.backend": "AIBrix", "aibrix": SERVERS["aibrix"]}
POOL_DISK = {"mooncake.disk": {"sizePerNode": "1Ti", "storageClassName": "nvme"}}
MOONCAKES = "spec.backend or spec.hicache.l3.backend is Mooncake"
NIXLS = "spec.backend or spec.hicache.l3.backend is Nixl"
AIBRIXES = "spec.backend or spec.hicache.l3.backend is AIBrix"
OUTSIDE_LIST = {**SERVERS, f"{RUN}.metadata.redis": {"host": "redis"}}
# A volume, with what an API server fills in.
VOLUME = {"size": "8Gi"}


class Rule(NamedTuple):
    """A CEL rule by kind and message: a spec that it lets pass, and one that it refuses.

    `before` are the changes of the old spec, for a rule about changes.
    """

    kind: str
    message: str
    good: Changes
    bad: Changes
    before: Changes | None = None


# Each block, when it is required, and changes with and without it.
UNIONS: list[tuple[str, str, Changes, Changes]] = [
    ("lmcache", "spec.backend is LMCache", {}, {"lmcache": GONE}),
    ("lmcache", "spec.backend is LMCache", MOONCAKE, {**MOONCAKE, "lmcache": {"cpuTierGiBPerNode": 64}}),
    ("hicache", "spec.backend is HiCache", HICACHE, {**HICACHE, "hicache": GONE}),
    ("hicache", "spec.backend is HiCache", {}, {"hicache": {"ratio": 2}}),
    ("mooncake", MOONCAKES, MOONCAKE, {**MOONCAKE, "mooncake": GONE}),
    ("mooncake", MOONCAKES, OVER_MOONCAKE, {**OVER_MOONCAKE, "mooncake": GONE}),
    ("mooncake", MOONCAKES, {}, {"mooncake": MOONCAKE["mooncake"]}),
    ("mooncake", MOONCAKES, HICACHE, {**HICACHE, "mooncake": MOONCAKE["mooncake"]}),
    ("mooncake", MOONCAKES, SHARED, {**SHARED, "mooncake": MOONCAKE["mooncake"]}),
    ("mooncake", MOONCAKES, BEHIND, {**BEHIND, "mooncake": MOONCAKE["mooncake"]}),
    ("nixl", NIXLS, NIXL, {**NIXL, "nixl": GONE}),
    ("nixl", NIXLS, OVER_NIXL, {**OVER_NIXL, "nixl": GONE}),
    ("nixl", NIXLS, {}, {"nixl": {"p2p": {}}}),
    ("nixl", NIXLS, BEHIND, {**OVER_NIXL, **BEHIND, f"{L3}.backend": GONE}),
    ("aibrix", AIBRIXES, AIBRIX, {**AIBRIX, "aibrix": GONE}),
    ("aibrix", AIBRIXES, OVER_AIBRIX, {**OVER_AIBRIX, "aibrix": GONE}),
    ("aibrix", AIBRIXES, {}, {"aibrix": AIBRIX["aibrix"]}),
    ("aibrix", AIBRIXES, HICACHE, {**OVER_AIBRIX, L3: GONE}),
    ("aibrix", AIBRIXES, BEHIND, {**OVER_AIBRIX, **BEHIND, f"{L3}.backend": GONE}),
]

RULES = [
    *(
        Rule(TIER, f"spec.{block} is required when {when}, and wrong otherwise.", good=good, bad=bad)
        for block, when, good, bad in UNIONS
    ),
    *(
        Rule(
            TIER,
            "mooncake.protocol RDMA needs spec.rdma, with agents.count and engines.count of at least 1, since a NIC on "
            "one side only fails at transfer: set both, or mooncake.protocol to TCP.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (OVER_NICS, {**OVER_NICS, "rdma": GONE}),
            (OVER_NICS, {**OVER_NICS, "rdma": GONE, "mooncake.protocol": GONE}),
            (OVER_NICS, {**OVER_NICS, "rdma.agents.count": 0}),
            (OVER_NICS, {**OVER_NICS, "rdma.engines.count": 0}),
            ({**OVER_NICS, "mooncake.protocol": GONE}, {**OVER_MOONCAKE, "mooncake.protocol": "RDMA"}),
            ({**OVER_MOONCAKE, **NICS, "mooncake.protocol": "RDMA"}, {**OVER_MOONCAKE, "mooncake.protocol": GONE}),
        )
    ),
    Rule(
        TIER,
        "an ephemeral etcd has one member, since of three each one that is replaced would have to be repaired by hand: "
        "set provision.replicas to 1, or ephemeral to false.",
        good={**MEMBERS, f"{ETCD}.provision": {"replicas": 1, "ephemeral": True}},
        bad={**MEMBERS, f"{ETCD}.provision": {"ephemeral": True}},
    ),
    Rule(
        TIER,
        "spec.nixl cannot be removed, since attached engines use what it runs: create another tier and point "
        "deployments to it.",
        before=OVER_NIXL,
        good=OVER_NIXL,
        bad=HICACHE,
    ),
    Rule(
        TIER,
        "nixl cannot change between storage and p2p, since attached engines use what it runs: create another tier and "
        "point deployments to it.",
        before=NIXL,
        good=OBJECTS,
        bad=P2P,
    ),
    *(
        Rule(
            TIER,
            "spec.rdma with nixl.p2p or aibrix.offloading needs engines.count of at least 1 and agents.count 0, since "
            "only engines move KV and no agent has a NIC.",
            good=good,
            bad={**good, **NICS, **bad},
        )
        for good in ({**P2P, **FOR_ENGINES}, INFINISTORE, HPKV, PRISKV, EIC)
        for bad in ({}, {"rdma.agents.count": 0, "rdma.engines.count": 0})
    ),
    *(
        Rule(
            TIER,
            "spec.rdma goes with what moves KV by it, which is mooncake with protocol RDMA, nixl.p2p, and of aibrix "
            "distributed.infinistore and an l2 other than shfs, rocksdb and infinistore with protocol TCP: set one of "
            "these, or remove rdma.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (OVER_NICS, {**MOONCAKE, **NICS}),
            ({**P2P, **FOR_ENGINES}, {**NIXL, **NICS}),
            ({}, NICS),
            (HICACHE, {**HICACHE, **NICS}),
            (BEHIND, {**BEHIND, **NICS}),
            (OVER_NIXL, {**OVER_NIXL, **NICS}),
            (SERVERS, {**VINEYARD, **NICS}),
            (INFINISTORE, {**OVER_TCP, **FOR_ENGINES}),
            (HPKV, {**AIBRIX, **FOR_ENGINES}),
            (PRISKV, {**SHFS, **FOR_ENGINES}),
            (EIC, {**ROCKSDB, **FOR_ENGINES}),
            (OVER_AIBRIX, {**OVER_AIBRIX, **FOR_ENGINES}),
        )
    ),
    *(
        Rule(
            TIER,
            "aibrix.offloading.l2 is reached by RDMA, for which engines need NICs: set spec.rdma, or with infinistore "
            "protocol to TCP.",
            good=good,
            bad={**bad, "rdma": GONE},
        )
        for good, bad in (
            (OVER_TCP, INFINISTORE),
            (WRITTEN["l2.infinistore"], WRITTEN["l2.infinistore"]),
            (HPKV, HPKV),
            (PRISKV, PRISKV),
            (EIC, EIC),
            (SHFS, {**OVER_AIBRIX, L2: {"priskv": ADDRESS}}),
        )
    ),
    *(
        Rule(
            TIER,
            "aibrix.distributed.infinistore needs spec.rdma, with agents.count of at least 1, "
            "since its servers do not start without a NIC, and engines.count of at least 1 with protocol RDMA, and 0 "
            "with TCP.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (SERVERS, {**SERVERS, "rdma": GONE}),
            ({**SERVERS, f"{RUN}.protocol": "RDMA"}, {**SERVERS, "rdma.engines.count": 0}),
            (SERVERS, {**SERVERS, "rdma.agents.count": 0}),
            ({**SERVERS, "rdma.engines.count": 0, f"{RUN}.protocol": "TCP"}, {**SERVERS, f"{RUN}.protocol": "TCP"}),
        )
    ),
    Rule(
        TIER,
        "rdma.hostNetwork does not go with aibrix, whose servers and list of members let in pods by their labels: "
        "remove it.",
        good=SERVERS,
        bad={**SERVERS, PORT: 20000},
    ),
    Rule(
        TIER,
        "aibrix.offloading.l2 cannot be removed, since attached engines use what it runs: create another tier and "
        "point deployments to it.",
        before=SHFS,
        good={**SHFS, f"{L2}.ingestion": "All"},
        bad=AIBRIX,
    ),
    Rule(
        TIER,
        "aibrix.offloading.l2 cannot change to a store of another kind, since attached engines use what it runs: "
        "create another tier and point deployments to it.",
        before=PRISKV,
        good={**PRISKV, f"{L2}.priskv": {"address": "10.0.0.8"}},
        bad=ROCKSDB,
    ),
    *(
        Rule(
            TIER,
            f"l2.{store} cannot change between address and metadata, since attached engines use what it runs: create "
            "another tier and point deployments to it.",
            before=direct,
            good={**direct, f"{L2}.{store}": {"address": "10.0.0.8"}},
            bad=WRITTEN[f"l2.{store}"],
        )
        for store, direct in (("infinistore", INFINISTORE), ("hpkv", HPKV))
    ),
    *(
        Rule(
            TIER,
            f"{store}.metadata.redis cannot change between provision and host, since engines and the watcher would "
            "look at different lists: create another tier.",
            before=written,
            good={**written, f"{path}.metadata.redis": {"provision": {"memory": "2Gi"}}},
            bad={**written, f"{path}.metadata.redis": {"host": "redis"}},
        )
        for store, path in (("l2.infinistore", f"{L2}.infinistore"), ("l2.hpkv", f"{L2}.hpkv"), (RUN[7:], RUN))
        for written in (WRITTEN[store],)
    ),
    *(
        Rule(
            TIER,
            "hicache.l3.backend AIBrix needs aibrix.offloading.l2 or aibrix.distributed.infinistore, since nothing "
            "else of AIBrix's is a store for SGLang.",
            good=good,
            bad={**HICACHE, f"{L3}.backend": "AIBrix", "aibrix": bad},
        )
        for good, bad in ((OVER_AIBRIX, AIBRIX["aibrix"]), (OVER_SERVERS, VINEYARD["aibrix"]))
    ),
    *(
        Rule(
            TIER,
            "spec.aibrix cannot be removed, since attached engines use what it runs: create another tier and point "
            "deployments to it.",
            before=OVER_AIBRIX,
            good={**OVER_AIBRIX, f"{L2}.ingestion": "All"},
            bad=bad,
        )
        for bad in (HICACHE, BEHIND, OVER_NIXL)
    ),
    *(
        Rule(TIER, "set exactly one of aibrix.offloading and aibrix.distributed.", good=good, bad=bad)
        for good, bad in (
            (AIBRIX, {**AIBRIX, "aibrix": {}}),
            (VINEYARD, {**VINEYARD, L1: {}}),
            (SHFS, {**SHFS, "aibrix.distributed": VINEYARD["aibrix"]["distributed"]}),
        )
    ),
    *(
        Rule(
            TIER,
            "aibrix cannot change between offloading and distributed, since attached engines would lose their cache: "
            "create another tier and point deployments to it.",
            before=before,
            good=good,
            bad=bad,
        )
        for before, good, bad in (
            (AIBRIX, SHFS, VINEYARD),
            (INFINISTORE, {**INFINISTORE, f"{L2}.ingestion": "All"}, SERVERS),
            (VINEYARD, {**VINEYARD, f"{LEGACY}.replicas": 2}, AIBRIX),
        )
    ),
    *(
        Rule(TIER, "set exactly one of l2.infinistore, hpkv, priskv, eic, shfs and rocksdb.", good=good, bad=bad)
        for good, bad in (
            (INFINISTORE, {**INFINISTORE, f"{L2}.hpkv": ADDRESS}),
            (HPKV, {**HPKV, f"{L2}.priskv": ADDRESS}),
            (PRISKV, {**PRISKV, f"{L2}.eic.secretRef.name": "eic"}),
            (EIC, {**EIC, f"{L2}.shfs": FILES}),
            (SHFS, {**SHFS, f"{L2}.rocksdb.sizePerPod": "500Gi"}),
            (ROCKSDB, {**AIBRIX, L2: {"ingestion": "All"}}),
        )
    ),
    *(
        Rule(
            TIER,
            f"l2.{store}.address must be an IPv4 or IPv6 address, since AIBrix looks up no names.",
            good={**base, f"{L2}.{store}.address": "fd00::7"},
            bad={**base, f"{L2}.{store}.address": "256.1.1.1"},
        )
        for store, base in (("infinistore", INFINISTORE), ("hpkv", HPKV), ("priskv", PRISKV))
    ),
    *(
        Rule(
            TIER,
            f"set exactly one of {store}.address and {store}.metadata.",
            good=good,
            bad={**WRITTEN[f"l2.{store}"], f"{L2}.{store}": bad},
        )
        for store, direct in (("infinistore", INFINISTORE), ("hpkv", HPKV))
        for good, bad in ((direct, {"port": 1}), (WRITTEN[f"l2.{store}"], {**ADDRESS, "metadata": {}}))
    ),
    *(
        Rule(TIER, f"set exactly one of {name}.metadata.redis.host and provision.", good=good, bad={**base, **bad})
        for name, (base, path) in MEMBERS_IN.items()
        for good, bad in (
            (base, {path: {}}),
            ({**base, path: {"provision": {}}}, {path: {"host": "redis", "provision": {}}}),
            ({**base, path: {"host": "redis", "port": 6380}}, {path: {"port": 6379}}),
        )
    ),
    *(
        Rule(
            TIER,
            f"{name}.metadata.redis.port and secretRef go with host; a provisioned Valkey has its own, so remove them.",
            good={**base, path: good},
            bad={**base, path: {"provision": {}, **bad}},
        )
        for name, (base, path) in MEMBERS_IN.items()
        for good, bad in (
            ({"host": "redis", "port": 6380, "secretRef": {"name": "redis"}}, {"port": 6380}),
            ({"provision": {}, "port": 6379}, {"secretRef": {"name": "redis"}}),
        )
    ),
    *(
        Rule(
            TIER,
            f"{name}.metadata.redis.provision.memory must be a quantity of at least 1Gi, such as 2Gi.",
            good={**base, f"{path}.provision.memory": "1.5Gi"},
            bad={**base, f"{path}.provision.memory": "512Mi"},
        )
        for name, (base, path) in MEMBERS_IN.items()
    ),
    Rule(
        TIER,
        "shfs.sizePerNode must be a quantity of at least 1Gi, such as 500Gi.",
        good={**SHFS, f"{L2}.shfs.sizePerNode": "1Gi"},
        bad={**SHFS, f"{L2}.shfs.sizePerNode": "1G"},
    ),
    Rule(
        TIER,
        "rocksdb.sizePerPod must be a quantity of at least 1Gi, such as 500Gi.",
        good={**ROCKSDB, f"{L2}.rocksdb.sizePerPod": "1Ti"},
        bad={**ROCKSDB, f"{L2}.rocksdb.sizePerPod": "0"},
    ),
    *(
        Rule(TIER, "set exactly one of distributed.infinistore and distributed.vineyard.", good=good, bad=bad)
        for good, bad in (
            (SERVERS, {**SERVERS, f"{LEGACY}.memoryGiBPerReplica": 400}),
            (VINEYARD, {**VINEYARD, "aibrix.distributed": {}}),
        )
    ),
    *(
        Rule(
            TIER,
            "aibrix.distributed cannot change between infinistore and vineyard, since attached engines would lose "
            "their store: create another tier and point deployments to it.",
            before=before,
            good=good,
            bad=bad,
        )
        for before, good, bad in (
            (SERVERS, {**SERVERS, f"{RUN}.replicas": 3}, VINEYARD),
            (VINEYARD, {**VINEYARD, f"{LEGACY}.memoryGiBPerReplica": 500}, SERVERS),
        )
    ),
    Rule(
        TIER,
        "an ephemeral etcd has one member, since of three each one that is replaced would have to be repaired by hand: "
        "set etcd.replicas to 1, or ephemeral to false.",
        good={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, "ephemeral": True}},
        bad={**VINEYARD, f"{LEGACY}.etcd": {"ephemeral": True}},
    ),
    Rule(
        TIER,
        "ephemeral members have no volume; remove one of etcd.ephemeral and etcd.volume.",
        good={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, "volume": {}}},
        bad={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, "volume": {}, "ephemeral": True}},
    ),
    *(
        Rule(
            TIER,
            "vineyard.etcd.replicas is immutable, since members do not join by a number alone: create another tier and "
            "point deployments to it.",
            before={**VINEYARD, **before},
            good={**VINEYARD, **good},
            bad={**VINEYARD, **bad},
        )
        for before, good, bad in (
            ({}, {f"{LEGACY}.etcd": {"replicas": 3}}, {f"{LEGACY}.etcd": {"replicas": 1}}),
            ({f"{LEGACY}.etcd": {"replicas": 1}}, {f"{LEGACY}.etcd": {"replicas": 1}}, {}),
        )
    ),
    *(
        Rule(
            TIER,
            "vineyard.etcd.volume and ephemeral are immutable, since a StatefulSet's claims are: create another tier "
            "and point deployments to it.",
            before={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, **before}},
            good={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, **before}, f"{LEGACY}.replicas": 2},
            bad={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1, **bad}},
        )
        for before, bad in (
            ({}, {"volume": {}}),
            ({}, {"ephemeral": True}),
            ({"ephemeral": True}, {}),
            ({"volume": {}}, {}),
            ({"volume": VOLUME}, {"volume": {"size": "9Gi"}}),
            ({"volume": {}}, {"volume": {"storageClassName": "fast"}}),
            ({"volume": {"storageClassName": "fast"}}, {"volume": {}}),
        )
    ),
    Rule(
        TIER,
        "vineyard.etcd.replicas must be 1 or 3: two have no majority when one is lost.",
        good={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 1}},
        bad={**VINEYARD, f"{LEGACY}.etcd": {"replicas": 2}},
    ),
    Rule(
        TIER,
        "vineyard.etcd.volume.size must be a quantity of at least 1Gi, such as 8Gi.",
        good={**VINEYARD, f"{LEGACY}.etcd.volume.size": "1Gi"},
        bad={**VINEYARD, f"{LEGACY}.etcd.volume.size": "999Mi"},
    ),
    Rule(
        TIER,
        "hicache.l3.backend Nixl needs nixl.storage, since nixl.p2p stores nothing.",
        good=OVER_NIXL,
        bad={**OVER_NIXL, "nixl": {"p2p": {}}},
    ),
    *(
        Rule(
            TIER,
            "spec.mooncake cannot be taken away, since attached engines would be left without their store: create "
            "another tier and point deployments to it.",
            before=OVER_MOONCAKE,
            good={**OVER_MOONCAKE, "mooncake.segmentGiBPerNode": 128},
            bad=bad,
        )
        for bad in (HICACHE, BEHIND, OVER_NIXL)
    ),
    *(
        Rule(
            TIER,
            "hicache.l3.tierRef names this very tier: name one of backend Mooncake, Nixl or AIBrix.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (BEHIND, {**BEHIND, f"{L3}.tierRef.name": "x"}),
            ({**BEHIND, f"{L3}.tierRef": {"name": "x", "kind": FLEET}}, {**BEHIND, f"{L3}.tierRef.name": "x"}),
        )
    ),
    Rule(
        TIER,
        "spec.inferenceClusterRef.name is immutable, since a tier never moves: delete this tier and create one for the "
        "other cluster.",
        before={},
        good={"lmcache.cpuTierGiBPerNode": 65},
        bad={"inferenceClusterRef.name": "other"},
    ),
    Rule(
        TIER,
        "spec.backend is immutable, since engines would lose their cache: create another tier and point deployments "
        "to it.",
        before={},
        good={"lmcache.mode": "InProcess"},
        bad=MOONCAKE,
    ),
    *(
        Rule(
            TIER,
            "spec.targetNamespace is immutable, since engines mount what lies in it: delete this tier and create "
            "another.",
            before=before,
            good=good,
            bad=bad,
        )
        for before, good, bad in (
            ({"targetNamespace": "serving"}, {"targetNamespace": "serving"}, {"targetNamespace": "other"}),
            ({"targetNamespace": "default"}, {}, {"targetNamespace": "other"}),
            ({}, {"targetNamespace": "default"}, {"targetNamespace": "other"}),
            ({"targetNamespace": "serving"}, {"targetNamespace": "serving", "lmcache.mode": "InProcess"}, {}),
        )
    ),
    Rule(
        TIER,
        "remote.redis.tls needs mode InProcess, since the agent's Redis adapter speaks no TLS: set spec.lmcache.mode "
        "to InProcess, or tls to false.",
        good={**HOST, f"{REDIS}.tls": True, "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.tls": True},
    ),
    Rule(
        TIER,
        "remote.redis.mode Cluster needs mode InProcess, since the agent's Redis adapter speaks to one server: set "
        "spec.lmcache.mode to InProcess.",
        good={**HOST, f"{REDIS}.mode": "Cluster", "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.mode": "Cluster", "lmcache.mode": "Multiprocess"},
    ),
    Rule(
        TIER,
        "diskTier.hostPath needs an agent that empties it: with mode InProcess set diskTier.storageClassName.",
        good={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti", "lmcache.mode": "Multiprocess"},
        bad={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti", "lmcache.mode": "InProcess"},
    ),
    Rule(
        TIER,
        "set exactly one of diskTier.storageClassName and diskTier.hostPath.",
        good={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti"},
        bad={f"{DISK}.sizePerNode": "1Ti"},
    ),
    Rule(
        TIER,
        "set exactly one of diskTier.storageClassName and diskTier.hostPath.",
        good={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"},
        bad={f"{DISK}.storageClassName": "nvme", f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"},
    ),
    Rule(
        TIER,
        "diskTier.sizePerNode must be a quantity of at least 1Gi, such as 500Gi or 1Ti.",
        good={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1.5T"},
        bad={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1023Mi"},
    ),
    Rule(
        TIER,
        "LMCache speaks no TLS to a Redis Cluster; set only one of redis.tls and redis.mode Cluster.",
        good={**HOST, f"{REDIS}.tls": True, "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.tls": True, f"{REDIS}.mode": "Cluster", "lmcache.mode": "InProcess"},
    ),
    Rule(
        TIER,
        "lmcache.encryption is the agents', and engines in process have none: set mode to Auto or Multiprocess, or "
        "remove encryption.",
        good={**HOST, **ENCRYPTED, "lmcache.mode": "Multiprocess"},
        bad={**HOST, **ENCRYPTED, "lmcache.mode": "InProcess"},
    ),
    *(
        Rule(
            TIER,
            "lmcache.encryption is of what lies on disk and in Redis, memory stays plain: set diskTier or remote, or "
            "remove encryption.",
            good={**good, **ENCRYPTED},
            bad=ENCRYPTED,
        )
        for good in (HOST, {DISK: FILES})
    ),
    *(
        Rule(
            TIER,
            "lmcache.encryption cannot be added or removed, since agents without it would take what others encrypted "
            "for KV: create another tier, with a Redis of its own.",
            before=before,
            good=good,
            bad=bad,
        )
        for before, good, bad in (
            (HOST, HOST, {**HOST, **ENCRYPTED}),
            ({**HOST, **ENCRYPTED}, {**HOST, **ENCRYPTED}, HOST),
            ({**HOST, **ENCRYPTED}, {DISK: FILES, **ENCRYPTED}, {DISK: FILES}),
        )
    ),
    *(
        Rule(TIER, "set exactly one of redis.host and redis.provision.", good=good, bad=bad)
        for good, bad in ((HOST, {REDIS: {}}), (VALKEY, {**HOST, **VALKEY}))
    ),
    *(
        Rule(
            TIER,
            "redis.port, tls, mode, secretRef and maxCapacityGiB go with redis.host; a provisioned Valkey has its own: "
            "remove them.",
            good=good,
            bad={**VALKEY, "lmcache.mode": "InProcess", **bad},
        )
        for good, bad in (
            (VALKEY, {f"{REDIS}.port": 6380}),
            ({**VALKEY, f"{REDIS}.port": 6379}, {f"{REDIS}.tls": True}),
            ({**VALKEY, f"{REDIS}.tls": False}, {f"{REDIS}.mode": "Cluster"}),
            ({**VALKEY, f"{REDIS}.mode": "Standalone"}, {f"{REDIS}.secretRef.name": "redis"}),
            (VALKEY, {f"{REDIS}.maxCapacityGiB": 64}),
        )
    ),
    Rule(
        TIER,
        "provision.memory must be a quantity of at least 1Gi, such as 64Gi.",
        good={f"{REDIS}.provision.memory": "1Gi"},
        bad={f"{REDIS}.provision.memory": "1G"},
    ),
    Rule(
        TIER,
        "persistence.size must be a quantity of at least 1Gi, such as 8Gi.",
        good={**VALKEY, f"{SAVED}.size": "1Gi"},
        bad={**VALKEY, f"{SAVED}.size": "0"},
    ),
    *(
        Rule(
            TIER,
            "redis.provision.persistence is immutable, since a StatefulSet's claims are: create another tier and point "
            "deployments to it.",
            before={**VALKEY, **before},
            good={**VALKEY, **good, f"{REDIS}.provision.memory": "128Gi"},
            bad={**VALKEY, **bad},
        )
        for before, good, bad in (
            ({}, {}, {SAVED: {}}),
            ({SAVED: {}}, {SAVED: VOLUME}, {}),
            ({SAVED: {}}, {SAVED: {}}, {f"{SAVED}.size": "9Gi"}),
            ({SAVED: {}}, {SAVED: {}}, {f"{SAVED}.storageClassName": "fast"}),
            (
                {f"{SAVED}.storageClassName": "fast"},
                {f"{SAVED}.storageClassName": "fast", f"{SAVED}.size": "8Gi"},
                {SAVED: {}},
            ),
        )
    ),
    *(
        Rule(
            TIER,
            "mooncake.master.replicas 3 needs mooncake.etcd, which its members elect their leader by, and etcd goes "
            "with replicas 3 only: set both or neither.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (MOONCAKE, {**MOONCAKE, "mooncake.master.replicas": 3}),
            (MEMBERS, {**MEMBERS, "mooncake.master.replicas": 1}),
            (GIVEN, {**GIVEN, "mooncake.master": GONE}),
        )
    ),
    Rule(
        TIER,
        "mooncake.master.replicas 3 needs mooncake.etcd, which its members elect their leader by, and etcd goes with "
        "replicas 3 only: set both or neither.",
        before=MEMBERS,
        good=MEMBERS,
        bad={**MEMBERS, ETCD: GONE},
    ),
    Rule(
        TIER,
        "mooncake.metadata HTTP is held by a single master: with master.replicas 3 set metadata to P2P.",
        good={**MOONCAKE, "mooncake.metadata": "HTTP"},
        bad={**GIVEN, "mooncake.metadata": "HTTP"},
    ),
    Rule(
        TIER,
        "mooncake.master.replicas must be 1 or 3: two have no majority.",
        good={**MOONCAKE, "mooncake.master.replicas": 1},
        bad={**MOONCAKE, "mooncake.master.replicas": 2},
    ),
    *(
        Rule(
            TIER,
            "mooncake.master.replicas is immutable, since engines and agents would wait for another kind of master: "
            "create another tier and point deployments to it.",
            before=before,
            good={**before, "mooncake.segmentGiBPerNode": 128},
            bad=bad,
        )
        for before, bad in (
            (MOONCAKE, MEMBERS),
            (MEMBERS, MOONCAKE),
            ({**MOONCAKE, "mooncake.master.replicas": 1}, GIVEN),
            (GIVEN, {**GIVEN, ETCD: GONE, "mooncake.master": GONE}),
        )
    ),
    Rule(
        TIER,
        "mooncake.master.oplog is what standbys learn keys from: set it with master.replicas 3 only.",
        good={**MEMBERS, "mooncake.master.oplog": True},
        bad={**MOONCAKE, "mooncake.master.oplog": True},
    ),
    *(
        Rule(
            TIER,
            "mooncake.master.oplog is immutable, since an old log would tell of keys that are other keys' by now: "
            "create another tier and point deployments to it.",
            before={**MEMBERS, "mooncake.master.oplog": before},
            good={**MEMBERS, "mooncake.master.oplog": before},
            bad={**MEMBERS, "mooncake.master.oplog": not before},
        )
        for before in (True, False)
    ),
    *(
        Rule(TIER, "set exactly one of etcd.provision and etcd.endpoints.", good=good, bad=bad)
        for good, bad in (
            (MEMBERS, {**GIVEN, f"{ETCD}.provision": {}}),
            (GIVEN, {**GIVEN, f"{ETCD}.endpoints": GONE}),
        )
    ),
    Rule(
        TIER,
        "etcd.caSecretRef goes with etcd.endpoints, since a provisioned etcd speaks no TLS: remove it.",
        good={**GIVEN, f"{ETCD}.caSecretRef.name": "etcd"},
        bad={**MEMBERS, f"{ETCD}.caSecretRef.name": "etcd"},
    ),
    *(
        Rule(
            TIER,
            "mooncake.etcd cannot change between provision and endpoints, since all keys would be lost: create another "
            "tier and point deployments to it.",
            before=before,
            good=before,
            bad=bad,
        )
        for before, bad in ((MEMBERS, GIVEN), (GIVEN, MEMBERS))
    ),
    Rule(
        TIER,
        "ephemeral members have no volume; remove one of provision.ephemeral and provision.volume.",
        good={**MEMBERS, **ALONE, f"{ETCD}.provision.ephemeral": True},
        bad={**MEMBERS, **ALONE, f"{ETCD}.provision.ephemeral": True, f"{ETCD}.provision.volume": {}},
    ),
    *(
        Rule(
            TIER,
            "etcd.provision.replicas is immutable, since members do not join by a number alone: create another tier "
            "and point deployments to it.",
            before={**MEMBERS, **before},
            good={**MEMBERS, **good},
            bad={**MEMBERS, **bad},
        )
        for before, good, bad in (
            ({}, {f"{ETCD}.provision.replicas": 3}, {f"{ETCD}.provision.replicas": 1}),
            ({f"{ETCD}.provision.replicas": 1}, {f"{ETCD}.provision.replicas": 1}, {}),
        )
    ),
    *(
        Rule(
            TIER,
            "etcd.provision.volume and ephemeral are immutable, since a StatefulSet's claims are: create another tier "
            "and point deployments to it.",
            before={**MEMBERS, **before},
            good={**MEMBERS, **before, "mooncake.segmentGiBPerNode": 128},
            bad={**MEMBERS, **bad},
        )
        for before, bad in (
            ({}, {f"{ETCD}.provision.volume": {}}),
            (ALONE, {**ALONE, f"{ETCD}.provision.ephemeral": True}),
            ({**ALONE, f"{ETCD}.provision.ephemeral": True}, ALONE),
            ({f"{ETCD}.provision.volume": {}}, {}),
            ({f"{ETCD}.provision.volume": VOLUME}, {f"{ETCD}.provision.volume.size": "9Gi"}),
            ({f"{ETCD}.provision.volume": {}}, {f"{ETCD}.provision.volume.storageClassName": "fast"}),
            ({f"{ETCD}.provision.volume.storageClassName": "fast"}, {f"{ETCD}.provision.volume": {}}),
        )
    ),
    Rule(
        TIER,
        "etcd.provision.replicas must be 1 or 3: two have no majority when one is lost.",
        good={**MEMBERS, f"{ETCD}.provision.replicas": 1},
        bad={**MEMBERS, f"{ETCD}.provision.replicas": 2},
    ),
    Rule(
        TIER,
        "volume.size must be a quantity of at least 1Gi, such as 8Gi.",
        good={**MEMBERS, f"{ETCD}.provision.volume.size": "10G"},
        bad={**MEMBERS, f"{ETCD}.provision.volume.size": "1000Mi"},
    ),
    *(
        Rule(TIER, "set exactly one of disk.storageClassName and disk.hostPath.", good=good, bad=bad)
        for good, bad in (
            (
                {**MOONCAKE, "mooncake.disk": {"sizePerNode": "1Ti", "storageClassName": "nvme"}},
                {**MOONCAKE, "mooncake.disk": {"sizePerNode": "1Ti"}},
            ),
            (
                {**MOONCAKE, "mooncake.disk": FILES},
                {**MOONCAKE, "mooncake.disk": {**FILES, "storageClassName": "nvme"}},
            ),
        )
    ),
    Rule(
        TIER,
        "disk.sizePerNode must be a quantity of at least 1Gi, such as 500Gi or 1Ti.",
        good={**MOONCAKE, "mooncake.disk": {**FILES, "sizePerNode": "1Gi"}},
        bad={**MOONCAKE, "mooncake.disk": {**FILES, "sizePerNode": "1000"}},
    ),
    *(
        Rule(TIER, "set exactly one of nixl.storage and nixl.p2p.", good=good, bad=bad)
        for good, bad in ((NIXL, {**NIXL, "nixl": {}}), (P2P, {**NIXL, "nixl.p2p": {}}))
    ),
    *(
        Rule(TIER, "set exactly one of nixl.storage.fs and nixl.storage.obj.", good=good, bad=bad)
        for good, bad in (
            (NIXL, {**NIXL, f"{STORAGE}.fs": GONE}),
            (OBJECTS, {**OBJECTS, f"{STORAGE}.fs": FILES}),
        )
    ),
    *(
        Rule(
            TIER,
            "nixl.storage.obj needs endpoint, or region for a bucket of Amazon's.",
            good=good,
            bad={**OBJECTS, f"{STORAGE}.obj.region": GONE},
        )
        for good in (OBJECTS, {**OBJECTS, f"{STORAGE}.obj": {"bucket": "kv-cache", "endpoint": "http://minio:9000"}})
    ),
    Rule(
        TIER,
        "nixl.storage.obj needs endpoint, or region for a bucket of Amazon's.",
        good={**OBJECTS, f"{STORAGE}.obj.region": GONE, f"{STORAGE}.obj.endpoint": "http://minio:9000"},
        bad={**OBJECTS, f"{STORAGE}.obj.region": GONE},
    ),
    Rule(
        TIER,
        "fs.sizePerNode must be a quantity of at least 1Gi, such as 500Gi or 1Ti.",
        good={**NIXL, f"{STORAGE}.fs.sizePerNode": "1.5Ti"},
        bad={**NIXL, f"{STORAGE}.fs.sizePerNode": "0.5Gi"},
    ),
    *(
        Rule(TIER, "set exactly one of hicache.hostMemoryGiBPerNode and hicache.ratio.", good=good, bad=bad)
        for good, bad in (
            (HICACHE, {**HICACHE, "hicache": {}}),
            ({**HICACHE, "hicache": {"ratio": 1.5}}, {**HICACHE, "hicache.ratio": 2}),
        )
    ),
    *(
        Rule(TIER, "set exactly one of hicache.l3.backend and hicache.l3.tierRef.", good=good, bad=bad)
        for good, bad in ((BEHIND, {**HICACHE, L3: {}}), (SHARED, {**SHARED, f"{L3}.tierRef.name": "y"}))
    ),
    *(
        Rule(
            TIER,
            "hicache.l3.file is required when hicache.l3.backend is File, and wrong otherwise.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            (SHARED, {**SHARED, f"{L3}.file": GONE}),
            (BEHIND, {**SHARED, **BEHIND, f"{L3}.backend": GONE}),
            (OVER_NIXL, {**SHARED, **OVER_NIXL}),
        )
    ),
    Rule(
        TIER,
        "file.sizePerRank must be a quantity of at least 1Gi, such as 500Gi.",
        good={**SHARED, f"{L3}.file.sizePerRank": "1Gi"},
        bad={**SHARED, f"{L3}.file.sizePerRank": "1023Mi"},
    ),
    *(
        Rule(TIER, "set exactly one of rdma.dra and rdma.extendedResource.", good=good, bad=bad)
        for good, bad in (
            (OVER_NICS, {**OVER_NICS, "rdma.extendedResource": GONE}),
            (
                {**OVER_NICS, "rdma.extendedResource": GONE, "rdma.dra.deviceClassName": "nics"},
                {**OVER_NICS, "rdma.dra.deviceClassName": "nics"},
            ),
        )
    ),
    *(
        Rule(
            TIER,
            "hostNetwork.firstPort and the 7 ports after it must not be among 10248 to 10256, which are the kubelet's "
            "and kube-proxy's, nor 30000 to 60999, which are the node ports and those of outgoing connections.",
            good={**OVER_NICS, PORT: good},
            bad={**OVER_NICS, PORT: bad},
        )
        for good, bad in ((10240, 10241), (10257, 10256), (29992, 29993), (61000, 60999), (1024, 10250), (65000, 31000))
    ),
    Rule(
        TIER,
        "updateStrategy.maxUnavailable goes with type RollingUpdate only; remove it for OnDelete.",
        good={"updateStrategy.maxUnavailable": 2},
        bad={"updateStrategy.maxUnavailable": 2, "updateStrategy.type": "OnDelete"},
    ),
    *(
        Rule(
            TIER,
            "maxUnavailable must be a number from 1 on or a percentage such as 10%.",
            good={"updateStrategy.maxUnavailable": good},
            bad={"updateStrategy.maxUnavailable": bad},
        )
        for good, bad in ((1, 0), (1000, -1), ("1%", "0%"), ("10%", "10"), ("100%", "101%"), ("99%", "a lot"))
    ),
    *(
        Rule(TIER, message, good={TOLERATIONS: [good]}, bad={TOLERATIONS: [{"operator": "Exists"}, bad]})
        for message, good, bad in (
            (
                "a toleration without a key needs operator Exists, and tolerates every taint.",
                {"operator": "Exists"},
                {"operator": "Equal", "value": "h100"},
            ),
            (
                "a toleration without a key needs operator Exists, and tolerates every taint.",
                {"key": "gpu", "value": "h100"},
                {"effect": "NoSchedule"},
            ),
            (
                "a toleration with operator Exists has no value; remove it, or use Equal.",
                {"key": "gpu", "operator": "Equal", "value": "h100"},
                {"key": "gpu", "operator": "Exists", "value": "h100"},
            ),
            (
                "tolerationSeconds goes with effect NoExecute only.",
                {"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 0},
                {"key": "gpu", "tolerationSeconds": 60},
            ),
        )
    ),
    Rule(
        DEPLOYMENT,
        "set only one of env.value and env.valueFrom.",
        good={"engine.env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": FROM}]},
        bad={"engine.env": [{"name": "A", "value": "a"}, {"name": "B", "value": "b", "valueFrom": FROM}]},
    ),
    Rule(
        DEPLOYMENT,
        "spec.inferenceClusterRef is required without spec.engine.kvCache.tierRef, whose cluster it would be.",
        good={"inferenceClusterRef": GONE, "engine.kvCache.tierRef.name": "shared"},
        bad={"inferenceClusterRef": GONE},
    ),
    Rule(
        DEPLOYMENT,
        "spec.inferenceClusterRef is required with engine.kvCache.tierRef.kind KVOffloadFleet, which has a tier on "
        "each of its clusters.",
        good={"engine.kvCache.tierRef": {"name": "shared", "kind": FLEET}},
        bad={"engine.kvCache.tierRef": {"name": "shared", "kind": FLEET}, "inferenceClusterRef": GONE},
    ),
    *(
        Rule(
            CLUSTER,
            "spec.cluster.existing is required when source is Existing, and not allowed when it is Local.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            ({}, {"cluster.existing": GONE}),
            ({"cluster": {"source": "Local"}}, {"cluster.source": "Local"}),
        )
    ),
    Rule(
        CLUSTER,
        "spec.cluster.source is immutable, since what runs on the cluster would be forgotten: make another "
        "InferenceCluster.",
        before={},
        good={"cluster.existing.secretRef.name": "other"},
        bad={"cluster": {"source": "Local"}},
    ),
]


class Change(NamedTuple):
    """A story about a change that is allowed: the spec before, and after."""

    story: str
    kind: str
    before: Changes
    after: Changes


CHANGES = [
    Change("a tier's cache grows", TIER, {}, {"lmcache.cpuTierGiBPerNode": 128}),
    Change(
        "a tier gets a disk and a Redis",
        TIER,
        {},
        {f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti", **HOST},
    ),
    Change("a tier changes its mode", TIER, {}, {"lmcache.mode": "InProcess"}),
    Change("a tier gets a Valkey of its own", TIER, HOST, {**VALKEY, SAVED: {}}),
    Change("a tier goes back to a Redis that is there", TIER, {**VALKEY, SAVED: {}}, HOST),
    Change("a tier gives its Redis up", TIER, {**VALKEY, SAVED: {}}, {}),
    Change("a Valkey gets more memory", TIER, VALKEY, {f"{REDIS}.provision.memory": "128Gi"}),
    Change("a pool takes to RDMA", TIER, MOONCAKE, OVER_NICS),
    Change("a pool leaves RDMA", TIER, OVER_NICS, MOONCAKE),
    Change("a pool finds its segments by HTTP", TIER, MOONCAKE, {**MOONCAKE, "mooncake.metadata": "HTTP"}),
    Change("a pool takes huge pages and a disk", TIER, MEMBERS, {**MEMBERS, "mooncake.hugePages": "1Gi", **POOL_DISK}),
    Change("an etcd's members move", TIER, GIVEN, {**GIVEN, f"{ETCD}.endpoints": ["https://other:2379"]}),
    Change("files are kept elsewhere", TIER, NIXL, {**NIXL, f"{STORAGE}.fs.hostPath.path": "/mnt/other"}),
    Change("storage goes from files to objects", TIER, NIXL, OBJECTS),
    Change("HiCache gets a pool behind it", TIER, HICACHE, OVER_MOONCAKE),
    Change("HiCache gets another tier behind it", TIER, HICACHE, BEHIND),
    Change("HiCache has nothing behind it any more", TIER, BEHIND, HICACHE),
    Change("HiCache gets a store of AIBrix's behind it", TIER, HICACHE, OVER_AIBRIX),
    Change("memory gets a store behind it", TIER, AIBRIX, INFINISTORE),
    Change("a store is at another address", TIER, HPKV, {**HPKV, f"{L2}.hpkv": {"address": "10.0.0.8"}}),
    Change(
        "members are written down elsewhere",
        TIER,
        OUTSIDE_LIST,
        {**OUTSIDE_LIST, f"{RUN}.metadata.redis": {"host": "other"}},
    ),
    Change("InfiniStore grows", TIER, SERVERS, {**SERVERS, f"{RUN}.replicas": 3, f"{RUN}.memoryGiBPerReplica": 500}),
    Change(
        "engines leave RDMA",
        TIER,
        SERVERS,
        {**SERVERS, f"{RUN}.protocol": "TCP", "rdma.engines.count": 0},
    ),
    Change("there are more nodes with engines", TIER, VINEYARD, {**VINEYARD, f"{LEGACY}.replicas": 5}),
    Change("somebody wants to be told", TIER, {}, {"monitoring": {}}),
    Change("a tier takes another release", TIER, {"release": "2026.11"}, {"release": "2026.12"}),
    Change(
        "an engine is attached",
        DEPLOYMENT,
        {},
        {"engine.kvCache.tierRef.name": "shared", "inferenceClusterRef": GONE},
    ),
    Change(
        "an engine is detached",
        DEPLOYMENT,
        {"engine.kvCache.tierRef.name": "shared", "inferenceClusterRef": GONE},
        {},
    ),
]


class Mistake(NamedTuple):
    """A spec that is refused by its schema: the field and value, and what is said of the field.

    The function refuses it as well, but for what is `counted` by an API server alone.
    """

    kind: str
    field: str
    value: Any
    says: str
    beside: Changes = NOTHING
    counted: bool = False


# A Redis, a disk, and a Secret to make mistakes in.
SECRET = {**HOST, f"{REDIS}.secretRef.name": "redis"}
CLASS = {f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti"}
FOLDER = {f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"}
TIER_REF = {"engine.kvCache.tierRef.name": "shared"}
RESOURCES = "engine.resources"
BUCKET_SECRET = f"{STORAGE}.obj.secretRef"
RATIO = {**HICACHE, "hicache": {"ratio": 2}}
CLAIMED = {**OVER_NICS, "rdma.extendedResource": GONE, "rdma.dra.deviceClassName": "nics"}

REQUIRED = "Required value"
EMPTY = "should be at least 1 chars long"
UNSUPPORTED = "Unsupported value"

MISTAKES = [
    Mistake(TIER, "inferenceClusterRef", GONE, REQUIRED),
    Mistake(TIER, "inferenceClusterRef.name", GONE, REQUIRED),
    Mistake(TIER, "inferenceClusterRef.name", "", EMPTY),
    Mistake(TIER, "inferenceClusterRef.name", 254 * "a", "Too long"),
    Mistake(TIER, "backend", GONE, REQUIRED),
    Mistake(TIER, "backend", "lmcache", UNSUPPORTED),
    Mistake(TIER, "targetNamespace", "", EMPTY),
    Mistake(TIER, "targetNamespace", "a.b", "should match"),
    Mistake(TIER, "targetNamespace", "Serving", "should match"),
    Mistake(TIER, "targetNamespace", 64 * "a", "Too long"),
    Mistake(TIER, "allowedNamespaces.from", "Selector", UNSUPPORTED),
    Mistake(TIER, "release", "", EMPTY),
    Mistake(TIER, "release", 2026.11, "must be of type string"),
    Mistake(TIER, "release", 33 * "1", "Too long"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", GONE, REQUIRED),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 0, "should be greater than or equal to 1"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", -64, "should be greater than or equal to 1"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 65537, "should be less than or equal to 65536"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", "64Gi", "must be of type integer"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 1.5, "must be of type integer"),
    Mistake(TIER, f"{DISK}.sizePerNode", GONE, REQUIRED, CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "-1Ti", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "1 Ti", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "1TB", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "500m", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", 1000, "must be of type string", CLASS),
    Mistake(TIER, f"{DISK}.storageClassName", "", EMPTY, CLASS),
    Mistake(TIER, f"{DISK}.hostPath.path", GONE, REQUIRED, FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "mnt/kv", "should match", FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "/", "should be at least 2 chars long", FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "/mnt:kv", "should match", FOLDER),
    Mistake(TIER, "lmcache.remote.redis", GONE, REQUIRED, HOST),
    Mistake(TIER, f"{REDIS}.host", "", EMPTY),
    Mistake(TIER, f"{REDIS}.host", "redis://redis", "should match"),
    Mistake(TIER, f"{REDIS}.host", "redis:6379", "should match"),
    Mistake(TIER, f"{REDIS}.host", "user@redis", "should match"),
    Mistake(TIER, f"{REDIS}.port", 0, "should be greater than or equal to 1", HOST),
    Mistake(TIER, f"{REDIS}.port", 65536, "should be less than or equal to 65535", HOST),
    Mistake(TIER, f"{REDIS}.port", "6379", "must be of type integer", HOST),
    Mistake(TIER, f"{REDIS}.tls", "true", "must be of type boolean", HOST),
    Mistake(TIER, f"{REDIS}.mode", "Sentinel", UNSUPPORTED, HOST),
    Mistake(TIER, f"{REDIS}.secretRef.name", GONE, REQUIRED, {**SECRET, f"{REDIS}.secretRef.onCluster": True}),
    Mistake(TIER, f"{REDIS}.secretRef.name", "", EMPTY, HOST),
    Mistake(TIER, f"{REDIS}.secretRef.usernameKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.secretRef.passwordKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.secretRef.urlKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.maxCapacityGiB", 0, "should be greater than or equal to 1", HOST),
    Mistake(TIER, f"{REDIS}.maxCapacityGiB", 1048577, "should be less than or equal to 1048576", HOST),
    Mistake(TIER, "lmcache.mode", "Agent", UNSUPPORTED),
    Mistake(TIER, "lmcache.ipc", "Host", UNSUPPORTED),
    Mistake(TIER, "lmcache.chunkSize", 0, "should be greater than or equal to 16"),
    Mistake(TIER, "lmcache.chunkSize", -256, "should be greater than or equal to 16"),
    Mistake(TIER, "lmcache.chunkSize", 16385, "should be less than or equal to 16384"),
    Mistake(
        TIER,
        "lmcache.encryption.secretRef.name",
        GONE,
        REQUIRED,
        {**HOST, "lmcache.encryption.secretRef.key": "key"},
    ),
    Mistake(TIER, "lmcache.encryption.secretRef.name", "a b", "should match", HOST),
    Mistake(TIER, "lmcache.encryption.secretRef.key", "a b", "should match", {**HOST, **ENCRYPTED}),
    Mistake(TIER, "lmcache.encryption.secretRef.onCluster", "no", "must be of type boolean", {**HOST, **ENCRYPTED}),
    Mistake(TIER, f"{REDIS}.secretRef.onCluster", "true", "must be of type boolean", SECRET),
    Mistake(TIER, f"{REDIS}.secretRef.name", "Redis", "should match", HOST),
    Mistake(TIER, f"{REDIS}.secretRef.passwordKey", "pass word", "should match", SECRET),
    Mistake(TIER, f"{REDIS}.provision.memory", GONE, REQUIRED, {SAVED: {}}),
    Mistake(TIER, f"{REDIS}.provision.memory", "64 Gi", "should match"),
    Mistake(TIER, f"{REDIS}.provision.memory", 64, "must be of type string"),
    Mistake(TIER, f"{SAVED}.size", "8GB", "should match", VALKEY),
    Mistake(TIER, f"{SAVED}.storageClassName", "", EMPTY, VALKEY),
    Mistake(TIER, "mooncake.segmentGiBPerNode", GONE, REQUIRED, MOONCAKE),
    Mistake(TIER, "mooncake.segmentGiBPerNode", 0, "should be greater than or equal to 1", MOONCAKE),
    Mistake(TIER, "mooncake.segmentGiBPerNode", 65537, "should be less than or equal to 65536", MOONCAKE),
    Mistake(TIER, "mooncake.segmentGiBPerNode", "64Gi", "must be of type integer", MOONCAKE),
    Mistake(TIER, "mooncake.protocol", "tcp", UNSUPPORTED, MOONCAKE),
    Mistake(TIER, "mooncake.hugePages", "2MiB", UNSUPPORTED, MOONCAKE),
    Mistake(TIER, "mooncake.hugePages", True, "must be of type string", MOONCAKE),
    Mistake(TIER, "mooncake.master.replicas", 0, "should be greater than or equal to 1", MOONCAKE),
    Mistake(TIER, "mooncake.master.replicas", 5, "should be less than or equal to 3", MOONCAKE),
    Mistake(TIER, "mooncake.master.replicas", "3", "must be of type integer", MOONCAKE),
    Mistake(TIER, "mooncake.master.oplog", "true", "must be of type boolean", MEMBERS),
    Mistake(TIER, f"{ETCD}.provision.replicas", 0, "should be greater than or equal to 1", MEMBERS),
    Mistake(TIER, f"{ETCD}.provision.replicas", 5, "should be less than or equal to 3", MEMBERS),
    Mistake(TIER, f"{ETCD}.provision.ephemeral", "yes", "must be of type boolean", MEMBERS),
    Mistake(TIER, f"{ETCD}.provision.volume.size", "big", "should match", MEMBERS),
    Mistake(TIER, f"{ETCD}.provision.volume.storageClassName", "NVMe", "should match", MEMBERS),
    Mistake(TIER, f"{ETCD}.endpoints", [], "should have at least 1 items", GIVEN),
    Mistake(TIER, f"{ETCD}.endpoints", [f"http://etcd-{i}:2379" for i in range(10)], "must have at most 9", GIVEN),
    *(
        Mistake(TIER, f"{ETCD}.endpoints", [wrong], "should match", GIVEN)
        for wrong in (
            "etcd:2379",
            "http://etcd",
            "http://etcd:2379/",
            "grpc://etcd:2379",
            "http://root:secret@etcd:2379",
            "http://a:2379,http://b:2379",
        )
    ),
    Mistake(TIER, f"{ETCD}.caSecretRef.name", GONE, REQUIRED, {**GIVEN, f"{ETCD}.caSecretRef.key": "ca"}),
    Mistake(TIER, f"{ETCD}.caSecretRef.name", "etcd/ca", "should match", GIVEN),
    Mistake(TIER, f"{ETCD}.caSecretRef.key", "ca crt", "should match", {**GIVEN, f"{ETCD}.caSecretRef.name": "etcd"}),
    Mistake(
        TIER,
        f"{ETCD}.caSecretRef.onCluster",
        1,
        "must be of type boolean",
        {**GIVEN, f"{ETCD}.caSecretRef.name": "etcd"},
    ),
    Mistake(TIER, "mooncake.metadata", "etcd", UNSUPPORTED, MOONCAKE),
    Mistake(TIER, "mooncake.disk.sizePerNode", GONE, REQUIRED, {**MOONCAKE, **POOL_DISK}),
    Mistake(TIER, "mooncake.disk.sizePerNode", "1TB", "should match", {**MOONCAKE, **POOL_DISK}),
    Mistake(TIER, "mooncake.disk.storageClassName", "", EMPTY, {**MOONCAKE, **POOL_DISK}),
    Mistake(TIER, "mooncake.disk.hostPath.path", "kv", "should match", {**MOONCAKE, "mooncake.disk": FILES}),
    Mistake(TIER, f"{STORAGE}.cpuTierGiBPerNode", GONE, REQUIRED, NIXL),
    Mistake(TIER, f"{STORAGE}.cpuTierGiBPerNode", 0, "should be greater than or equal to 1", NIXL),
    Mistake(TIER, f"{STORAGE}.fs.hostPath", GONE, REQUIRED, NIXL),
    Mistake(TIER, f"{STORAGE}.fs.hostPath.path", "/", "should be at least 2 chars long", NIXL),
    Mistake(TIER, f"{STORAGE}.fs.sizePerNode", GONE, REQUIRED, NIXL),
    Mistake(TIER, f"{STORAGE}.fs.sizePerNode", "-1Ti", "should match", NIXL),
    Mistake(TIER, f"{STORAGE}.obj.bucket", GONE, REQUIRED, {**OBJECTS, f"{STORAGE}.obj.region": "eu-west-1"}),
    Mistake(TIER, f"{STORAGE}.obj.bucket", "kv", "should be at least 3 chars long", OBJECTS),
    Mistake(TIER, f"{STORAGE}.obj.bucket", "KV_Cache", "should match", OBJECTS),
    Mistake(TIER, f"{STORAGE}.obj.bucket", 64 * "a", "Too long", OBJECTS),
    Mistake(TIER, f"{STORAGE}.obj.endpoint", "minio:9000", "should match", OBJECTS),
    Mistake(TIER, f"{STORAGE}.obj.endpoint", "http://key:secret@minio:9000", "should match", OBJECTS),
    Mistake(TIER, f"{STORAGE}.obj.region", "eu west", "should match", OBJECTS),
    Mistake(TIER, f"{BUCKET_SECRET}.name", GONE, REQUIRED, {**OBJECTS, f"{BUCKET_SECRET}.onCluster": True}),
    Mistake(TIER, f"{BUCKET_SECRET}.name", "a b", "should match", OBJECTS),
    Mistake(TIER, f"{BUCKET_SECRET}.accessKeyIdKey", "", EMPTY, {**OBJECTS, f"{BUCKET_SECRET}.name": "s3"}),
    Mistake(
        TIER, f"{BUCKET_SECRET}.secretAccessKeyKey", "a/b", "should match", {**OBJECTS, f"{BUCKET_SECRET}.name": "s3"}
    ),
    Mistake(
        TIER,
        f"{BUCKET_SECRET}.onCluster",
        "true",
        "must be of type boolean",
        {**OBJECTS, f"{BUCKET_SECRET}.name": "s3"},
    ),
    Mistake(TIER, "nixl.p2p.sideChannelPort", 1023, "should be greater than or equal to 1024", P2P),
    Mistake(TIER, "nixl.p2p.sideChannelPort", 65001, "should be less than or equal to 65000", P2P),
    Mistake(TIER, "hicache.hostMemoryGiBPerNode", 0, "should be greater than or equal to 1", HICACHE),
    Mistake(TIER, "hicache.ratio", 1, "should be greater than 1", RATIO),
    Mistake(TIER, "hicache.ratio", 101, "should be less than or equal to 100", RATIO),
    Mistake(TIER, "hicache.ratio", "2", "must be of type number", RATIO),
    Mistake(TIER, "hicache.writePolicy", "write_through", UNSUPPORTED, HICACHE),
    Mistake(TIER, f"{L1}.cpuTierGiBPerNode", 0, "should be greater than or equal to 1", AIBRIX),
    Mistake(TIER, f"{L1}.cpuTierGiBPerNode", 65537, "should be less than or equal to 65536", AIBRIX),
    Mistake(TIER, f"{L1}.engineGiBPerRank", 0, "should be greater than or equal to 1", AIBRIX),
    Mistake(TIER, f"{L1}.engineGiBPerRank", 1025, "should be less than or equal to 1024", AIBRIX),
    Mistake(TIER, f"{L1}.evictionPolicy", "LFU", UNSUPPORTED, AIBRIX),
    Mistake(TIER, f"{L2}.ingestion", "HOT", UNSUPPORTED, SHFS),
    *(
        Mistake(TIER, f"{L2}.{store}.{field}", wrong, says, base)
        for store, base in (("infinistore", INFINISTORE), ("hpkv", HPKV), ("priskv", PRISKV))
        for field, wrong, says in (
            ("address", "store.kv", f"l2.{store}.address must be an IPv4 or IPv6 address"),
            ("address", "10.0.0.7:12345", f"l2.{store}.address must be an IPv4 or IPv6 address"),
            ("address", "1", "should be at least 2 chars long"),
            ("address", 46 * ":", "Too long"),
            ("port", 0, "should be greater than or equal to 1"),
            ("port", 65536, "should be less than or equal to 65535"),
        )
    ),
    *(
        Mistake(TIER, f"{path}.{field}", wrong, says, {**base, **beside})
        for base, path in MEMBERS_IN.values()
        for field, wrong, says, beside in (
            ("provision.memory", "1 GiB", "should match", {}),
            ("provision.memory", 1, "must be of type string", {}),
            ("host", "", EMPTY, {}),
            ("host", "redis:6379", "should match", {}),
            ("port", 0, "should be greater than or equal to 1", {f"{path}.host": "redis"}),
            ("port", 65536, "should be less than or equal to 65535", {f"{path}.host": "redis"}),
            ("secretRef.name", GONE, REQUIRED, {f"{path}.host": "redis", f"{path}.secretRef.key": "key"}),
            ("secretRef.name", "Redis", "should match", {f"{path}.host": "redis"}),
            ("secretRef.key", "a b", "should match", {f"{path}.host": "redis", f"{path}.secretRef.name": "redis"}),
        )
    ),
    *(
        Mistake(TIER, f"{path}.{field}", wrong, UNSUPPORTED, base)
        for base, path in ((INFINISTORE, f"{L2}.infinistore"), (SERVERS, RUN))
        for field, wrong in (("protocol", "rdma"), ("linkType", "IB"))
    ),
    Mistake(TIER, f"{L2}.priskv.address", GONE, REQUIRED, {**PRISKV, f"{L2}.priskv.port": 6379}),
    Mistake(TIER, f"{L2}.priskv.secretRef.name", GONE, REQUIRED, {**PRISKV, f"{L2}.priskv.secretRef.key": "key"}),
    Mistake(TIER, f"{L2}.priskv.secretRef.name", "a/b", "should match", PRISKV),
    Mistake(TIER, f"{L2}.priskv.secretRef.key", "", EMPTY, {**PRISKV, f"{L2}.priskv.secretRef.name": "priskv"}),
    Mistake(TIER, f"{L2}.eic.secretRef", GONE, REQUIRED, EIC),
    Mistake(TIER, f"{L2}.eic.secretRef.name", GONE, REQUIRED, {**EIC, f"{L2}.eic.secretRef.key": "key"}),
    Mistake(TIER, f"{L2}.eic.secretRef.name", "", EMPTY, EIC),
    Mistake(TIER, f"{L2}.eic.secretRef.key", "eic/yaml", "should match", EIC),
    Mistake(TIER, f"{L2}.shfs.hostPath", GONE, REQUIRED, SHFS),
    Mistake(TIER, f"{L2}.shfs.hostPath.path", "mnt/kv", "should match", SHFS),
    Mistake(TIER, f"{L2}.shfs.hostPath.path", "/", "should be at least 2 chars long", SHFS),
    Mistake(TIER, f"{L2}.shfs.sizePerNode", GONE, REQUIRED, SHFS),
    Mistake(TIER, f"{L2}.shfs.sizePerNode", "1TB", "should match", SHFS),
    Mistake(TIER, f"{L2}.rocksdb.sizePerPod", GONE, REQUIRED, ROCKSDB),
    Mistake(TIER, f"{L2}.rocksdb.sizePerPod", "-1Ti", "should match", ROCKSDB),
    Mistake(TIER, f"{L2}.rocksdb.storageClassName", "NVMe", "should match", ROCKSDB),
    Mistake(TIER, f"{L2}.rocksdb.ttlSeconds", 59, "should be greater than or equal to 60", ROCKSDB),
    Mistake(TIER, f"{L2}.rocksdb.ttlSeconds", 31536001, "should be less than or equal to 31536000", ROCKSDB),
    *(
        Mistake(TIER, f"{path}.{field}", wrong, says, base)
        for base, path in ((SERVERS, RUN), (VINEYARD, LEGACY))
        for field, wrong, says in (
            ("memoryGiBPerReplica", GONE, REQUIRED),
            ("memoryGiBPerReplica", 0, "should be greater than or equal to 1"),
            ("memoryGiBPerReplica", 4097, "should be less than or equal to 4096"),
            ("memoryGiBPerReplica", "400Gi", "must be of type integer"),
            ("replicas", 0, "should be greater than or equal to 1"),
            ("replicas", 65, "should be less than or equal to 64"),
        )
    ),
    Mistake(TIER, f"{LEGACY}.cpuTierGiBPerNode", 0, "should be greater than or equal to 1", VINEYARD),
    Mistake(TIER, f"{LEGACY}.cpuTierGiBPerNode", 65537, "should be less than or equal to 65536", VINEYARD),
    Mistake(TIER, f"{LEGACY}.engineGiBPerRank", 0, "should be greater than or equal to 1", VINEYARD),
    Mistake(TIER, f"{LEGACY}.engineGiBPerRank", 1025, "should be less than or equal to 1024", VINEYARD),
    Mistake(TIER, f"{LEGACY}.etcd.replicas", 0, "should be greater than or equal to 1", VINEYARD),
    Mistake(TIER, f"{LEGACY}.etcd.replicas", 5, "should be less than or equal to 3", VINEYARD),
    Mistake(TIER, f"{LEGACY}.etcd.ephemeral", "yes", "must be of type boolean", VINEYARD),
    Mistake(TIER, f"{LEGACY}.etcd.volume.size", "big", "should match", VINEYARD),
    Mistake(TIER, f"{LEGACY}.etcd.volume.storageClassName", "", EMPTY, VINEYARD),
    Mistake(TIER, f"{L3}.backend", "LMCache", UNSUPPORTED, HICACHE),
    Mistake(TIER, f"{L3}.backend", "HiCache", UNSUPPORTED, HICACHE),
    Mistake(TIER, f"{L3}.tierRef.name", GONE, REQUIRED, BEHIND),
    Mistake(TIER, f"{L3}.tierRef.name", "", EMPTY, BEHIND),
    Mistake(TIER, f"{L3}.tierRef.kind", "Redis", UNSUPPORTED, BEHIND),
    Mistake(TIER, f"{L3}.file.claimName", GONE, REQUIRED, SHARED),
    Mistake(TIER, f"{L3}.file.claimName", "KV", "should match", SHARED),
    Mistake(TIER, f"{L3}.file.sizePerRank", GONE, REQUIRED, SHARED),
    Mistake(TIER, f"{L3}.file.sizePerRank", "500 Gi", "should match", SHARED),
    Mistake(TIER, "rdma.agents", GONE, REQUIRED, OVER_NICS),
    Mistake(TIER, "rdma.engines", GONE, REQUIRED, OVER_NICS),
    Mistake(TIER, "rdma.agents.count", GONE, REQUIRED, OVER_NICS),
    Mistake(TIER, "rdma.agents.count", -1, "should be greater than or equal to 0", OVER_NICS),
    Mistake(TIER, "rdma.engines.count", 65, "should be less than or equal to 64", OVER_NICS),
    Mistake(TIER, "rdma.engines.count", "1", "must be of type integer", OVER_NICS),
    Mistake(TIER, "rdma.dra.deviceClassName", GONE, REQUIRED, {**CLAIMED, "rdma.dra.selectors": []}),
    Mistake(TIER, "rdma.dra.deviceClassName", "NICs", "should match", CLAIMED),
    Mistake(TIER, "rdma.dra.alignWithGPU", "yes", "must be of type boolean", CLAIMED),
    Mistake(TIER, "rdma.dra.selectors", [{}], REQUIRED, CLAIMED),
    Mistake(TIER, "rdma.dra.selectors", [{"cel": ""}], EMPTY, CLAIMED),
    Mistake(TIER, "rdma.dra.selectors", 9 * [{"cel": "true"}], "must have at most 8 items", CLAIMED),
    Mistake(TIER, "rdma.extendedResource.name", "rdma_shared", "should match", OVER_NICS),
    Mistake(TIER, "rdma.extendedResource.name", "rdma/a b", "should match", OVER_NICS),
    Mistake(TIER, "rdma.netDevices", ["mlx5_0,mlx5_1"], "should match", OVER_NICS),
    Mistake(TIER, "rdma.netDevices", ["mlx5_0:1"], "should match", OVER_NICS),
    Mistake(TIER, "rdma.netDevices", "mlx5_0", "must be of type array", OVER_NICS),
    Mistake(TIER, "rdma.gidIndex", 256, "should be less than or equal to 255", OVER_NICS),
    Mistake(TIER, PORT, 1023, "should be greater than or equal to 1024", OVER_NICS),
    Mistake(TIER, PORT, 65001, "should be less than or equal to 65000", OVER_NICS),
    Mistake(TIER, "rdma.hostNetwork.firstPort", GONE, REQUIRED, {**OVER_NICS, PORT: 20000}),
    Mistake(TIER, "placement.nodeSelector.pool", True, "must be of type string"),
    Mistake(TIER, "placement.nodeSelector.pool", 64 * "a", "Too long", counted=True),
    Mistake(TIER, "placement.nodeSelector.pool", "a b", "should match", counted=True),
    Mistake(
        TIER, "placement.nodeSelector", {str(i): "" for i in range(17)}, "must have at most 16 items", counted=True
    ),
    Mistake(TIER, TOLERATIONS, 17 * [{"operator": "Exists"}], "must have at most 16 items", counted=True),
    Mistake(TIER, TOLERATIONS, [{"operator": "In"}], UNSUPPORTED),
    Mistake(TIER, TOLERATIONS, [{"effect": "Evict"}], UNSUPPORTED),
    Mistake(TIER, TOLERATIONS, [{"tolerationSeconds": -1}], "should be greater than or equal to 0"),
    Mistake(TIER, "placement.gpuAccess.type", "Device", UNSUPPORTED),
    Mistake(TIER, "placement.gpuAccess.runtimeClassName", 254 * "a", "Too long"),
    Mistake(TIER, "placement.priorityClassName", "", EMPTY),
    Mistake(TIER, "monitoring.podMonitors", "true", "must be of type boolean"),
    Mistake(TIER, "monitoring.alerts", 1, "must be of type boolean"),
    Mistake(TIER, "monitoring.dashboard", "no", "must be of type boolean"),
    Mistake(TIER, "monitoring.labels", {"release": 1}, "must be of type string"),
    Mistake(TIER, "monitoring.labels", {"release": "a b"}, "should match", counted=True),
    Mistake(TIER, "monitoring.prometheusNamespace", "", EMPTY),
    Mistake(TIER, "monitoring.prometheusNamespace", "a.b", "should match"),
    Mistake(TIER, "placement.gpusPerNode", 0, "should be greater than or equal to 1"),
    Mistake(TIER, "placement.gpusPerNode", 65, "should be less than or equal to 64"),
    Mistake(TIER, "images.lmcache", "lmcache/standalone", "should match"),
    Mistake(TIER, "images.lmcache", "images.example:5000/lmcache/standalone", "should match"),
    Mistake(TIER, "images.lmcache", "", EMPTY),
    *(
        Mistake(TIER, f"images.{image}", "images.example/repository", "should match")
        for image in ("mooncake", "etcd", "valkey", "exporter", "shell", "infinistore", "vineyard", "watcher")
    ),
    Mistake(TIER, "updateStrategy.type", "Recreate", UNSUPPORTED),
    Mistake(TIER, "updateStrategy.maxUnavailable", True, "must be of type integer,string"),
    Mistake(TIER, "updateStrategy.minReadySeconds", -1, "should be greater than or equal to 0"),
    Mistake(TIER, "updateStrategy.minReadySeconds", 86401, "should be less than or equal to 86400"),
    Mistake(FLEET, "clusterSelector", GONE, REQUIRED),
    Mistake(FLEET, "clusterSelector.matchLabels", {"gpu": 1}, "must be of type string"),
    Mistake(FLEET, "template", GONE, REQUIRED),
    Mistake(FLEET, "template.spec", GONE, REQUIRED),
    Mistake(FLEET, "template.spec.backend", "Redis", UNSUPPORTED),
    Mistake(FLEET, "template.spec.lmcache.cpuTierGiBPerNode", 0, "should be greater than or equal to 1"),
    Mistake(FLEET, "overrides", [{"spec": {}}], REQUIRED, counted=True),
    Mistake(FLEET, "overrides", [{"matchLabels": {}}], REQUIRED, counted=True),
    Mistake(FLEET, "overrides", 17 * [{"matchLabels": {}, "spec": {}}], "must have at most 16 items", counted=True),
    Mistake(FLEET, "release", "", EMPTY),
    Mistake(FLEET, "rollout.canary.matchLabels", GONE, REQUIRED, {"rollout.canary": {}}),
    Mistake(FLEET, "rollout.canary.matchLabels", {}, "should have at least 1 properties"),
    Mistake(FLEET, "rollout.maxUnavailable", True, "must be of type integer,string"),
    Mistake(FLEET, "rollout.maxColdClusters", 0, "should be greater than or equal to 1"),
    Mistake(FLEET, "rollout.maxColdClusters", 10001, "should be less than or equal to 10000"),
    Mistake(FLEET, "rollout.minReadySeconds", -1, "should be greater than or equal to 0"),
    Mistake(FLEET, "rollout.minReadySeconds", 86401, "should be less than or equal to 86400"),
    Mistake(FLEET, "rollout.approvedRevision", "", EMPTY),
    Mistake(FLEET, "rollout.paused", "yes", "must be of type boolean"),
    Mistake(DEPLOYMENT, "engine", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.name", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.name", "TensorRT", UNSUPPORTED),
    Mistake(DEPLOYMENT, "engine.name", "vllm", UNSUPPORTED),
    Mistake(DEPLOYMENT, "engine.image", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.image", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.version", "nightly", "should match"),
    Mistake(DEPLOYMENT, "engine.version", 0.33, "must be of type string"),
    Mistake(DEPLOYMENT, "engine.command", "vllm serve", "must be of type array"),
    Mistake(DEPLOYMENT, "engine.args", [1], "must be of type string"),
    Mistake(DEPLOYMENT, "engine.args", 257 * ["a"], "must have at most 256 items", counted=True),
    Mistake(DEPLOYMENT, "engine.env", [{"value": "x"}], REQUIRED),
    Mistake(DEPLOYMENT, "engine.env", [{"name": "A", "value": 1}], "must be of type string"),
    Mistake(
        DEPLOYMENT,
        "engine.env",
        [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
        "Duplicate value",
        counted=True,
    ),
    Mistake(DEPLOYMENT, f"{RESOURCES}.limits", {"nvidia.com/gpu": 0.5}, "must be of type integer,string"),
    Mistake(DEPLOYMENT, f"{RESOURCES}.claims", [{"name": "gpu"}], REQUIRED),
    Mistake(DEPLOYMENT, f"{RESOURCES}.claims", [CLAIM, CLAIM], "Duplicate value", counted=True),
    Mistake(DEPLOYMENT, "replicas", -1, "should be greater than or equal to 0"),
    Mistake(DEPLOYMENT, "replicas", 1001, "should be less than or equal to 1000"),
    Mistake(DEPLOYMENT, "replicas", "2", "must be of type integer"),
    Mistake(DEPLOYMENT, "inferenceClusterRef.name", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "inferenceClusterRef.name", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef", GONE, REQUIRED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.name", GONE, REQUIRED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.name", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.namespace", "", EMPTY, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.kind", "Redis", UNSUPPORTED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.role", "prefill", UNSUPPORTED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.onUnavailable", "Fail", UNSUPPORTED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.identity", "", EMPTY, TIER_REF),
    Mistake(CLUSTER, "cluster", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.source", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.source", "GKE", UNSUPPORTED),
    Mistake(CLUSTER, "cluster.existing.secretRef", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.existing.secretRef.name", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.existing.secretRef.name", "", EMPTY),
    Mistake(CLUSTER, "cluster.existing.secretRef.key", "", EMPTY),
]


def of_template(changes: Changes) -> Changes:
    """Write changes of a tier's spec as those of a fleet's template, behind which only another fleet may stand."""
    kind = {f"{L3}.tierRef.kind": FLEET} if f"{L3}.tierRef.name" in changes else {}
    return {f"template.spec.{path}": value for path, value in {**kind, **changes}.items()}


# A fleet's template has the rules of a tier, but for the one about its cluster.
RULES += [
    Rule(
        FLEET,
        rule.message,
        good=of_template(rule.good),
        bad=of_template(rule.bad),
        before=None if rule.before is None else of_template(rule.before),
    )
    for rule in RULES
    if rule.kind == TIER and not rule.message.startswith(("spec.inferenceClusterRef", "hicache.l3.tierRef names"))
]
BEHIND_FLEET = of_template(BEHIND)
RULES += [
    Rule(
        FLEET,
        "hicache.l3.tierRef must be of kind KVOffloadFleet, since a tier is on one cluster, and not name this very "
        "fleet: name one of backend Mooncake, Nixl or AIBrix.",
        good=BEHIND_FLEET,
        bad=bad,
    )
    for bad in (
        of_template({**BEHIND, f"{L3}.tierRef.kind": TIER}),
        of_template({**BEHIND, f"{L3}.tierRef.kind": GONE}),
        of_template({**BEHIND, f"{L3}.tierRef.name": "x"}),
    )
]
RULES += [
    Rule(
        FLEET,
        "rollout.maxUnavailable must be a number from 1 on or a percentage such as 10%.",
        good={"rollout.maxUnavailable": good},
        bad={"rollout.maxUnavailable": bad},
    )
    for good, bad in ((1, 0), ("1%", "0%"), ("100%", "101%"), ("10%", "10"))
]


def resource(kind: str, changes: Changes) -> Manifest:
    """Write the smallest resource of a kind, changed."""
    metadata = {"name": "x"}
    spec = changed(SMALLEST[kind], changes)
    return {"apiVersion": "modelplane.ai/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def read(kind: str, changes: Changes) -> None:
    """Read the smallest resource of a kind, changed, as the function does; raises api.Invalid."""
    written = resource(kind, changes)
    if kind == TIER:
        tier.read(sdk.dict_to_struct(written))
    elif kind == FLEET:
        fleet.read(sdk.dict_to_struct(written))
    else:
        api.parse(SPECS[kind], written["spec"])


def case(new: Manifest, old: Manifest | None = None) -> dict[str, Any]:
    """Write a case for the xrd tool; `old` for an update. Its answer is found again by what was asked."""
    return {"name": repr((new, old)), "new": new, "old": old}


def rule_case(rule: Rule, changes: Changes) -> dict[str, Any]:
    """Write the case of a rule's good or bad spec."""
    old = None if rule.before is None else resource(rule.kind, rule.before)
    return case(resource(rule.kind, changes), old)


def change_case(change: Change) -> dict[str, Any]:
    """Write the case of a change."""
    return case(resource(change.kind, change.after), resource(change.kind, change.before))


def mistake_case(mistake: Mistake) -> dict[str, Any]:
    """Write the case of a mistake."""
    return case(resource(mistake.kind, {**mistake.beside, mistake.field: mistake.value}))


def examples() -> Iterator[tuple[str, Manifest]]:
    """Give all manifests of our kinds in the examples, each with its file."""
    for name in names():
        for file in ("tier", "deployment", "required"):
            for manifest in load(EXAMPLES / name / f"{file}.yaml"):
                if manifest["kind"] in XRDS:
                    yield f"{name}/{file}.yaml", manifest
    for file in ("fleet", "required"):
        for manifest in load(EXAMPLES / "fleet" / f"{file}.yaml"):
            yield f"fleet/{file}.yaml", manifest


# What only the function can know.
OURS = {"tier: an unknown release"}


@cache
def wrong(kind: str) -> dict[str, Manifest]:
    """Write what the function refuses, by its own tests, as resources of a kind."""
    metadata = {"name": "x"}
    return {
        name: {"apiVersion": "modelplane.ai/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        for name, (model, spec, _) in test_api.WRONG.items()
        if MODELS[model] == kind and name not in OURS
    }


@cache
def answer(kind: str) -> dict[str, Any]:
    """Ask the xrd tool about a kind's XRD, with every case of this file."""
    cases = [
        *(rule_case(rule, changes) for rule in RULES if rule.kind == kind for changes in (rule.good, rule.bad)),
        *(change_case(change) for change in CHANGES if change.kind == kind),
        *(mistake_case(mistake) for mistake in MISTAKES if mistake.kind == kind),
        *(case(manifest) for _, manifest in examples() if manifest["kind"] == kind),
        *(case(manifest) for manifest in wrong(kind).values()),
    ]
    return crossplane.check_xrd(XRDS[kind].resolve(), cases)


def outcome(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Find the answer to a case."""
    found: dict[str, Any] = next(c for c in answer(asked["new"]["kind"])["cases"] if c["name"] == asked["name"])
    return found


@cache
def schema(kind: str) -> dict[str, Any]:
    """Read the schema of a kind's only version."""
    (version,) = yaml.safe_load(XRDS[kind].read_text())["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def fields(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Walk a schema; gives every part of it with its path."""
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from fields(inner, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            yield from fields(node[key], (*path, "*"))


@cache
def rules(kind: str) -> dict[str, str]:
    """Give a kind's CEL rules: the message of each, and the field it is about."""
    return {
        rule["message"]: ".".join(path) + rule.get("fieldPath", "")
        for path, node in fields(schema(kind))
        for rule in node.get("x-kubernetes-validations", ())
    }


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("kind", XRDS)
class TestTheAPIServer:
    def test_takes_the_definition_and_the_cost_of_its_rules(self, kind: str) -> None:
        assert answer(kind)["crdErrors"] == []

    def test_is_given_everything_that_the_definition_says(self, kind: str) -> None:
        assert answer(kind)["dropped"] == []


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize(
    ("file", "manifest"), list(examples()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_examples_are_accepted_and_nothing_of_them_is_lost(file: str, manifest: Manifest) -> None:
    found = outcome(case(manifest))
    assert (file, found["errors"], found["pruned"]) == (file, [], [])


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}: {rule.message}")
def test_rule(rule: Rule) -> None:
    assert outcome(rule_case(rule, rule.good))["errors"] == []
    (error,) = outcome(rule_case(rule, rule.bad))["errors"]
    assert re.sub(r"\[\d+\]", ".*", error).startswith(f"{rules(rule.kind)[rule.message].lstrip('.')}: Invalid value: ")
    assert error.endswith(f": {rule.message}")


@pytest.mark.parametrize("kind", XRDS)
def test_every_rule_has_a_good_and_a_bad_case(kind: str) -> None:
    assert {rule.message for rule in RULES if rule.kind == kind} == set(rules(kind))


@pytest.mark.parametrize("kind", XRDS)
def test_every_rule_has_a_message_of_its_own(kind: str) -> None:
    written = [rule for _, node in fields(schema(kind)) for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules(kind)) == len(written)


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.story)
def test_it_is_allowed_that(change: Change) -> None:
    assert outcome(change_case(change))["errors"] == []


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=lambda mistake: f"{mistake.kind}-{mistake.field}-{str(mistake.value)[:20]}"
)
def test_it_is_refused_that(mistake: Mistake) -> None:
    errors = [e for e in outcome(mistake_case(mistake))["errors"] if not e.startswith("<nil>")]
    assert errors
    # A CEL rule may have its say too.
    assert any(e.startswith(f"spec.{mistake.field}") and mistake.says in e for e in errors), errors


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((rule.kind, rule.bad) for rule in RULES if rule.before is None),
        *((m.kind, {**m.beside, m.field: m.value}) for m in MISTAKES if not m.counted),
    ],
)
def test_the_function_refuses_it_without_an_api_server(kind: str, changes: Changes) -> None:
    with pytest.raises(api.Invalid):
        read(kind, changes)


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in XRDS for name in wrong(kind)])
def test_an_api_server_refuses_what_the_function_does(kind: str, name: str) -> None:
    assert outcome(case(wrong(kind)[name]))["errors"] != []


@pytest.mark.parametrize(("kind", "changes"), [(rule.kind, rule.good) for rule in RULES if rule.before is None])
def test_the_function_accepts_what_is_good(kind: str, changes: Changes) -> None:
    read(kind, changes)


def test_every_field_of_a_tier_has_a_mistake() -> None:
    made = {".".join(("spec", mistake.field)) for mistake in MISTAKES if mistake.kind == TIER}
    leaves = {
        ".".join(path)
        for path, node in fields(schema(TIER))
        if path[:1] == ("spec",) and "*" not in path and not node.get("properties")
    }
    assert leaves - made == set()


@pytest.mark.parametrize("kind", XRDS)
def test_every_field_is_described(kind: str) -> None:
    silent = [path for path, node in fields(schema(kind)) if "*" not in path[-1:] and not node.get("description")]
    assert silent == []
