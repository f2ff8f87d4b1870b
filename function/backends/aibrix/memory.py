"""What each rank of an engine holds in its own memory, by a share of its node's or by what its pod has."""

from function import sizing
from function.api.tier import OwnMemory
from function.backends.base import Refusal, Site, Tier, gpus_per_node, suffices
from function.engines import Engine


def gpus(tier: Tier, site: Site, node: int, field: str) -> int:
    """Tell among how many GPUs a node's GiB are shared. Raises Invalid where nobody knows, or one gets less than 1."""
    found = gpus_per_node(tier, site, field)
    suffices(field, node, found)
    return found


def per_rank(tier: Tier, site: Site, engine: Engine, spec: OwnMemory, *, block: str, connector: str) -> int | Refusal:
    """Tell how many whole GiB each rank holds, as AIBrix takes them from the system, or why it cannot.

    Args:
        tier: The tier.
        site: What is known of its cluster.
        engine: The engine.
        spec: What the tier says of memory.
        block: Where it says that.
        connector: What must not hold it where it does not fit.

    Raises:
        Invalid: a node's share is too small, or nobody knows of how many.
    """
    ranks, beside, pod = engine.ranks, spec.engine_gib_per_rank, engine.memory / sizing.GIB
    by_node = f"{block}.cpuTierGiBPerNode"
    if spec.cpu_tier_gib_per_node:
        size = spec.cpu_tier_gib_per_node // gpus(tier, site, spec.cpu_tier_gib_per_node, by_node)
    elif not engine.memory:
        return Refusal(
            "EngineMemoryUnknown",
            "the engine's container says nothing of memory, of which each rank would hold what is left beside "
            f"{beside} GiB; set engine.resources.limits.memory and requests.memory, or {by_node} of the tier",
        )
    else:
        # The least that makes sense, so that what is refused says what would do.
        size = max(1, int(sizing.rank_memory(pod, ranks, beside)))
    wanted = sizing.pod_memory(size, ranks, beside)
    if engine.memory and wanted > pod:
        return Refusal(
            "EngineMemoryShort",
            f"the engine's container asks for {round(pod, 1):g} GiB of memory, and {ranks} rank(s) of {size} GiB of KV "
            f"and {beside} GiB beside that ({block}.engineGiBPerRank) need {wanted:g} GiB; set its memory to that or "
            "more" + (f", or {by_node} of the tier to less" if spec.cpu_tier_gib_per_node else ""),
            # With what it held before, it would be killed.
            [connector],
        )
    return size
