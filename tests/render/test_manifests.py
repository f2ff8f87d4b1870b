"""What lands on an inference cluster is sound: a tier and its engine together, for every example and many changes."""

import base64
from typing import NamedTuple

import pytest

from function import kube
from function.kube import Manifest
from function.render import EXAMPLES, Rendered, load, render
from tests import aibrix
from tests.examples import names
from tests.lint.manifests import Context, lint
from tests.lint.model import Bundle
from tests.lint.objects import secrets_stay_in_secrets
from tests.lint.schemas import schema_errors
from tests.render.changes import GONE, NOTHING, Changes, changed

DISK = "spec.lmcache.diskTier"
REDIS = "spec.lmcache.remote.redis"
ENGINE = "spec.engine"
# The examples' engines name this Secret of the user's.
USERS = frozenset({"Secret/hf-token"})
# Keys of Secrets that hold no secret.
PUBLIC = frozenset({"username", "user", "drawn", "users.acl", "ca.crt"})
NEW, OLD = "lmcache-current", "lmcache"
CLASS = {DISK: {"storageClassName": "nvme", "sizePerNode": "1Ti"}}
LONGEST = "shared.tier" + 52 * "x"  # 63 characters, the most that Crossplane takes
MODEL_BY_PATH = ["--model=/mnt/models", "--tensor-parallel-size=2"]


class Variant(NamedTuple):
    """A story: an example whose tier and deployment are changed, by dotted path, and what the user has on the cluster.

    `connector` is the one that the engine is attached by; empty for an engine that is not attached. `password` replaces
    the example's.
    """

    story: str
    example: str
    connector: str
    tier: Changes = NOTHING
    deployment: Changes = NOTHING
    external: frozenset[str] = frozenset()
    password: bytes = b""


AGENT, IN_PROCESS, UNATTACHED = "LMCacheMPConnector", "LMCacheConnectorV1", ""
MOONCAKE = "MooncakeStoreConnector"
AIBRIX = "AIBrixOffloadingConnectorV1Type3"
TCP: Changes = {"spec.mooncake.protocol": "TCP", "spec.rdma": GONE}
FOLDER = {"hostPath": {"path": "/mnt/nvme/kv"}, "sizePerNode": "1Ti"}
ETCD = "spec.mooncake.etcd"
CONNECTORS = {
    "lmcache": IN_PROCESS,
    "lmcache-current": AGENT,
    "lmcache-inprocess": IN_PROCESS,
    "lmcache-valkey": AGENT,
    "mooncake": MOONCAKE,
    "mooncake-ha": MOONCAKE,
    "sglang-mooncake": "HiCache",
    "hicache-mooncake": "HiCache",
    "nixl-storage": "OffloadingConnector",
    "nixl-p2p": "NixlConnector",
    "aibrix-offloading": AIBRIX,
    "aibrix-distributed": AIBRIX,
}

STORAGE, P2P = "nixl-storage", "nixl-p2p"
BUCKET = "spec.nixl.storage.obj"
FILES: Changes = {BUCKET: GONE, "spec.nixl.storage.fs": FOLDER}
SGLANG: Changes = {
    f"{ENGINE}.name": "SGLang",
    f"{ENGINE}.image": "lmsysorg/sglang:v0.5.23",
    f"{ENGINE}.args": ["--model-path=Qwen/Qwen3-32B", "--tp-size=2"],
}
BY_CLAIM: Changes = {"spec.rdma.extendedResource": GONE, "spec.rdma.dra": {"deviceClassName": "nics"}}
WITHOUT: Changes = {f"{ENGINE}.kvCache.role": GONE, f"{ENGINE}.kvCache.onUnavailable": "ServeWithout"}

