"""What engines are told: the in-process connector's YAML, and the multiprocess connector's JSON."""

from function import kube, sizing
from function.api.tier import Mode
from function.backends.base import CONNECTOR, Invalid, Part, Site, Tier, given, gpus_per_node, suffices
from function.backends.lmcache import volumes

SERVER_PORT = 5555
HEARTBEAT_SECONDS = 10
# For what an agent that is there leaves unanswered: registering at start, and looking up. Engines start once it is.
_QUEUE_SECONDS = 60
YAML_KEY = "lmcache.yaml"
MULTIPROCESS = "LMCacheMPConnector"
IN_PROCESS = "LMCacheConnectorV1"


def config_map(tier: Tier, site: Site) -> Part:
    """Plan the ConfigMap that every engine of the tier mounts."""
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": tier.metadata(),
        "data": {YAML_KEY: yaml(tier, site)},
    }
    return Part(CONNECTOR, manifest)


def yaml(tier: Tier, site: Site) -> str:
    """Write the in-process connector's settings: an engine's whole share, or what it stages beside agents.

    Every mode has them, since an engine that was attached in process keeps its attachment when the mode changes.

    Raises:
        Invalid: mode InProcess on a site whose GPUs per node are unknown, or with less than 1 GiB a rank.
    """
    spec = given(tier.spec.lmcache)
    settings: dict[str, object] = {
        "chunk_size": spec.chunk_size,
        "local_cpu": True,
        # Seeded by PYTHONHASHSEED, which keeps cache identities apart; the others fail or ignore it in old versions.
        "pre_caching_hash_algorithm": "builtin",
        "remote_serde": "naive",
        "save_unfull_chunk": False,
        # How long an engine waits for its own ranks' answer, and for Redis'; then it computes.
        "lookup_timeout_ms": 3000,
        "blocking_timeout_secs": 10,
    }
    if spec.mode is Mode.IN_PROCESS:
        _, gpus = rank_gib(tier, site)
        if spec.disk_tier:
            # Half: a container that starts again finds the files of the one before, and counts none of them.
            disk = sizing.disk_capacity(sizing.quantity(spec.disk_tier.size_per_node)) / gpus / 2
            if disk < sizing.GIB:
                raise Invalid(
                    f"spec.lmcache.diskTier.sizePerNode (is {spec.disk_tier.size_per_node}) leaves less than 1 GiB for "
                    f"each of {gpus} GPUs; set at least {3 * gpus}Gi"
                )
            settings |= {
                "local_disk": f"file://{volumes.DISK_DIR}/",
                "max_local_disk_size": float(sizing.amount("max_local_disk_size", disk)),
            }
    settings["max_local_cpu_size"] = float(sizing.amount("max_local_cpu_size", held_gib(tier, site) * sizing.GIB))
    # Every value is a number, a bool or a string, and JSON's form of those is YAML's.
    return "".join(f"{key}: {kube.compact(value)}\n" for key, value in sorted(settings.items()))


def held_gib(tier: Tier, site: Site) -> int:
    """What each rank holds in process, in GiB: its whole share, or what it stages beside agents."""
    in_process = given(tier.spec.lmcache).mode is Mode.IN_PROCESS
    return rank_gib(tier, site)[0] if in_process else sizing.STAGING_GIB_PER_RANK


def rank_gib(tier: Tier, site: Site) -> tuple[int, int]:
    """Share a node's memory among its GPUs: GiB per rank, and the GPUs."""
    gpus = gpus_per_node(tier, site, "lmcache.mode InProcess")
    node = given(tier.spec.lmcache).cpu_tier_gib_per_node
    suffices("lmcache.cpuTierGiBPerNode", node, gpus)
    return sizing.rank_gib(node, gpus), gpus


def multiprocess_config(tier: Tier) -> dict[str, object]:
    """Write vLLM's kv-transfer-config for the agents."""
    spec = given(tier.spec.lmcache)
    return {
        "kv_connector": MULTIPROCESS,
        "kv_role": "kv_both",
        # Without it vLLM may fall back to its own, older connector, which ignores isolated_ipc.
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_connector_extra_config": {
            "lmcache.mp.host": f"tcp://{tier.host()}",
            "lmcache.mp.port": str(SERVER_PORT),
            "lmcache.mp.isolated_ipc": spec.ipc == "Isolated",
            "lmcache.mp.heartbeat_interval": HEARTBEAT_SECONDS,
            "lmcache.mp.mq_timeout": _QUEUE_SECONDS,
        },
        # A lost cache is recomputed; the default would abort the requests that wait for it.
        "kv_load_failure_policy": "recompute",
    }
