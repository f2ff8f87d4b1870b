"""Vineyard's servers, run by AIBrix's controller beside the engines of their nodes, and the etcd between them.

Legacy: the one vLLM that speaks to it is AIBrix's 0.6.1. Variables and flags are those of seeds and samples
(samples/kvcache/vineyard, pkg/controller/kvcache/backends/vineyard.go of v0.7.0).
"""

from function import kube, placement, preflight, sizing, workloads
from function.api.tier import Vineyard
from function.backends import compatibility
from function.backends.aibrix import kvcache, memory
from function.backends.base import EnginePatch, Notice, Part, Refusal, Site, Tier, given
from function.engines import Engine, table, versions
from function.stores import etcd

COMPONENT = "vineyard"
CONNECTOR = "Vineyard"
LEGACY = "LegacyBackend"
BLOCK = "aibrix.distributed.vineyard"

_RPC_PORT = 9600
_SOCKET_DIR = "/var/run"
_AFFINITY = "kvcache.orchestration.aibrix.ai/pod-affinity-workload"
_APART = "kvcache.orchestration.aibrix.ai/pod-anti-affinity"
_MODEL = "model.aibrix.ai/name"
_CAPACITY = "VINEYARD_CACHE_CPU_MEM_LIMIT_GB"
# Beside what lies in its shared memory.
_OVERHEAD_GIB = 2


def parts(tier: Tier) -> list[Part]:
    """Plan the KVCache, the etcd that its servers share, and who may reach what."""
    spec, servers = _spec(tier), kvcache.servers(tier)
    amounts = {"memory": _memory(spec)}
    cache = {
        "image": tier.spec.images.vineyard or tier.release.vineyard_image,
        "resources": {"requests": {"cpu": "2", **amounts}, "limits": amounts},
    }
    # The annotation's presence is what counts; without it two servers of one node would share a socket.
    annotations = {_AFFINITY: tier.instance, _APART: "true"}
    return [
        workloads.service_account(tier),
        *etcd.parts(tier, spec.etcd, [servers]),
        _etcd_service(tier),
        kvcache.part(tier, COMPONENT, spec, cache, ports={"service": _RPC_PORT}, annotations=annotations),
        kvcache.observed(tier, "Deployment", COMPONENT, _ready(amounts["memory"]), replicas=spec.replicas),
        kvcache.network_policy(
            tier, COMPONENT, servers, [workloads.from_pods([workloads.engines(tier), servers], [_RPC_PORT])]
        ),
    ]


def notices() -> list[Notice]:
    """Say what is wrong with it."""
    return [
        Notice(
            LEGACY,
            "Vineyard",
            "AIBrix keeps Vineyard for vLLM 0.6.1 alone, and its controller does not tell it how much it may hold; a "
            "new tier should have aibrix.distributed.infinistore",
        )
    ]


def attach(tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
    """Attach AIBrix's vLLM 0.6.1; raises Invalid where a node's share is too small."""
    assert engine.version
    if not table.VLLM_VINEYARD.holds(engine.version):
        first = versions.show(table.VLLM_VINEYARD.since)
        return Refusal(
            "EngineTooNew",
            f"vLLM {versions.show(engine.version)} does not speak to Vineyard, which AIBrix's image of {first} alone "
            "does; name a tier with aibrix.distributed.infinistore",
        )
    if engine.identity.lora:
        return Refusal(
            "LoRANotIsolated",
            "nothing says that Vineyard tells a LoRA adapter's KV from its base model's, so answers could be wrong; "
            "remove the adapters, or the tierRef",
            [CONNECTOR],
        )
    why = "nothing says that they agree on what Vineyard gives them, so answers could be wrong"
    instead = "keep tensor parallelism within a pod"
    if refusal := compatibility.in_several_pods(engine, [CONNECTOR], why, instead):
        return refusal
    spec = _spec(tier)
    size = memory.per_rank(tier, site, engine, spec, block=BLOCK, connector=CONNECTOR)
    if isinstance(size, Refusal):
        return size
    rpc = f"{kvcache.name(tier)}-rpc:{_RPC_PORT}"
    variables = {
        "VLLM_USE_VINEYARD_CACHE": "1",
        _CAPACITY: str(sizing.amount(_CAPACITY, size * sizing.GIB)),
        "AIBRIX_LLM_KV_CACHE": "1",
        "AIBRIX_LLM_KV_CACHE_KV_CACHE_NS": engine.keyspace,
        "AIBRIX_LLM_KV_CACHE_CHUNK_SIZE": "16",
        "AIBRIX_LLM_KV_CACHE_SOCKET": f"{_SOCKET_DIR}/vineyard.sock",
        "AIBRIX_LLM_KV_CACHE_RPC_ENDPOINT": rpc,
        "VINEYARD_CACHE_ENABLE_ASYNC_UPDATE": "1",
        "VINEYARD_CACHE_METRICS_ENABLED": "1",
    }
    folder = f"/var/run/vineyard-kubernetes/{tier.spec.target_namespace}/{kvcache.name(tier)}"
    return EnginePatch(
        tier=tier.ref,
        connector=CONNECTOR,
        identity=engine.keyspace,
        since=table.VLLM_VINEYARD.since,
        env=workloads.variables(variables),
        args=[] if engine.line.flags("--enable-prefix-caching") else ["--enable-prefix-caching"],
        mounts=[{"name": "kv-vineyard", "mountPath": _SOCKET_DIR}],
        volumes=[{"name": "kv-vineyard", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}],
        # A pod that waits is on its node already, and there its server comes.
        init_containers=[preflight.container(tier.ref, [rpc])],
        # By the second one its servers come to the engine's node.
        labels={**workloads.engines(tier), _MODEL: tier.instance},
        **placement.placed(tier.spec.placement),
        memory=engine.ranks * size * sizing.GIB,
        engine_memory=spec.engine_gib_per_rank * sizing.GIB,
    )


def _spec(tier: Tier) -> Vineyard:
    return given(given(tier.spec.aibrix).vineyard)


def _memory(spec: Vineyard) -> str:
    """Write a server's memory as the API server writes it back, which the controller's types make whole Ti of."""
    size = spec.memory_gib_per_replica + _OVERHEAD_GIB
    return f"{size}Gi" if size % 1024 else f"{size // 1024}Ti"


def _ready(memory: str) -> str:
    """Write when the servers are there: they follow engines, and engines the tier, so none has to be ready.

    Another memory is nothing that the controller would apply.
    """
    limits = f"has(c.resources.limits) && c.resources.limits['memory'] == '{memory}'"
    return f"{workloads.DEPLOYMENT_MADE} && object.spec.template.spec.containers.all(c, {limits})"


def _etcd_service(tier: Tier) -> Part:
    """Plan the Service by which its servers look for etcd; the controller would run members that know no other."""
    metadata = tier.metadata(etcd.COMPONENT)
    metadata["name"] = f"{kvcache.name(tier)}-etcd-service"
    spec = {
        "selector": tier.selector(etcd.COMPONENT),
        "ports": [{"name": "client", "port": etcd.CLIENT_PORT, "targetPort": "client"}],
    }
    manifest: kube.Manifest = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    return Part("etcd-clients-service", manifest)
