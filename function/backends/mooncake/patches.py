"""What goes into an engine: a pure client of the pool, which gives no memory of its own to it."""

from dataclasses import replace

from function import kube, placement, preflight, rdma, workloads
from function.backends import compatibility, hierarchy, libraries
from function.backends.base import EnginePatch, Notice, Part, Refusal, Tier, too_old
from function.backends.mooncake import cluster
from function.engines import Engine, identity, table, versions

CONNECTOR = "MooncakeStoreConnector"
CONFIG_KEY = "mooncake.json"
# For what is not written straight from and to GPU memory, per rank; vLLM would take 4 GiB.
_LOCAL_BUFFER_BYTES = 128 * 1024**2
# What SGLang takes for that by itself (mooncake_store.py).
_SGLANG_BUFFER_BYTES = 16 * 1024**2


def config_map(tier: Tier) -> Part:
    """Plan the ConfigMap that engines mount: vLLM's file, and what every engine waits for."""
    settings = {
        # The engine's memory is not part of the pool: its restart would take keys away.
        "mode": "standalone-store",
        "global_segment_size": 0,
        "local_buffer_size": _LOCAL_BUFFER_BYTES,
        "metadata_server": cluster.metadata_server(tier),
        "master_server_address": cluster.master_address(tier),
        "protocol": cluster.protocol(tier),
        "device_name": cluster.devices(tier),
    }
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": tier.metadata(),
        "data": {CONFIG_KEY: kube.compact(settings) + "\n"},
    }
    return Part("connector", manifest)


def vllm(tier: Tier, engine: Engine) -> EnginePatch | Refusal:
    """Attach a vLLM engine by its own connector."""
    if refusal := too_old(engine, table.VLLM_MOONCAKE, "Mooncake client without memory of its own"):
        return refusal
    if refusal := _unfit(tier, engine):
        return refusal
    if refusal := compatibility.remapped(engine, CONNECTOR, registers=True) or compatibility.asleep(engine, CONNECTOR):
        return refusal
    assert engine.version
    if engine.identity.lora and not table.VLLM_LORA_HASHED.holds(engine.version):
        return Refusal(
            "LoRANotIsolated",
            f"vLLM before {versions.show(table.VLLM_LORA_HASHED.since)} tells adapters apart by name at most, so "
            "answers could be wrong; take a newer one, or remove --enable-lora or the tierRef",
        )
    prefixed = table.VLLM_CACHE_PREFIX.holds(engine.version)
    config = {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_both",
        # Loads are asynchronous, so a block that was lost can be computed; the default would abort its requests.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "load_async": True,
            **({"cache_prefix": engine.keyspace} if prefixed else {}),
        },
    }
    nics, (trust, mounts, volumes) = rdma.for_engine(tier), cluster.trust(tier)
    rank_env = [e for e in cluster.environment(tier) if e["name"] in ("MC_STORE_CLUSTER_ID", "MC_GID_INDEX")]
    return EnginePatch(
        tier=tier.ref,
        connector=CONNECTOR,
        identity=engine.keyspace,
        since=(table.VLLM_CACHE_PREFIX if prefixed else table.VLLM_MOONCAKE).since,
        library=table.MOONCAKE,
        release=_release(tier) or (),
        env=[
            {"name": "MOONCAKE_CONFIG_PATH", "value": f"{workloads.CONFIG_DIR}/{CONFIG_KEY}"},
            # Seeds the first hash of every prefix chain: without it no engine finds another one's keys, and before the
            # prefix it alone keeps keyspaces apart.
            {"name": "PYTHONHASHSEED", "value": identity.seed(engine.keyspace)},
            *rank_env,
            *trust,
        ],
        kv_transfer=config,
        resources=nics.resources,
        devices=nics.devices,
        align=nics.align,
        capabilities=nics.capabilities,
        host_network=nics.host_network,
        mounts=[workloads.CONNECTOR_MOUNT, *mounts],
        volumes=[workloads.connector_volume(tier), *volumes],
        labels=workloads.engines(tier),
        annotations=workloads.connector_hash(config_map(tier).manifest["data"]),
        **placement.placed(tier.spec.placement),
        init_containers=[preflight.container(tier.ref, [cluster.master_service(tier)])],
        notices=_notices(tier, engine),
        memory=engine.ranks * _LOCAL_BUFFER_BYTES,
    )


def store(tier: Tier, engine: Engine) -> hierarchy.Store | Refusal:
    """Give the pool as what stands behind an SGLang engine's host memory."""
    if refusal := _unfit(tier, engine):
        return refusal
    nics, (_, mounts, volumes) = rdma.for_engine(tier), cluster.trust(tier)
    return hierarchy.Store(
        backend="mooncake",
        library=table.MOONCAKE,
        release=_release(tier) or (),
        # Keys hold no more than the model's name, and in older versions not even that. Addresses stay in the
        # environment: with one of them in here, SGLang reads none from there.
        extra={"extra_backend_tag": engine.keyspace},
        env=[
            *cluster.environment(tier),
            # A pure client.
            {"name": "MOONCAKE_GLOBAL_SEGMENT_SIZE", "value": "0"},
        ],
        mounts=[workloads.CONNECTOR_MOUNT, *mounts],
        volumes=[workloads.connector_volume(tier), *volumes],
        resources=nics.resources,
        devices=nics.devices,
        align=nics.align,
        capabilities=nics.capabilities,
        host_network=nics.host_network,
        annotations=workloads.connector_hash(config_map(tier).manifest["data"]),
        init_containers=[preflight.container(tier.ref, [cluster.master_service(tier)])],
        notices=_notices(tier, engine),
        rank_bytes=_SGLANG_BUFFER_BYTES,
    )


def _unfit(tier: Tier, engine: Engine) -> Refusal | None:
    """Say that an engine's image is known not to hold Mooncake, or not of the master's release."""
    missing = libraries.missing(engine, table.MOONCAKE, "take another image, or a tier of another backend")
    return missing or libraries.skew(engine, cluster.image(tier), table.MOONCAKE_CLIENT_HTTP, "spec.images.mooncake")


def _release(tier: Tier) -> versions.Version | None:
    return versions.agent(cluster.image(tier), table.MOONCAKE).version


def _notices(tier: Tier, engine: Engine) -> list[Notice]:
    release = _release(tier)
    if release and engine.bundled(table.MOONCAKE).version == release:
        return []
    needed = f"Mooncake {versions.show(release)}, as its master is" if release else "the Mooncake of its master"
    notice = libraries.unverified(engine, table.MOONCAKE, "MooncakeUnknown", needed)
    fix = "look at mooncake's version in it, and where it is another one, set spec.images.mooncake of the tier to that"
    return [replace(notice, message=f"{notice.message}; {fix}")]
