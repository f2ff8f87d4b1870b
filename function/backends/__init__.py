"""Backends: one module per backend behind the Protocol in base.py. Adding one is a module and a line here."""

from collections.abc import Mapping

from function.api.tier import TierSpec
from function.backends.base import Backend
from function.backends.lmcache import LMCache

BACKENDS: Mapping[str, Backend] = {"LMCache": LMCache()}


def of(spec: TierSpec) -> Backend:
    """Find a tier's backend."""
    return BACKENDS[spec.backend]
