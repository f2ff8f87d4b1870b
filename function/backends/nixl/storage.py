"""What engines that offload are told: vLLM's tiers behind host memory, and SGLang's store of NIXL."""

from collections.abc import Mapping

from function import kube, placement, sizing, workloads
from function.backends import compatibility, hierarchy, libraries
from function.backends.base import EnginePatch, Notice, Refusal, Site, Tier, given, gpus_per_node, suffices, too_old
from function.backends.nixl import objects
from function.engines import Engine, table, versions
from function.engines import vllm as vllm_line
from function.stores import files

CONNECTOR = "OffloadingConnector"
_OR_MOONCAKE = ", or a tier of backend Mooncake"


def budget(tier: Tier, site: Site) -> Mapping[str, int]:
    """Say what a node gives, for people to read; raises Invalid as rank_bytes does."""
    rank_bytes(tier, site)
    return {"cacheGiB": _node_gib(tier), "gpusPerNode": _gpus(tier, site)}


def rank_bytes(tier: Tier, site: Site) -> int:
    """Share a node's memory among its GPUs: bytes for each rank.

    Raises:
        Invalid: nobody knows how many GPUs a node has, or a rank would get less than 1 GiB.
    """
    node, gpus = _node_gib(tier), _gpus(tier, site)
    suffices("nixl.storage.cpuTierGiBPerNode", node, gpus)
    return node * sizing.GIB // gpus


