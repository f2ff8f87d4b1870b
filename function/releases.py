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


_RELEASES = (
    # 0.5.6 is the first LMCache whose isolated clients recover from an agent's restart (LMCache #5168).
    Release(name="2026.11", lmcache_image="lmcache/standalone:v0.5.6", lmcache_version="0.5.6"),
)

RELEASES: Mapping[str, Release] = {r.name: r for r in _RELEASES}
NEWEST = _RELEASES[-1]