DISTRIBUTED, OFFLOADING = "aibrix-distributed", "aibrix-offloading"
AIBRIX_OWN = "AIBrixOffloadingConnector"
SERVERS, L2 = "spec.aibrix.distributed.infinistore", "spec.aibrix.offloading.l2"
ENGINES_NICS: Manifest = {"extendedResource": {"name": "rdma/nics"}, "agents": {"count": 0}, "engines": {"count": 1}}
VINEYARD: Changes = {"spec.aibrix.distributed": {"vineyard": {"memoryGiBPerReplica": 64}}, "spec.rdma": GONE}
ON_VINEYARD: Changes = {f"{ENGINE}.image": "aibrix/vllm-openai:v0.6.1-edb07092-20250118"}
NEWER: Changes = {f"{ENGINE}.image": "team/vllm-aibrix:v0.18.1"}
PRISKV: Manifest = {"address": "10.0.0.1"}
BEHIND_HICACHE: Changes = {
    "spec.backend": "HiCache",
    "spec.hicache": {"hostMemoryGiBPerNode": 640, "l3": {"backend": "AIBrix"}},
    "spec.placement.gpusPerNode": 8,
}
# Of a KVCache that is not the tier's.
WATCHER = {"kvcache.orchestration.aibrix.ai/role": "kvwatcher"}