def vllm(tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
    """Attach a vLLM engine that holds KV in its pod's /dev/shm, and in files or a bucket behind that."""
    spec = given(given(tier.spec.nixl).storage)
    if spec.fs:
        row, what = table.VLLM_TIER_FS, "offload to files behind host memory"
    else:
        row, what = table.VLLM_TIER_OBJ, "offload to objects with credentials from its environment"
    if refusal := too_old(engine, row, what) or _mixed_up(engine):
        return refusal
    # Its files are Python's alone.
    if spec.obj and (refusal := missing(engine)):
        return refusal
    if refusal := _one_pod(engine) or compatibility.remapped(engine, CONNECTOR, registers=False):
        return refusal
    behind, env = _second(tier, engine)
    # Each data-parallel replica takes what it is told for itself.
    replicas = vllm_line.replicas(engine.line)
    size = rank_bytes(tier, site) * min(engine.ranks // replicas, _gpus(tier, site))
    config = {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": size,
            "secondary_tiers": [behind],
        },
    }
    return EnginePatch(
        tier=tier.ref,
        connector=CONNECTOR,
        identity=engine.keyspace,
        since=row.since,
        # Before 0.29, hashes begin with a number that each process draws, and no two engines would share.
        env=[{"name": "PYTHONHASHSEED", "value": engine.identity.seed}, *env],
        kv_transfer=config,
        mounts=files.mounts(tier) if spec.fs else (),
        volumes=files.volumes(spec.fs) if spec.fs else (),
        labels=dict(workloads.engines(tier)),
        **placement.placed(tier.spec.placement),
        notices=[] if spec.fs else [*unverified(engine), *objects.notices(tier, engine)],
        # In /dev/shm, which is the pod's memory.
        memory=size * replicas,
    )


def sglang(tier: Tier, engine: Engine) -> hierarchy.Store | Refusal:
    """Give SGLang's store: a plugin of NIXL with its parameters, which SGLang logs and so hold no credentials."""
    spec = given(tier.spec.nixl).storage
    if spec is None:
        return Refusal("StoresNothing", f"KVOffloadTier {tier.ref} has nixl.p2p, which stores nothing; name another")
    if refusal := too_old(engine, table.SGLANG_NIXL, "NIXL store that keeps its transfers apart") or missing(engine):
        return refusal
    notices = unverified(engine)
    if spec.fs:
        why = "of a model with latent attention the first one alone writes, to its node's files, where no other looks"
        instead = f"choose nixl.storage.obj{_OR_MOONCAKE}"
        if refusal := compatibility.in_several_pods(engine, [hierarchy.CONNECTOR], why, instead):
            return refusal
        return hierarchy.Store(
            backend="nixl",
            # Of NIXL's ways to read it is the one for which a file that is not whole is an error; its agent evicts.
            extra={"use_posix_aio": "true", "l3_cleaner_enabled": False},
            env=workloads.variables(
                {
                    "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN": "POSIX",
                    "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR": files.folder(engine),
                }
            ),
            mounts=files.mounts(tier),
            volumes=files.volumes(spec.fs),
            notices=notices,
        )
    assert spec.obj
    if refusal := _named_alike(engine):
        return refusal
    return hierarchy.Store(
        backend="nixl",
        extra=objects.address(spec.obj),
        env=[*workloads.variables({"SGLANG_HICACHE_NIXL_BACKEND_PLUGIN": "OBJ"}), *objects.credentials(tier)],
        notices=[*notices, *objects.notices(tier, engine)],
    )


def missing(engine: Engine) -> Refusal | None:
    """Say that an engine's image is known not to hold NIXL."""
    return libraries.missing(engine, table.NIXL, "take another image, or remove the tierRef")


def unverified(engine: Engine) -> list[Notice]:
    """Say that nobody has looked into an engine's image; nothing where somebody has."""
    if engine.bundled(table.NIXL).holds:
        return []
    return [libraries.unverified(engine, table.NIXL, "NixlUnknown", "NIXL")]


def _node_gib(tier: Tier) -> int:
    return given(given(tier.spec.nixl).storage).cpu_tier_gib_per_node


def _gpus(tier: Tier, site: Site) -> int:
    return gpus_per_node(tier, site, "nixl.storage")


def _second(tier: Tier, engine: Engine) -> tuple[kube.Manifest, list[kube.Manifest]]:
    """Write what stands behind host memory, as vLLM's second tier, and the variables that it needs."""
    spec = given(given(tier.spec.nixl).storage)
    if spec.fs:
        return {"type": "fs", "root_dir": files.folder(engine)}, []
    assert spec.obj
    prefix = objects.prefix(tier, engine)
    return {"type": "obj", "prefix": prefix, "store_config": objects.address(spec.obj)}, objects.credentials(tier)


def _one_pod(engine: Engine) -> Refusal | None:
    """Say that what stands behind host memory reads one pod's /dev/shm alone, whatever other pods' ranks hold."""
    return compatibility.in_several_pods(
        engine,
        [CONNECTOR],
        f"{CONNECTOR} stores what is in the first one's memory alone, so answers could be wrong",
        f"keep tensor and pipeline parallelism within a pod{_OR_MOONCAKE}",
    )


def _mixed_up(engine: Engine) -> Refusal | None:
    """Say why an engine would read other KV than it wrote."""
    assert engine.version
    shown = f"vLLM {versions.show(engine.version)}"
    if engine.identity.lora and not table.VLLM_LORA_HASHED.holds(engine.version):
        return Refusal(
            "LoRANotIsolated",
            f"{shown} tells adapters apart by name at most, so answers could be wrong; take "
            f"{versions.show(table.VLLM_LORA_HASHED.since)} or newer, or remove --enable-lora or the tierRef",
        )
    if vllm_line.replicas(engine.line) > 1 and not table.VLLM_TIER_REPLICAS.holds(engine.version):
        return Refusal(
            "RanksNotIsolated",
            f"{shown} lets data-parallel replicas of one pod share host memory unawares, so answers could be wrong; "
            f"take {versions.show(table.VLLM_TIER_REPLICAS.since)} or newer, or replicas instead of data parallelism",
        )
    return None


def _named_alike(engine: Engine) -> Refusal | None:
    """Say why an engine's objects could be taken for another's: SGLang names them by tokens, model and rank alone."""
    model = engine.line.value(*engine.kind.model)
    served = engine.line.value("--served-model-name")
    if engine.identity.vouched and served in (None, model):
        return None
    return Refusal(
        "IdentityNotShared",
        "SGLang names objects by the model string alone, without its version; set kvCache.identity if in this bucket "
        "the string means this one thing for engines of one version, without --served-model-name, or choose a tier "
        "with nixl.storage.fs",
    )
