"""Backends: one module per backend behind the Protocol in base.py. Adding one is a module and a line here."""

from collections.abc import Mapping

from function.api.tier import TierSpec
from function.backends.aibrix import AIBrix
from function.backends.base import Backend
from function.backends.hicache import HiCache
from function.backends.lmcache import LMCache
from function.backends.mooncake import Mooncake
from function.backends.nixl import Nixl

BACKENDS: Mapping[str, Backend] = {
    "LMCache": LMCache(),
    "Mooncake": Mooncake(),
    "Nixl": Nixl(),
    "HiCache": HiCache(),
    "AIBrix": AIBrix(),
}


def of(spec: TierSpec) -> Backend:
    """Find a tier's backend."""
    return BACKENDS[spec.backend]
