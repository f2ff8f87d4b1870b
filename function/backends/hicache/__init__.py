"""HiCache: SGLang's own hierarchical cache in each engine's host memory, and what stands behind all of them.

An engine takes everything as arguments and variables, so nothing of HiCache's own runs on the cluster. The rules and
their sources are in docs/hicache.md and docs/facts.md.
"""

from collections.abc import Mapping
from typing import Protocol

from function import sizing, workloads
from function.api.tier import L3, FileL3
from function.backends import hierarchy
from function.backends.aibrix import AIBrix
from function.backends.base import (
    Backend,
    Credential,
    EnginePatch,
    Invalid,
    Plan,
    Refusal,
    Site,
    Tier,
    given,
    gpus_per_node,
    too_old,
    unsupported,
)
from function.backends.mooncake import Mooncake
from function.backends.nixl import Nixl
from function.engines import Engine, table

FILES_DIR = "/var/lib/kv-offload"


class Storing(Backend, Protocol):
    """A backend that may stand behind host memory."""

    def store(self, tier: Tier, site: Site, engine: Engine) -> hierarchy.Store | Refusal:
        """Give what a tier of this backend stores in, or say why an engine cannot use it."""
        ...


STORING: Mapping[str, Storing] = {"Mooncake": Mooncake(), "Nixl": Nixl(), "AIBrix": AIBrix()}


class HiCache:
    """The HiCache strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the Secrets of the backend that this tier runs behind host memory."""
        inner = _inner(tier)
        return inner.secrets(tier) if inner else {}

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan what stands behind host memory, where this tier runs it; else there is nothing to run."""
        spec, inner = given(tier.spec.hicache), _inner(tier)
        plan = inner.plan(tier, site, credentials) if inner else Plan([])
        memory = dict(plan.memory)
        if spec.host_memory_gib_per_node:
            rank, gpus = _rank_gb(tier, site)
            memory |= {"hostMemoryGiB": spec.host_memory_gib_per_node, "gpusPerNode": gpus, "perRankGB": rank}
        return Plan(plan.parts, plan.held, memory, plan.notices)

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach an SGLang engine with its share of host memory, and what stands behind that."""
        if refusal := unsupported(engine, ("SGLang",), "choose a tier of backend LMCache, Mooncake or Nixl"):
            return refusal
        spec = given(tier.spec.hicache)
        if spec.host_memory_gib_per_node:
            memory = hierarchy.Memory(size=_rank_gb(tier, site)[0])
        else:
            memory = hierarchy.Memory(ratio=spec.ratio)
        store = _store(spec.l3, tier, site, engine) if spec.l3 else None
        if isinstance(store, Refusal):
            return store
        return hierarchy.attach(tier, engine, memory, spec.write_policy, store, owner=site.l3)


def _inner(tier: Tier) -> Storing | None:
    """Give the backend that this tier runs behind host memory; None where another one does, or nothing does."""
    l3 = given(tier.spec.hicache).l3
    return STORING.get(l3.backend or "") if l3 else None


def _rank_gb(tier: Tier, site: Site) -> tuple[int, int]:
    """Share a node's memory among its GPUs: what each rank's --hicache-size is, and the GPUs."""
    gpus = gpus_per_node(tier, site, "hicache.hostMemoryGiBPerNode")
    node = given(given(tier.spec.hicache).host_memory_gib_per_node)
    rank = node * sizing.GIB // gpus // sizing.UNITS["--hicache-size"]
    if not rank:
        raise Invalid(
            f"spec.hicache.hostMemoryGiBPerNode (is {node}) is less than 1 GB for each of {gpus} GPUs; "
            f"set at least {gpus}"
        )
    return rank, gpus


def _store(l3: L3, tier: Tier, site: Site, engine: Engine) -> hierarchy.Store | Refusal:
    if l3.file:
        return _files(l3.file, tier, engine)
    if l3.backend:
        return STORING[l3.backend].store(tier, site, engine)
    # Whoever attaches resolves the reference first, and says why where it cannot be used.
    behind = given(site.l3)
    return STORING[behind.spec.backend].store(behind, site, engine)


def _files(files: FileL3, tier: Tier, engine: Engine) -> hierarchy.Store | Refusal:
    """Give engines a folder of a claim that they share, one for each keyspace: files are named after tokens and rank.

    The kubelet makes it; of SGLang's ranks each may be the first to look for it.
    """
    if refusal := too_old(engine, table.SGLANG_FILE_BOUND, "bound for what it writes to files, and would fill them"):
        return refusal
    return hierarchy.Store(
        backend="file",
        env=workloads.variables(
            {
                "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": FILES_DIR,
                "SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE": str(sizing.quantity(files.size_per_rank)),
            }
        ),
        mounts=[{"name": "kv-files", "mountPath": FILES_DIR, "subPath": f"{tier.instance}/{engine.keyspace}"}],
        volumes=[{"name": "kv-files", "persistentVolumeClaim": {"claimName": files.claim_name}}],
    )
