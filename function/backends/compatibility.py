"""What an engine's own flags and variables rule out, which it would find out when it starts, or never.

Each function names the flag or variable, its value and the fix, or gives None; the wheels are in docs/facts.md. What is
not in the spec (a value from a Secret, a block size that vLLM chooses) rules out nothing.
"""

from collections.abc import Sequence

from function.backends.base import Refusal
from function.engines import Engine, table, versions

INCOMPATIBLE = "EngineIncompatible"
GANG = "GangNotSupported"

# Where torch reads how it allocates GPU memory.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_SLEEP = "--enable-sleep-mode"
_CUMEM = "--enable-cumem-allocator"
_BLOCK = "--block-size"
_CONTEXT = ("--decode-context-parallel-size", "-dcp")
_HYBRID = "--disable-hybrid-kv-cache-manager"


def in_several_pods(engine: Engine, connectors: Sequence[str], why: str, instead: str) -> Refusal | None:
    """Refuse an engine whose replica has its ranks in several pods.

    Args:
        engine: The engine.
        connectors: By which it must not run.
        why: What would go wrong.
        instead: What to choose instead.
    """
    if not engine.spans:
        return None
    return Refusal(GANG, f"the ranks of one replica are in {engine.pods} pods, and {why}; {instead}", connectors)


def chunks(engine: Engine, connector: str, chunk_size: int) -> Refusal | None:
    """Refuse blocks that do not fill an agent's chunks: LMCache's multiprocess connector does not start with them."""
    block, context = engine.line.value(_BLOCK) or "", engine.line.integer(*_CONTEXT)
    if not block.isdecimal() or not int(block):
        return None
    whole = int(block) * context
    if chunk_size % whole == 0:
        return None
    scaled = f" times {_CONTEXT[0]} {context}, {whole} tokens," if context > 1 else ""
    return Refusal(
        INCOMPATIBLE,
        f"engine.args set {_BLOCK} {block},{scaled} of which the tier's lmcache.chunkSize (is {chunk_size}) is no "
        f"multiple; set one that divides {chunk_size}, or a tier's lmcache.chunkSize that is a multiple of {whole}",
        [connector],
    )


def unshareable(engine: Engine, connector: str) -> Refusal | None:
    """Refuse GPU memory that no other process can map: CUDA's IPC takes none of its virtual memory API."""
    if said := _expandable(engine):
        what, fix = f"engine.env sets {said}", "remove expandable_segments"
    elif switch := next((s for s in (_SLEEP, _CUMEM) if _on(engine, s)), ""):
        what, fix = f"engine.args set {switch}", "remove it"
    else:
        return None
    return Refusal(
        INCOMPATIBLE,
        f"{what}, with which vLLM's GPU memory cannot be shared with an agent by {connector}; {fix}",
        [connector],
    )


def remapped(engine: Engine, connector: str, *, registers: bool) -> Refusal | None:
    """Refuse GPU memory that torch may move.

    Args:
        engine: A vLLM engine.
        connector: Its connector.
        registers: Whether that registers GPU memory, which then is not where it was. Whether it does or not, vLLM
            refuses to start from 0.21.0 on; in a spelling that slips through its check the same holds.
    """
    said = _expandable(engine)
    checked = engine.version is None or table.VLLM_EXPANDABLE_REJECTED.holds(engine.version)
    if not said or _on(engine, _SLEEP) or _on(engine, _CUMEM) or not (registers or checked):
        return None
    cumem = engine.version is not None and table.VLLM_CUMEM_LIFTS.holds(engine.version)
    fix = f", or add {_CUMEM} to engine.args" if cumem else ""
    return Refusal(
        INCOMPATIBLE,
        f"engine.env sets {said}, with which torch may move GPU memory that {connector} goes by the address of; remove "
        f"expandable_segments{fix}",
        [connector],
    )


def asleep(engine: Engine, connector: str, since: table.Row | None = None) -> Refusal | None:
    """Refuse an engine that gives up its GPU memory in its sleep, with a connector that has registered it.

    Args:
        engine: A vLLM engine.
        connector: Its connector.
        since: From which vLLM on the connector registers it anew; None for never.
    """
    if not _on(engine, _SLEEP) or (since and engine.version and since.holds(engine.version)):
        return None
    newer = f"take vLLM {versions.show(since.since)} or newer, or " if since else ""
    return Refusal(
        INCOMPATIBLE,
        f"engine.args set {_SLEEP}, after which {connector} would go on with GPU memory that is no longer "
        f"the engine's; {newer}remove it",
        [connector],
    )


def hybrid(engine: Engine, connector: str, since: table.Row | None = None) -> Refusal | None:
    """Refuse the hybrid KV cache manager with a connector that cannot go with it; by itself vLLM turns it off.

    Args:
        engine: A vLLM engine.
        connector: Its connector.
        since: From which vLLM on the connector can; None for never.
    """
    version = engine.version
    off = f"--no-{_HYBRID.removeprefix('--')}"
    if version is None or not table.VLLM_HYBRID_ASKED.holds(version) or (since and since.holds(version)):
        return None
    if not engine.line.flags(off) or _on(engine, _HYBRID):
        return None
    newer = f"take vLLM {versions.show(since.since)} or newer, or " if since else ""
    return Refusal(
        INCOMPATIBLE,
        f"engine.args set {off}, with which {connector} of this vLLM does not start; {newer}remove it",
        [connector],
    )


def _on(engine: Engine, switch: str) -> bool:
    """Whether a switch is on; of several the last counts."""
    found = engine.line.flags(switch, f"--no-{switch.removeprefix('--')}")
    return bool(found) and not found[-1].name.startswith("--no-")


def _expandable(engine: Engine) -> str:
    """Show the variable that has torch allocate in expandable segments; empty where none is known to."""
    for name in _ALLOCATOR:
        for setting in (engine.env.get(name) or "").split(","):
            key, _, value = setting.partition(":")
            if key.strip() == "expandable_segments" and value.strip().lower() in ("true", "1"):
                return f"{name}={engine.env[name]}"
    return ""