VARIANTS = [
    *(Variant(f"example {name}", name, CONNECTORS[name]) for name in names()),
    Variant("memory is shared through the node's folder", NEW, AGENT, {"spec.lmcache.ipc": "Shared"}),
    Variant("agents see GPUs by CDI", NEW, AGENT, {"spec.placement.gpuAccess.type": "CDI"}),
    Variant("the default runtime is NVIDIA's", NEW, AGENT, {"spec.placement.gpuAccess.runtimeClassName": ""}),
    Variant("the disk is of a storage class", NEW, AGENT, CLASS),
    Variant("the disk is a folder", OLD, IN_PROCESS, {DISK: {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1T"}}),
    Variant("there is no disk", NEW, AGENT, {DISK: GONE}),
    Variant("there is no Redis", NEW, AGENT, {"spec.lmcache.remote": GONE}),
    Variant("there is memory alone", OLD, IN_PROCESS, {DISK: GONE, "spec.lmcache.remote": GONE}),
    Variant("Redis asks for no password", NEW, AGENT, {f"{REDIS}.secretRef": GONE}),
    Variant("Redis asks an old engine for no password", OLD, IN_PROCESS, {f"{REDIS}.secretRef": GONE}),
    Variant("agents are replaced by hand", NEW, AGENT, {"spec.updateStrategy.type": "OnDelete"}),
    Variant("agents are replaced by the tenth", NEW, AGENT, {"spec.updateStrategy.maxUnavailable": "10%"}),
    Variant(
        "the Secret is on the cluster",
        NEW,
        AGENT,
        {f"{REDIS}.secretRef.onCluster": True},
        external=frozenset({"Secret/valkey-auth"}),
    ),
    Variant(
        "the Secret is on the cluster, with a URL for old engines",
        OLD,
        IN_PROCESS,
        {f"{REDIS}.secretRef": {"name": "on-cluster", "onCluster": True, "urlKey": "url"}},
        external=frozenset({"Secret/on-cluster"}),
    ),
    Variant(
        "the Secret is on the cluster, and an old engine cannot use it",
        OLD,
        IN_PROCESS,
        {f"{REDIS}.secretRef": {"name": "on-cluster", "onCluster": True}},
        external=frozenset({"Secret/on-cluster"}),
    ),
    Variant(
        "a model by path is vouched for",
        NEW,
        AGENT,
        {"spec.lmcache.mode": "Multiprocess"},
        {f"{ENGINE}.args": MODEL_BY_PATH, f"{ENGINE}.kvCache.identity": "qwen3-32b@main"},
    ),
    Variant(
        "a model by path is not vouched for",
        NEW,
        UNATTACHED,
        {"spec.lmcache.mode": "Multiprocess"},
        {f"{ENGINE}.args": MODEL_BY_PATH, f"{ENGINE}.kvCache.onUnavailable": "ServeWithout"},
    ),
    Variant("a model by path goes in process", NEW, IN_PROCESS, {}, {f"{ENGINE}.args": MODEL_BY_PATH}),
    Variant(
        "engines hold everything, in a new version",
        NEW,
        IN_PROCESS,
        {"spec.lmcache.mode": "InProcess", "spec.placement.gpusPerNode": 8, **CLASS},
    ),
    Variant(
        "engines hold everything, beside a Redis Cluster",
        "lmcache-inprocess",
        IN_PROCESS,
        {f"{REDIS}.mode": "Cluster", f"{REDIS}.tls": False},
        {f"{ENGINE}.version": "0.20.2"},
        password=b"no-such-sign/in:it",
    ),
    Variant(
        "engines hold everything, and may not use the Redis Cluster",
        "lmcache-inprocess",
        IN_PROCESS,
        {f"{REDIS}.mode": "Cluster", f"{REDIS}.tls": False},
        password=b"no-such-sign/in:it",
    ),
    Variant(
        "GPUs are claimed",
        NEW,
        AGENT,
        {"spec.lmcache.mode": "Multiprocess"},
        {
            f"{ENGINE}.resources": {
                "requests": {"cpu": 8},
                "claims": [{"name": "gpus", "resourceClaimTemplateName": "two-h100"}],
            }
        },
        external=frozenset({"ResourceClaimTemplate/two-h100"}),
    ),
    Variant("the namespace is another", NEW, AGENT, {"spec.targetNamespace": "serving"}),
    Variant(
        "agents tolerate what they are told",
        NEW,
        AGENT,
        {"spec.placement.tolerations": [{"key": "gpu", "operator": "Equal", "value": "h100", "effect": "NoSchedule"}]},
    ),
    Variant(
        "the user sets what a tier would set",
        OLD,
        IN_PROCESS,
        {},
        {f"{ENGINE}.env": [{"name": "PYTHONHASHSEED", "value": "0"}, {"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]},
    ),
    Variant(
        "the user wires by hand",
        NEW,
        UNATTACHED,
        {},
        {f"{ENGINE}.args": ["--model=Qwen/Qwen3-32B", '--kv-transfer-config={"kv_connector":"NixlConnector"}']},
    ),
    *(
        Variant(f"Mooncake: {story}", example, MOONCAKE, tier, engine)
        for story, example, tier, engine in (
            ("huge pages of a gigabyte", "mooncake", {"spec.mooncake.hugePages": "1Gi"}, {}),
            ("no huge pages", "mooncake", {"spec.mooncake.hugePages": GONE}, {}),
            ("TCP", "mooncake", TCP, {}),
            ("TCP, all of the disk's folder", "mooncake", {**TCP, "spec.mooncake.disk": FOLDER}, {}),
            ("metadata by HTTP", "mooncake", {"spec.mooncake.metadata": "HTTP"}, {}),
            ("the host's network", "mooncake", {"spec.rdma.hostNetwork": {"firstPort": 21850}}, {}),
            (
                "devices by name",
                "mooncake",
                {"spec.rdma.netDevices": ["mlx5_0", "mlx5_1"], "spec.rdma.gidIndex": 3},
                {},
            ),
            ("monitoring", "mooncake", {"spec.monitoring": {}}, {}),
            ("an etcd without volumes", "mooncake-ha", {ETCD: {"provision": {"replicas": 1, "ephemeral": True}}}, {}),
            ("an etcd that is there", "mooncake-ha", {ETCD: {"endpoints": ["http://etcd.kv.svc:2379"]}}, {}),
            ("three masters over TCP", "mooncake-ha", TCP, {}),
            ("an older vLLM", "mooncake", {}, {f"{ENGINE}.image": "team/vllm:v0.22.1"}),
        )
    ),
    Variant(
        "Mooncake: an etcd that is there, by TLS",
        "mooncake-ha",
        MOONCAKE,
        {ETCD: {"endpoints": ["https://etcd.kv.svc:2379"], "caSecretRef": {"name": "etcd-ca", "onCluster": True}}},
        external=frozenset({"Secret/etcd-ca"}),
    ),
    Variant(
        "Mooncake: a vLLM that is too old",
        "mooncake",
        UNATTACHED,
        {},
        {f"{ENGINE}.image": "vllm/vllm-openai:v0.21.0", f"{ENGINE}.kvCache.onUnavailable": "ServeWithout"},
    ),
    Variant(
        "Mooncake: an image whose Mooncake is not its master's",
        "mooncake",
        UNATTACHED,
        {},
        {f"{ENGINE}.image": "vllm/vllm-openai:v0.27.1", f"{ENGINE}.kvCache.onUnavailable": "ServeWithout"},
    ),
    Variant(
        "Mooncake: SGLang over RDMA",
        "mooncake",
        "HiCache",
        {},
        {
            f"{ENGINE}.name": "SGLang",
            f"{ENGINE}.image": "team/sglang:v0.5.5",
            f"{ENGINE}.args": ["--model-path=Qwen/Qwen3-32B", "--tp-size=2"],
        },
    ),
    *(
        Variant(f"Nixl: {story}", example, connector, tier, engine)
        for story, example, connector, tier, engine in (
            ("files", STORAGE, "OffloadingConnector", FILES, {}),
            ("files behind SGLang", STORAGE, "HiCache", FILES, SGLANG),
            ("objects behind SGLang", STORAGE, "HiCache", {}, {**SGLANG, f"{ENGINE}.kvCache.identity": "qwen3"}),
            ("not Amazon's", STORAGE, "OffloadingConnector", {f"{BUCKET}.endpoint": "http://s3:80"}, {}),
            ("the NICs by claim", P2P, "NixlConnector", BY_CLAIM, {}),
            ("no NICs", P2P, "NixlConnector", {"spec.rdma": GONE}, {}),
            ("a port for each rank", P2P, "NixlConnector", {}, {f"{ENGINE}.args": ["--model=a/b", "-dp=3"]}),
            ("the host's network", P2P, "NixlConnector", {"spec.rdma.hostNetwork": {"firstPort": 9300}}, {}),
            ("no role", P2P, UNATTACHED, {}, WITHOUT),
        )
    ),
    *(
        Variant(f"AIBrix: {story}", example, connector, tier, engine)
        for story, example, connector, tier, engine in (
            ("servers by claim", DISTRIBUTED, AIBRIX, BY_CLAIM, {}),
            ("engines by TCP", DISTRIBUTED, AIBRIX, {f"{SERVERS}.protocol": "TCP", "spec.rdma.engines.count": 0}, {}),
            ("a Redis that is there", DISTRIBUTED, AIBRIX, {f"{SERVERS}.metadata.redis": {"host": "redis.kv"}}, {}),
            ("monitoring", DISTRIBUTED, AIBRIX, {"spec.monitoring": {}}, {}),
            ("Vineyard", DISTRIBUTED, "Vineyard", VINEYARD, ON_VINEYARD),
            ("Vineyard with monitoring", DISTRIBUTED, "Vineyard", {**VINEYARD, "spec.monitoring": {}}, ON_VINEYARD),
            ("files", OFFLOADING, AIBRIX_OWN, {L2: {"shfs": FOLDER}}, NEWER),
            ("a database", OFFLOADING, AIBRIX, {L2: {"rocksdb": {"sizePerPod": "1Ti"}}}, {}),
            ("one server", OFFLOADING, AIBRIX, {L2: {"infinistore": {"address": "10.0.0.1", "protocol": "TCP"}}}, {}),
            ("servers of others", OFFLOADING, AIBRIX, {L2: {"infinistore": {"metadata": {}, "protocol": "TCP"}}}, {}),
            ("HPKV", OFFLOADING, AIBRIX, {L2: {"hpkv": {"metadata": {}}}, "spec.rdma": ENGINES_NICS}, {}),
            ("PrisKV", OFFLOADING, AIBRIX_OWN, {L2: {"priskv": PRISKV}, "spec.rdma": ENGINES_NICS}, NEWER),
            ("SGLang", DISTRIBUTED, "HiCache", BEHIND_HICACHE, {**SGLANG, f"{ENGINE}.image": "team/sglang:v0.5.23"}),
        )
    ),
    Variant(
        "names are as long as they may be, and have dots",
        NEW,
        AGENT,
        {"metadata.name": LONGEST},
        {f"{ENGINE}.kvCache.tierRef.name": LONGEST, "metadata.name": f"0{LONGEST[1:]}"},
    ),
]


class Landed(NamedTuple):
    """What a variant comes to: the renders of tier and deployment, and what they may not show."""

    variant: Variant
    tier: Rendered
    deployment: Rendered
    secrets: tuple[bytes, ...]

    @property
    def on_cluster(self) -> list[Manifest]:
        """What comes to be on the inference cluster, with what AIBrix's controller makes of it."""
        put = [*self.tier.manifests, *self.deployment.manifests]
        return [*put, *(m for cache in put if cache["kind"] == "KVCache" for m in aibrix.made(cache))]

    @property
    def context(self) -> Context:
        """What the manifests alone do not tell: where this engine is not attached, others are."""
        instances = {m["metadata"]["labels"]["app.kubernetes.io/instance"] for m in self.tier.manifests}
        others = tuple({kube.LABEL_TIER: instance} for instance in instances)
        return Context(
            external=USERS | self.variant.external,
            external_pods=(WATCHER, *(() if self.variant.connector else others)),
            secrets=self.secrets,
        )


def land(variant: Variant) -> Landed:
    """Render a variant."""
    folder = EXAMPLES / variant.example
    tier = changed(load(folder / "tier.yaml")[0], variant.tier)
    deployment = changed(load(folder / "deployment.yaml")[0], variant.deployment)
    required = load(folder / "required.yaml")
    for secret in (r for r in required if variant.password and r["kind"] == "Secret"):
        other = base64.b64encode(variant.password).decode()
        secret["data"] = {key: value if key in PUBLIC else other for key, value in secret["data"].items()}
    rendered = render(tier, (), required)
    holders = [*required, *rendered.manifests]
    shown = {v for m in holders if m["kind"] == "Secret" for k, v in m["data"].items() if k not in PUBLIC}
    secrets = tuple(sorted(base64.b64decode(value) for value in shown))
    return Landed(variant, rendered, render(deployment, (), [*required, tier]), secrets)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.story)
def landed(request: pytest.FixtureRequest) -> Landed:
    """Every variant, rendered once for all tests of this file."""
    return land(request.param)


def test_the_story_is_what_is_rendered(landed: Landed) -> None:
    for rendered in (landed.tier, landed.deployment):
        assert rendered.condition("Accepted")["status"] == "True"
        # AIBrix's offloading is the engines' alone.
        assert rendered.manifests or "aibrix" in rendered.composite["spec"]
    attached = landed.deployment.composite["status"].get("kvCache", {}).get("connector", "")
    assert attached == landed.variant.connector


def test_kubernetes_accepts_every_manifest(landed: Landed) -> None:
    assert [error for manifest in landed.on_cluster for error in schema_errors(manifest)] == []


def test_tier_and_engine_are_sound_together(landed: Landed) -> None:
    # What AIBrix's controller writes without asking the tier is as it is; docs/aibrix.md says how.
    theirs = tuple(f"Deployment/{m['metadata']['name']}" for m in landed.on_cluster if m["kind"] == "KVCache")
    assert [
        found for found in lint(landed.on_cluster, landed.context) if not (theirs and found.startswith(theirs))
    ] == []


def test_a_usage_is_by_what_carries_the_engine(landed: Landed) -> None:
    composed = landed.deployment.composed.values()
    usages = [m["spec"] for m in composed if m["kind"] == "Usage"]
    assert len(usages) == bool(landed.variant.connector)
    engines = [
        m for m in composed if m["kind"] == "Object" and m["spec"]["forProvider"]["manifest"]["kind"] == "Deployment"
    ]
    for spec in usages:
        assert [(spec["by"]["kind"], spec["by"]["resourceRef"]["name"])] == [
            (m["kind"], m["metadata"]["name"]) for m in engines
        ]
        tier = landed.tier.composite["metadata"]
        assert spec["of"]["resourceRef"] == {"name": tier["name"], "namespace": tier["namespace"]}


def test_what_carries_them_is_sound_and_shows_no_secret(landed: Landed) -> None:
    for rendered in (landed.tier, landed.deployment):
        assert lint(list(rendered.composed.values()), landed.context) == []
        # What else Crossplane publishes: status, conditions, events.
        published = Bundle(({**rendered.composite, "events": rendered.results},), landed.context)
        assert list(secrets_stay_in_secrets(published)) == []
