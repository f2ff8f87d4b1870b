"""One table of who speaks what: which vLLM has which connector, and which LMCache may be beside it.

A version is a triple. A tag without a patch number means the lowest; what is not in the table is not attached.
"""

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

_NUMBER = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.?post\d+)?(?:[-+_].*)?")
_UNRELEASED = re.compile(r"(?:[-._+]|\d)(?:rc|dev|nightly|alpha|beta)\d*(?:$|[-._+])")


@dataclass(frozen=True)
class VLLM:
    """What holds from one vLLM version on, up to the next row."""

    since: Version
    multiprocess: bool  # speaks LMCacheMPConnector through kv_connector_module_path
    oldest_lmcache: (
        Version  # the oldest LMCache that works beside it: what we may rely on in an image we cannot look into
    )
    source: str


# Read in the released wheels; docs/facts.md names files and lines.
VLLM_TABLE: tuple[VLLM, ...] = (
    VLLM(
        since=(0, 11, 0),
        multiprocess=False,
        oldest_lmcache=(0, 3, 7),
        source="wheel 0.11.0: factory.py registers LMCacheConnectorV1, no LMCacheMPConnector",
    ),
    VLLM(
        since=(0, 20, 2),
        multiprocess=False,
        oldest_lmcache=(0, 4, 5),
        source="wheels 0.20.2 and 0.21.0: lmcache 0.5.6's multiprocess connector does not import (no KVCacheSpecKind)",
    ),
    VLLM(
        since=(0, 22, 0),
        multiprocess=True,
        oldest_lmcache=(0, 4, 5),
        source="wheels 0.22.0 to 0.33.0: every name that lmcache 0.5.6's connector imports is there, and so is "
        "kv_load_failure_policy",
    ),
)

# vLLM's other connectors, each from the version whose wheel first has what is meant; docs/facts.md names the files.
# 0.21.0 has MooncakeStoreConnector too, but neither mode standalone-store nor an error for a block that failed to load.
VLLM_MOONCAKE: Version = (0, 22, 0)
VLLM_CACHE_PREFIX: Version = (0, 24, 0)  # MooncakeStoreConnector keys begin with a prefix that we give
VLLM_TIER_FS: Version = (0, 22, 0)  # OffloadingConnector's TieringOffloadingSpec with a folder
VLLM_TIER_OBJ: Version = (0, 26, 0)  # with a bucket, whose credentials come from the environment; before, from the args
# Before, data-parallel replicas of a pod map one file in /dev/shm, each for itself.
VLLM_TIER_REPLICAS: Version = (0, 26, 0)
VLLM_LORA_HASHED: Version = (0, 31, 0)  # an adapter's name and path are in its blocks' hashes; before, its name at most
VLLM_HANDSHAKE: Version = (0, 13, 0)  # NixlConnector compares model, dtype and version before it reads
VLLM_LEASE: Version = (0, 22, 0)  # NixlConnector's kv_lease_duration, instead of an environment variable
VLLM_CHECKS_ALLOCATOR: Version = (0, 21, 0)  # refuses expandable segments beside any connector
VLLM_CUMEM: Version = (0, 22, 0)  # has --enable-cumem-allocator, by which it takes them; before, sleep mode alone
VLLM_NIXL_WAKES: Version = (0, 33, 0)  # NixlConnector registers KV anew after a sleep
VLLM_HYBRID_ASKED: Version = (0, 13, 0)  # keeps the hybrid KV cache manager that is asked for; before, turns it off
VLLM_NIXL_HYBRID: Version = (0, 18, 0)  # NixlConnector goes with it


@dataclass(frozen=True)
class SGLang:
    """What holds from one SGLang version on, up to the next row."""

    since: Version
    lora_keyed: bool  # pages of an adapter have other keys in L3 than its base model's
    source: str


SGLANG_TABLE: tuple[SGLang, ...] = (
    SGLang(
        since=(0, 5, 5),
        lora_keyed=False,
        source="wheel 0.5.5: hicache-storage-backend mooncake, nixl and file; extra_backend_tag in mooncake's keys; L3 "
        "page hashes ignore extra_key",
    ),
    SGLang(
        since=(0, 5, 20),
        lora_keyed=True,
        source="wheel 0.5.20: mem_cache/utils.py seeds page hashes by extra_key",
    ),
)

# SGLang's hierarchical cache, each from the version whose wheel first has what is meant.
SGLANG_FA3_KERNEL: Version = (0, 5, 14)  # FlashAttention 3 decodes beside hicache-io-backend kernel
SGLANG_FILE_BOUND: Version = (0, 5, 14)  # hicache-storage-backend file evicts, instead of filling its volume
# hicache-storage-backend nixl closes its files and gives each transfer a number of its own; before 0.5.13 it does
# neither, and from 0.5.15 to 0.5.19 two transfers may mean each other's files.
SGLANG_NIXL: Version = (0, 5, 20)
SGLANG_CGROUP: Version = (0, 5, 21)  # looks at its container's limit before it takes host memory; before, at the node's

# LMCache lines that decide how its remote is given; read in the wheels of 0.3.7, 0.3.9.post2, 0.3.11, 0.4.5 and 0.5.6.
LMCACHE_RESP: Version = (0, 4, 5)  # resp:// with credentials from env; before it, redis:// with the password in the URL
LMCACHE_CLUSTER: Version = (0, 3, 9)  # redis-cluster://; before it, the whole URL goes into a warning
LMCACHE_MULTIPROCESS: Version = (0, 5, 6)  # isolated clients recover from a restart of their agent (LMCache #5168)


def show(version: Version) -> str:
    """Write a version as 1.2.3."""
    return ".".join(str(part) for part in version)


def parse(text: str) -> Version | None:
    """Read a version or an image's tag; None where it names no release (a release candidate, latest)."""
    match = None if _UNRELEASED.search(text) else _NUMBER.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def of_engine(version: str | None, image: str, word: str) -> Version | None:
    """Tell an engine's version.

    Args:
        version: What the user says; it wins.
        image: The image; its tag counts only where the repository is one of the engine, as lmcache/vllm-openai's tags
            are LMCache's versions.
        word: What the engine's repositories have in their name: vllm or sglang.

    Returns:
        The version, its lowest patch where none is named; None where it cannot be known.
    """
    if version:
        return parse(version)
    repository, _, tag = image.partition("@")[0].rpartition(":")
    if "/" in tag or not repository:
        return None
    parts = repository.split("/")
    if word not in parts[-1] or "lmcache" in parts:
        return None
    found = parse(tag)
    # Neither engine has another major: vendors' images count their own versions.
    return found if found and found[0] == 0 else None


def vllm(version: Version) -> VLLM | None:
    """Find the row that holds for a vLLM version; None for one older than the table."""
    rows = [row for row in VLLM_TABLE if row.since <= version]
    return rows[-1] if rows else None


def sglang(version: Version) -> SGLang | None:
    """Find the row that holds for an SGLang version; None for one older than the table."""
    rows = [row for row in SGLANG_TABLE if row.since <= version]
    return rows[-1] if rows else None


def first_multiprocess() -> VLLM:
    """Give the first row that speaks to agents."""
    return next(row for row in VLLM_TABLE if row.multiprocess)


def lmcache_of_image(image: str) -> Version | None:
    """Tell the LMCache in an engine's image; None where unknown. Only LMCache's own images say it in their tag."""
    repository, _, tag = image.partition("@")[0].rpartition(":")
    return parse(tag) if "lmcache" in repository.split("/") and "/" not in tag else None
