"""Memory and disk: quantities, the units that each flag counts in, and what a node's budget comes to."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 1024**3

# What one unit of a flag, key or field means in bytes. One table, so that nobody has to remember.
# LMCache's and AIBrix's names say GB and mean GiB: they multiply each by 1024**3; SGLang means GB. See
# docs/facts.md.
UNITS = {
    "--l1-size-gb": GIB,
    "max_capacity_gb": GIB,
    "max_local_cpu_size": GIB,
    "max_local_disk_size": GIB,
    "--hicache-size": 1000**3,
    "AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB": GIB,
    "VINEYARD_CACHE_CPU_MEM_LIMIT_GB": GIB,
}

# Of a disk's nominal size, what LMCache may fill: file systems keep some for themselves.
DISK_SHARE = 0.9
# What an agent that deletes files of other programs leaves of it, so that it need not begin anew at once.
DISK_LEFT = 0.8
# In Auto, an engine that cannot use the agent stages KV in this much of its own memory, per rank.
STAGING_GIB_PER_RANK = 2
# The LMCache operator's rule for its server: 5 GiB beside L1, and half as much again as limit.
AGENT_OVERHEAD_GIB = 5
AGENT_LIMIT_RATIO = 1.5

# What an engine itself holds in host memory, per rank: AIBrix asks for pods of tensor-parallel-size x (L1 + 20 GiB)
# (vllm-project/aibrix #1154), and its manual calls it E, where a rank holds P / tensor-parallel-size - E.
ENGINE_GIB_PER_RANK = 20
# SGLang leaves this much of what is free alone when it takes host memory (mem_cache/pool_host/base.py).
HICACHE_RESERVE_GIB = 10

_SUFFIXES = {
    "": 1,
    **{s: 1000**i for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{s: 1024**i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")


def quantity(text: str) -> int:
    """Read a Kubernetes quantity such as 1Ti.

    Returns:
        Bytes, rounded down.

    Raises:
        ValueError: it is no positive quantity of bytes.
    """
    match = _QUANTITY.fullmatch(text)
    size = int(float(match[1]) * _SUFFIXES[match[2] or ""]) if match else 0
    if size <= 0:
        raise ValueError("not a positive quantity; write it as 500Gi or 1Ti")
    return size


def memory_of(container: Mapping[str, Any], kind: str) -> int:
    """Read a container's memory in its `requests` or `limits`: bytes, 0 for none, or none that we can read."""
    try:
        resources = container.get("resources") or {}
        return quantity(str((resources.get(kind) or {}).get("memory", "")))
    except ValueError:
        return 0


def asked_memory(container: Mapping[str, Any]) -> tuple[str, int] | None:
    """Tell what the scheduler goes by: a container's memory request, else its limit, as kind and bytes."""
    found = ((kind, memory_of(container, kind)) for kind in ("requests", "limits"))
    return next(((kind, size) for kind, size in found if size), None)


def amount(name: str, size: float) -> float | int:
    """Turn bytes into what a flag or key wants, by UNITS: a whole number, or one rounded down to 0.1."""
    # The slack keeps 921.6, which is no binary fraction, from coming out as 921.5.
    value = math.floor(size / UNITS[name] * 10 + 1e-6) / 10
    return int(value) if value.is_integer() else value


def disk_capacity(size: int) -> int:
    """How many bytes of a disk of `size` bytes LMCache may fill."""
    return int(size * DISK_SHARE)


def share_quantity(size: float) -> str:
    """Write bytes as a quantity in whole Mi, rounded down: what one engine pod asks of a node's disk."""
    return f"{int(size // 1024**2)}Mi"


def whole_quantity(size: float) -> str:
    """Write bytes as a quantity in whole Mi, rounded up: what a container asks for."""
    return f"{math.ceil(size / 1024**2)}Mi"


def pod_memory(cache: float, ranks: int, engine: float) -> float:
    """What a pod of so many ranks needs where each holds `cache`, and `engine` beside it; in any one unit."""
    return ranks * (cache + engine)


def rank_memory(pod: float, ranks: int, engine: float) -> float:
    """What each rank may hold of a pod's memory, `engine` beside it: the other way round. Below 0 it is short."""
    return pod / ranks - engine


def rank_gib(node_gib: int, gpus: int) -> int:
    """What each rank may hold of a node's cache, in GiB.

    Pinned buffers were seen to be rounded up to the next power of two (LMCache #1147), so a share is rounded down to
    one: `gpus` ranks never hold more than the node's number.

    Returns:
        GiB per rank, a power of two; 0 where the share is below 1 GiB.
    """
    share = node_gib // gpus
    return 1 << (share.bit_length() - 1) if share else 0


@dataclass(frozen=True)
class AgentMemory:
    """One agent's memory on a node, in GiB."""

    cache: int
    overhead: int
    request: int
    limit: int


def agent_memory(cache_gib: int) -> AgentMemory:
    """Budget an agent that holds `cache_gib` GiB of KV: the LMCache operator's rule."""
    request = cache_gib + AGENT_OVERHEAD_GIB
    return AgentMemory(cache_gib, AGENT_OVERHEAD_GIB, request, math.ceil(request * AGENT_LIMIT_RATIO))


# Beside its segment: Python, Mooncake's threads and transfer buffers (peers give 2 to 6 GiB).
STORE_HEADROOM_GIB = 4
# Beside that, where it writes to disk: Mooncake's staging buffer of 1.25 GiB, set as it is by default.
STORE_STAGING_BYTES = 1280 * 1024**2
STORE_STAGING_GIB = 2
# A GiB of page tables for so many GiB of ordinary pages (8 bytes for 4 KiB), twice over; they are charged to the pod.
STORE_PAGE_TABLES = 256
# Of a disk, what Mooncake is told that it has: it was seen to write a bucket more.
STORE_DISK_SHARE = 0.8
STORE_BUCKET_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class StoreMemory:
    """A store agent's memory on a node, in GiB: what its pod asks for, apart from its huge pages."""

    segment: int
    headroom: int
    memory: int
    huge_pages: int


def store_memory(segment_gib: int, *, huge_pages: bool, disk: bool) -> StoreMemory:
    """Budget a store agent that gives `segment_gib` GiB to the pool; huge pages are not charged to memory."""
    in_memory = 0 if huge_pages else segment_gib
    headroom = STORE_HEADROOM_GIB + (STORE_STAGING_GIB if disk else 0) + in_memory // STORE_PAGE_TABLES
    return StoreMemory(segment_gib, headroom, in_memory + headroom, segment_gib - in_memory)
