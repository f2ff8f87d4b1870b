"""What goes into an engine: the patch of each connector."""

from dataclasses import replace

from function import kube, placement, preflight, sizing, workloads
from function.backends import compatibility, libraries
from function.backends.base import EnginePatch, Notice, Refusal, Site, Tier, given
from function.backends.lmcache import agents, connector, redis, volumes
from function.engines import Engine, table, versions


def multiprocess(tier: Tier, engine: Engine) -> EnginePatch:
    """Attach an engine to its node's agent."""
    shared = given(tier.spec.lmcache).ipc == "Shared"
    config = connector.multiprocess_config(tier)
    return EnginePatch(
        tier=tier.ref,
        connector=connector.MULTIPROCESS,
        identity=engine.identity.digest,
        since=table.VLLM_MULTIPROCESS.since,
        library=table.LMCACHE,
        library_since=table.LMCACHE_MULTIPROCESS.since,
        release=versions.agent(agents.image(tier), table.LMCACHE).version or (),
        env=[{"name": "LMCACHE_TRACK_USAGE", "value": "false"}],
        kv_transfer=config,
        mounts=[workloads.CONNECTOR_MOUNT, *([volumes.SHM_MOUNT] if shared else [])],
        volumes=[workloads.connector_volume(tier), *([volumes.SHM_VOLUME] if shared else [])],
        labels={kube.LABEL_TIER: tier.instance},
        # An engine learns its agent's chunk size at start.
        annotations=workloads.connector_hash([config, given(tier.spec.lmcache).chunk_size]),
        **placement.placed(tier.spec.placement),
        init_containers=[preflight.container(tier.ref, [f"{tier.host()}:{connector.SERVER_PORT}"])],
        notices=_image_notices(engine, table.LMCACHE_MULTIPROCESS.since),
    )


def not_in_process(engine: Engine) -> Refusal | None:
    """Say why an engine cannot hold KV in its own process."""
    # It copies by address, and registers no GPU memory.
    return compatibility.remapped(engine, connector.IN_PROCESS, registers=False) or compatibility.hybrid(
        engine, connector.IN_PROCESS
    )


def in_process(tier: Tier, site: Site, engine: Engine, *, whole_tier: bool) -> EnginePatch:
    """Attach an engine that holds KV in its own process; `whole_tier` adds its share of the node's disk."""
    spec = given(tier.spec.lmcache)
    assert engine.version
    beside = versions.oldest_lmcache(engine.version)
    oldest = engine.lmcache or beside.oldest
    settings = connector.yaml(tier, site)
    env, notices = redis.remote_env(tier, engine, oldest)
    disks, mounts = [workloads.connector_volume(tier)], [workloads.CONNECTOR_MOUNT]
    if whole_tier and spec.disk_tier:
        _, gpus = connector.rank_gib(tier, site)
        share = sizing.quantity(spec.disk_tier.size_per_node) * min(engine.ranks, gpus) / gpus
        disks.append(workloads.ephemeral_disk(spec.disk_tier.storage_class_name, sizing.share_quantity(share)))
        mounts.append({"name": "disk", "mountPath": volumes.DISK_DIR})
    asks = table.LMCACHE_EXPERIMENTAL.holds(oldest)
    experimental = [{"name": "LMCACHE_USE_EXPERIMENTAL", "value": "True"}] if asks else []
    return EnginePatch(
        tier=tier.ref,
        connector=connector.IN_PROCESS,
        identity=engine.identity.digest,
        since=beside.since,
        library=table.LMCACHE,
        library_since=min(oldest, table.LMCACHE_RESP.since),
        guards=redis.LEAKS if any(e["name"] == "LMCACHE_LOG_LEVEL" for e in env) else (),
        env=[
            {"name": "LMCACHE_CONFIG_FILE", "value": f"{workloads.CONFIG_DIR}/{connector.YAML_KEY}"},
            *experimental,
            # Not only politeness: from 0.4.5 on, usage reports hold the Redis URL, password and all.
            {"name": "LMCACHE_TRACK_USAGE", "value": "false"},
            {"name": "PYTHONHASHSEED", "value": engine.identity.seed},
            *env,
        ],
        # No kv_load_failure_policy: its loads are synchronous, where recompute was reported to go wrong (vLLM #49250).
        kv_transfer={"kv_connector": connector.IN_PROCESS, "kv_role": "kv_both"},
        mounts=mounts,
        volumes=disks,
        labels={kube.LABEL_TIER: tier.instance},
        **placement.placed(tier.spec.placement),
        # A ConfigMap or a Secret that changes restarts nothing; another setting or Redis has to.
        annotations=workloads.connector_hash([settings, *redis.restarts(tier)]),
        notices=[*_image_notices(engine, oldest), *notices],
        # Pinned by every rank at start.
        memory=engine.ranks * connector.held_gib(tier, site) * sizing.GIB,
    )


def _image_notices(engine: Engine, needed: versions.Version) -> list[Notice]:
    if engine.bundled(table.LMCACHE).fits(needed):
        return []
    notice = libraries.unverified(engine, table.LMCACHE, "LMCacheUnknown", f"LMCache {versions.show(needed)} or newer")
    return [replace(notice, message=f"{notice.message}. lmcache/vllm-openai images hold the LMCache of their tag")]
