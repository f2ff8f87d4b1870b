"""L1: what each rank of an engine holds in its own memory, by a share of its node's or by what its pod has."""

from collections.abc import Mapping
from dataclasses import replace

from function import sizing, workloads
from function.api.tier import Offloading
from function.backends.aibrix import connector
from function.backends.base import EnginePatch, Refusal, Site, Tier, given, gpus_per_node, suffices
from function.engines import Engine

_PREFIX = "AIBRIX_KV_CACHE_OL_"
_CAPACITY = f"{_PREFIX}L1_CACHE_CAPACITY_GB"
_NODE = "aibrix.offloading.cpuTierGiBPerNode"
_BESIDE = "aibrix.offloading.engineGiBPerRank"


def budget(tier: Tier, site: Site) -> Mapping[str, int]:
    """Say what a node gives, for people to read; nothing where each engine's own memory decides. Raises Invalid."""
    node = _spec(tier).cpu_tier_gib_per_node
    if not node:
        return {}
    return {"cacheGiB": node, "gpusPerNode": _gpus(tier, site, node)}


def attach(tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
    """Attach a vLLM engine that holds KV in its own memory; raises Invalid where a node's share is too small."""
    found = connector.of(engine)
    if isinstance(found, Refusal):
        return found
    if refusal := connector.unfit(engine, found):
        return refusal
    size = _l1(tier, site, engine, found.name)
    if isinstance(size, Refusal):
        return size
    variables = {
        # AIBrix's images ask for it; a newer vLLM has no other.
        **({} if found.module else {"VLLM_USE_V1": "1"}),
        f"{_PREFIX}L1_CACHE_ENABLED": "1",
        _CAPACITY: str(sizing.amount(_CAPACITY, size * sizing.GIB)),
        f"{_PREFIX}L1_CACHE_EVICTION_POLICY": _spec(tier).eviction_policy,
    }
    return replace(
        connector.patch(tier, engine, found),
        env=workloads.variables(variables),
        memory=engine.ranks * size * sizing.GIB,
        engine_memory=_spec(tier).engine_gib_per_rank * sizing.GIB,
    )


def _l1(tier: Tier, site: Site, engine: Engine, name: str) -> int | Refusal:
    """Tell how many whole GiB each rank holds, as AIBrix takes them from the system, or why it cannot."""
    spec, ranks = _spec(tier), engine.ranks
    beside, pod = spec.engine_gib_per_rank, engine.memory / sizing.GIB
    if spec.cpu_tier_gib_per_node:
        size = spec.cpu_tier_gib_per_node // _gpus(tier, site, spec.cpu_tier_gib_per_node)
    elif not engine.memory:
        return Refusal(
            "EngineMemoryUnknown",
            "the engine's container says nothing of memory, of which each rank would hold what is left beside "
            f"{beside} GiB; set engine.resources.limits.memory and requests.memory, or {_NODE} of the tier",
        )
    else:
        # The least that makes sense, so that what is refused says what would do.
        size = max(1, int(sizing.rank_memory(pod, ranks, beside)))
    wanted = sizing.pod_memory(size, ranks, beside)
    if engine.memory and wanted > pod:
        return Refusal(
            "EngineMemoryShort",
            f"the engine's container asks for {round(pod, 1):g} GiB of memory, and {ranks} rank(s) of {size} GiB of KV "
            f"and {beside} GiB beside that ({_BESIDE}) need {wanted:g} GiB; set its memory to that or more"
            + (f", or {_NODE} of the tier to less" if spec.cpu_tier_gib_per_node else ""),
            # With what it held before, it would be killed.
            [name],
        )
    return size


def _gpus(tier: Tier, site: Site, node: int) -> int:
    """Tell among how many GPUs a node's GiB are shared. Raises Invalid where nobody knows, or one gets less than 1."""
    gpus = gpus_per_node(tier, site, _NODE)
    suffices(_NODE, node, gpus)
    return gpus


def _spec(tier: Tier) -> Offloading:
    return given(tier.spec.aibrix).offloading
