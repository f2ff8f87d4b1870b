"""AIBrix's own connector in an engine: what each rank holds itself, its L1, and the store behind it, L2."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from function import kube, sizing, workloads
from function.api.tier import Offloading
from function.backends.aibrix import connector, l2, memory, vineyard
from function.backends.aibrix.metadata import PREFIX
from function.backends.base import EnginePatch, Refusal, Site, Tier, given
from function.engines import Engine

_ENABLED = f"{PREFIX}L1_CACHE_ENABLED"
_CAPACITY = f"{PREFIX}L1_CACHE_CAPACITY_GB"
_BLOCK = "aibrix.offloading"
# What AIBrix takes for each rank without L1 is L2's.
NO_L1 = {_ENABLED: "0"}


def budget(tier: Tier, site: Site) -> Mapping[str, int]:
    """Say what a node gives, for people to read; nothing where each engine's own memory decides. Raises Invalid."""
    aibrix = given(tier.spec.aibrix)
    spec, block = aibrix.vineyard or aibrix.offloading, vineyard.BLOCK if aibrix.vineyard else _BLOCK
    node = spec.cpu_tier_gib_per_node if spec else None
    if not node:
        return {}
    return {"cacheGiB": node, "gpusPerNode": memory.gpus(tier, site, node, f"{block}.cpuTierGiBPerNode")}


def attach(tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
    """Attach a vLLM engine by AIBrix's connector; raises Invalid where a node's share is too small."""
    found = connector.of(engine)
    if isinstance(found, Refusal):
        return found
    if refusal := connector.unfit(engine, found):
        return refusal
    spec, store = given(tier.spec.aibrix).offloading, l2.store(tier, engine)
    if isinstance(store, Refusal):
        return store
    size = memory.per_rank(tier, site, engine, spec, block=_BLOCK, connector=found.name) if spec else 0
    if isinstance(size, Refusal):
        return size
    patch = connector.patch(tier, engine, found)
    if store:
        # Engines of one keyspace share it.
        patch = replace(store.reached(patch), identity=engine.keyspace, guards=l2.guards(tier))
    behind: Sequence[kube.Manifest] = store.env if store else ()
    return replace(
        patch,
        env=[*workloads.variables({**connector.variables(found), **(_l1(spec, size) if spec else NO_L1)}), *behind],
        memory=engine.ranks * size * sizing.GIB,
        engine_memory=spec.engine_gib_per_rank * sizing.GIB if spec else 0,
    )


def _l1(spec: Offloading, size: int) -> dict[str, str]:
    return {
        _ENABLED: "1",
        _CAPACITY: str(sizing.amount(_CAPACITY, size * sizing.GIB)),
        f"{PREFIX}L1_CACHE_EVICTION_POLICY": spec.eviction_policy,
    }
