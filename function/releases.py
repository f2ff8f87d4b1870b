"""Releases: sets of default images and settings, named by month.

A tier keeps the release it was first composed with (`status.release`), so that a new version of this function changes
nothing by itself. A release that was ever shipped is never edited: add the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One set of defaults."""

    name: str
    lmcache_image: str
    lmcache_version: str
    mooncake_image: str
    etcd_image: str
    valkey_image: str
    exporter_image: str
    shell_image: str
    infinistore_image: str
    vineyard_image: str
    watcher_image: str


_RELEASES = (
    # 0.5.6 is the first LMCache whose isolated clients recover from an agent's restart (LMCache #5168).
    Release(
        name="2026.11",
        lmcache_image="lmcache/standalone:v0.5.6",
        lmcache_version="0.5.6",
        mooncake_image="kvcacheai/mooncake:0.3.13.post1",
        etcd_image="gcr.io/etcd-development/etcd:v3.6.16",
        valkey_image="valkey/valkey:9.1.4",
        exporter_image="oliver006/redis_exporter:v1.88.0",
        shell_image="busybox:1.37.0",
        infinistore_image="aibrix-cn-beijing.cr.volces.com/aibrix/infinistore:v0.2.42-20250506",
        vineyard_image="aibrix/vineyardd:20241120",
        watcher_image="aibrix-cn-beijing.cr.volces.com/aibrix/kvcache-watcher:v0.3.0",
    ),
)

RELEASES: Mapping[str, Release] = {r.name: r for r in _RELEASES}
NEWEST = _RELEASES[-1]
