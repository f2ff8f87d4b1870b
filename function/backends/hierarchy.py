"""SGLang's hierarchical cache: how an engine keeps KV in host memory, and what stands behind that.

Options whose defaults have moved between versions are explicit; docs/facts.md names the wheels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from function import kube, placement, sizing, workloads
from function.backends.base import EnginePatch, Notice, Refusal, Tier
from function.engines import Engine, sglang, table, versions

CONNECTOR = "HiCache"

_WRITE_POLICIES = {
    "WriteThrough": "write_through",
    "WriteThroughSelective": "write_through_selective",
    "WriteBack": "write_back",
}
# What the newer versions do by themselves: a lookup may take a second, and then KV is computed.
_PREFETCH = "timeout"


@dataclass(frozen=True)
class Store:
    """What stands behind an engine's host memory, and what its pod needs to reach it.

    `backend` is SGLang's name of it. `extra` is its storage-backend-extra-config. `rank_bytes` is what its client takes
    of each rank's host memory. The rest is as in EnginePatch.
    """

    backend: str
    library: str | None = None
    release: Sequence[int] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    env: Sequence[kube.Manifest] = ()
    mounts: Sequence[kube.Manifest] = ()
    volumes: Sequence[kube.Manifest] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[kube.Manifest] = ()
    align: bool = False
    capabilities: Sequence[str] = ()
    host_network: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    init_containers: Sequence[kube.Manifest] = ()
    notices: Sequence[Notice] = ()
    rank_bytes: int = 0

    def reached(self, patch: EnginePatch) -> EnginePatch:
        """Give a patch with what the engine's pod needs beside it to reach the store, but for its variables."""
        return replace(
            patch,
            mounts=self.mounts,
            volumes=self.volumes,
            resources=self.resources,
            devices=self.devices,
            align=self.align,
            capabilities=self.capabilities,
            host_network=self.host_network,
            annotations={**patch.annotations, **self.annotations},
            init_containers=self.init_containers,
            notices=(*patch.notices, *self.notices),
        )

    def args(self) -> list[str]:
        """Write it as SGLang's arguments."""
        extra = [f"--hicache-storage-backend-extra-config={kube.compact(dict(self.extra))}"] if self.extra else []
        return [
            f"--hicache-storage-backend={self.backend}",
            f"--hicache-storage-prefetch-policy={_PREFETCH}",
            *extra,
        ]


@dataclass(frozen=True)
class Memory:
    """An engine's host memory: `size` in whole decimal GB for each rank, or `ratio` times its cache in GPU memory."""

    size: int | None = None
    ratio: float | None = None

    def args(self) -> list[str]:
        """Write it as SGLang's arguments."""
        return [f"--hicache-size={self.size}"] if self.size is not None else [f"--hicache-ratio={self.ratio}"]

    def bytes(self, ranks: int, beside: int) -> int:
        """What all ranks hold, with so many bytes beside it in each; 0 for a ratio, of what nobody knows here."""
        return 0 if self.size is None else ranks * (self.size * sizing.UNITS["--hicache-size"] + beside)


@dataclass(frozen=True)
class _Keyed:
    """By which rows a store's keys tell pipeline stages, and slices of context parallelism; None for never."""

    stages: table.Row | None
    slices: table.Row | None


_KEYED: Mapping[str, _Keyed] = {
    "mooncake": _Keyed(stages=table.SGLANG_POOL_STAGES, slices=table.SGLANG_POOL_SLICES),
    "nixl": _Keyed(stages=None, slices=None),
    # It works with MLA models not at all, which arguments do not tell.
    "aibrix": _Keyed(stages=table.SGLANG_AIBRIX, slices=None),
    "file": _Keyed(stages=table.SGLANG_FILE_STAGES, slices=table.SGLANG_FILE_SLICES),
}


def attach(
    tier: Tier, engine: Engine, memory: Memory, write_policy: str, store: Store | None, *, owner: Tier | None = None
) -> EnginePatch | Refusal:
    """Attach an SGLang engine.

    Args:
        tier: The tier that the engine names.
        engine: An SGLang engine of a version that is in the table.
        memory: Its host memory.
        write_policy: The tier's `hicache.writePolicy`.
        store: What stands behind; None for host memory alone.
        owner: The tier that runs the store, where it is another one.

    Returns:
        The patch, or why it cannot be: without the radix cache there is nothing to offload.
    """
    if engine.line.flags("--disable-radix-cache"):
        return Refusal(
            "RadixCacheDisabled",
            "engine.args set --disable-radix-cache, without which SGLang has nothing to offload; remove it, or the "
            "tierRef",
        )
    if engine.line.value("--disaggregation-mode") == "decode":
        return Refusal(
            "DecodeNotAttached",
            "a decode engine (--disaggregation-mode decode) gets its KV from prefill engines, where SGLang's cache "
            "belongs; name the tier in their ModelDeployment, and remove it from this one",
        )
    if store and (refusal := _mixed_up(engine, store)):
        return refusal
    io, layout = _memory_layout(engine)
    behind = store or Store("")
    patch = EnginePatch(
        tier=tier.ref,
        connector=CONNECTOR,
        # Nobody shares an engine's own memory.
        identity=engine.keyspace if store else engine.identity.digest,
        since=engine.kind.attached.since,
        library=behind.library,
        release=behind.release,
        env=behind.env,
        args=[
            "--enable-hierarchical-cache",
            *memory.args(),
            f"--hicache-write-policy={_WRITE_POLICIES[write_policy]}",
            f"--hicache-io-backend={io}",
            f"--hicache-mem-layout={layout}",
            *(store.args() if store else ()),
        ],
        # NetworkPolicies of the tier that runs the store let this one in.
        labels=workloads.engines(owner or tier),
        **placement.placed((owner or tier).spec.placement),
        memory=memory.bytes(engine.ranks, behind.rank_bytes),
    )
    return behind.reached(patch)


def _memory_layout(engine: Engine) -> tuple[str, str]:
    """Tell what moves pages, and how they lie in host memory.

    Before 0.5.14, FlashAttention 3 could not decode beside the kernel: SGLang would take another one for decoding, or
    go over to direct by itself.
    """
    assert engine.version
    if not table.SGLANG_FA3_KERNEL.holds(engine.version) and sglang.decodes_by_fa3(engine.line):
        return "direct", "page_first_direct"
    return "kernel", "page_first"


def _mixed_up(engine: Engine, store: Store) -> Refusal | None:
    """Say why an engine would read other KV than it wrote; None where keys tell everything apart."""
    version = engine.version
    assert version
    shown = f"SGLang {versions.show(version)}"
    if engine.identity.lora and not table.SGLANG_LORA_KEYED.holds(version):
        return Refusal(
            "LoRANotIsolated",
            f"{shown} keys a LoRA adapter's pages as its base model's in what stands behind host memory, so answers "
            f"could be wrong; take {versions.show(table.SGLANG_LORA_KEYED.since)} or newer, remove the adapters, or "
            "name a HiCache tier without l3",
        )
    keyed = _KEYED[store.backend]
    splits = (
        (sglang.pipeline(engine.line) > 1, keyed.stages, "pipeline stages", "use tensor parallelism alone"),
        (sglang.sliced(engine.line), keyed.slices, "slices of context parallelism", "remove it"),
    )
    for used, row, what, fix in splits:
        if used and not (row and row.holds(version)):
            newer = f"take {versions.show(row.since)} or newer, or " if row else ""
            return Refusal(
                "RanksNotIsolated",
                f"{shown} keys all {what} alike in {store.backend}, so answers could be wrong; {newer}{fix}",
            )
    return None
