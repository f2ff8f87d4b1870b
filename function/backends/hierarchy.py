"""SGLang's hierarchical cache: how an engine keeps KV in host memory, and what stands behind that.

Options whose defaults have moved between versions are explicit; docs/facts.md names the wheels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from function import kube, placement
from function.backends.base import EnginePatch, Notice, Refusal, Tier
from function.engines import Engine

CONNECTOR = "HiCache"

_WRITE_POLICIES = {
    "WriteThrough": "write_through",
    "WriteThroughSelective": "write_through_selective",
    "WriteBack": "write_back",
}


@dataclass(frozen=True)
class Store:
    """What stands behind an engine's host memory, and what its pod needs to reach it.

    `backend` is SGLang's name of it. `extra` is its storage-backend-extra-config. The rest is as in EnginePatch.
    """

    backend: str
    extra: Mapping[str, object] = field(default_factory=dict)
    env: Sequence[kube.Manifest] = ()
    mounts: Sequence[kube.Manifest] = ()
    volumes: Sequence[kube.Manifest] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[kube.Manifest] = ()
    capabilities: Sequence[str] = ()
    host_network: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    notices: Sequence[Notice] = ()


@dataclass(frozen=True)
class Memory:
    """An engine's host memory: `size` in whole decimal GB for each rank, or `ratio` times its cache in GPU memory."""

    size: int | None = None
    ratio: float | None = None

    def args(self) -> list[str]:
        """Write it as SGLang's arguments."""
        return [f"--hicache-size={self.size}"] if self.size is not None else [f"--hicache-ratio={self.ratio}"]


def attach(tier: Tier, engine: Engine, memory: Memory, write_policy: str, store: Store | None) -> EnginePatch | Refusal:
    """Attach an SGLang engine.

    Args:
        tier: The tier that the engine names.
        engine: An SGLang engine of a version that is in the table.
        memory: Its host memory.
        write_policy: The tier's `hicache.writePolicy`.
        store: What stands behind; None for host memory alone.

    Returns:
        The patch, or why it cannot be: without the radix cache there is nothing to offload.
    """
    raise NotImplementedError
