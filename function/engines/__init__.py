"""Engines: what a ModelDeployment runs, and what a backend may ask about it."""

from dataclasses import dataclass

from function.engines.identity import Identity
from function.engines.kind import Kind
from function.engines.versions import VLLM, SGLang, Version


@dataclass(frozen=True)
class Engine:
    """What a backend sees of an engine when it decides how to attach it.

    `ranks` is TP x PP x DP, the processes in one pod. `support` is the version table's row, None for a version that is
    unknown or too old. `lmcache` is the LMCache in the image, None where unknown.
    """

    kind: Kind
    image: str
    version: Version | None
    support: VLLM | SGLang | None
    identity: Identity
    ranks: int
    dra: bool
    lmcache: Version | None
    env_names: frozenset[str]
