"""The memory of an engine's pod: what a tier makes its container hold, against what the container asks for."""

import math

from function import kube, sizing
from function.backends.base import EnginePatch
from function.conditions import TRUE, Condition
from function.engines import Engine, table

_MEMORY = "memory"
_BUFFER = sizing.GIB


def requests(resources: kube.Manifest, patch: EnginePatch) -> kube.Manifest:
    """Ask for what the tier makes a container hold, where the container says nothing of memory.

    The scheduler then leaves room for it. Never a limit: nobody knows what the engine itself needs.
    """
    if not patch.memory or said({"resources": resources}):
        return {}
    return {_MEMORY: sizing.whole_quantity(patch.memory)}


def said(of: kube.Manifest) -> bool:
    """Whether a container, or a pod, says anything of its memory."""
    resources = of.get("resources") or {}
    return any(_MEMORY in (resources.get(kind) or {}) for kind in ("requests", "limits"))


def short(container: kube.Manifest, patch: EnginePatch, engine: Engine) -> Condition | None:
    """Say that a container asks for less memory than the tier makes it hold beside the engine itself.

    Args:
        container: The engine's container, as its user wrote it.
        patch: What attaches it.
        engine: The engine.

    Returns:
        A warning; None where it asks for enough, or for none, or nobody can tell.
    """
    asks, limit = sizing.asked_memory(container), sizing.memory_of(container, "limits")
    if not patch.memory or not asks:
        return None
    field, size = asks
    if size >= patch.memory and patch.memory < engine.ranks * _BUFFER:
        # No more than a client's buffers: what the engine itself needs is its user's to know.
        return None
    own = patch.engine_memory or sizing.ENGINE_GIB_PER_RANK * sizing.GIB
    wanted = sizing.pod_memory(patch.memory // engine.ranks, engine.ranks, own)
    if size >= wanted:
        return None
    tier = f"the tier makes it hold {_gib(patch.memory)}"
    asked = f"the engine's container asks for {_gib(size)} of memory (resources.{field}.memory)"
    also = f", and its limit (is {_gib(limit)})," if field == "requests" and 0 < limit < wanted else ""
    fix = f"set it{also} to {math.ceil(wanted / sizing.GIB)} GiB or more"
    if most := max(0, int(sizing.rank_memory(size, engine.ranks, own) // sizing.GIB)):
        fix += f", or let the tier take at most {most} GiB for each rank"
    if size < patch.memory:
        reason = "LessThanTheTier"
        message = (
            f"{asked}, and {tier}: that alone is {_gib(patch.memory - size)} more, and nothing is left for the engine "
            f"itself; {fix}"
        )
    else:
        reason = "LittleLeft"
        left = size - patch.memory
        message = (
            f"{asked}; {tier}, which leaves {_gib(left)} for the engine itself, {_gib(wanted - size)} less than "
            f"{_gib(own)} for each of {engine.ranks} rank(s); {fix}"
        )
    if _never_starts(engine, patch, limit):
        message += f". It does not start: SGLang leaves {sizing.HICACHE_RESERVE_GIB} GiB of its limit alone"
    return Condition(TRUE, reason, message, warn=True)


def _never_starts(engine: Engine, patch: EnginePatch, limit: int) -> bool:
    """Whether SGLang finds, before it takes host memory, that its container's limit does not hold it."""
    looks = engine.kind.name == "SGLang" and engine.version and table.SGLANG_CGROUP.holds(engine.version)
    return bool(looks and limit) and limit < patch.memory + sizing.HICACHE_RESERVE_GIB * sizing.GIB


def _gib(size: float) -> str:
    return f"{round(size / sizing.GIB, 1):g} GiB"
