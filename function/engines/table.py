"""The version table: from which version of which package on what holds, and what engine images hold.

Nothing else in function/ knows a version number that decides something. Every row names its source, and every row that
a file of a released package can show has a probe. `make released` evaluates the probes on the released packages and
writes tests/unit/released.json, which a test holds this table against; docs/versions.md is written from it.
"""

from dataclasses import dataclass

# A release, without its post number: of several with one triple, what holds for all of them holds.
Version = tuple[int, int, int]

VLLM, SGLANG, LMCACHE, MOONCAKE, NIXL, AIBRIX = "vllm", "sglang", "lmcache", "mooncake", "nixl", "aibrix"


@dataclass(frozen=True)
class Package:
    """A package as it is released, and the versions that were read: rows are not known to hold outside of them."""

    name: str
    released: str
    oldest: Version
    newest: Version


PACKAGES = (
    Package(VLLM, "vllm", (0, 11, 0), (0, 33, 0)),
    Package(SGLANG, "sglang", (0, 5, 5), (0, 5, 23)),
    Package(LMCACHE, "lmcache", (0, 3, 7), (0, 5, 6)),
    Package(MOONCAKE, "mooncake-transfer-engine-non-cuda", (0, 3, 7), (0, 3, 13)),
    Package(AIBRIX, "aibrix-kvcache", (0, 5, 0), (0, 8, 0)),
)


@dataclass(frozen=True)
class Probe:
    """How a released package shows that a row holds: a regular expression that one of its files matches.

    `files` is a glob within the package. With `absent`, the row holds where no file matches.
    """

    files: str
    text: str
    absent: bool = False


@dataclass(frozen=True)
class Row:
    """What holds from one version of a package on, and before `until` if there is one.

    In place of a probe there is a word that says why no file shows it.
    """

    package: str
    since: Version
    what: str
    source: str
    probe: Probe | str
    until: Version | None = None

    def holds(self, version: Version) -> bool:
        """Whether it holds for a version."""
        return self.since <= version and (self.until is None or version < self.until)


@dataclass(frozen=True)
class Beside:
    """The oldest release of a library that works beside an engine from one version on: what we may rely on unseen."""

    engine: str
    since: Version
    library: str
    oldest: Version
    source: str


@dataclass(frozen=True)
class Together:
    """Which releases of a library agents and engines may have at once: the same, or any two from `since` to `until`."""

    library: str
    what: str
    source: str
    since: Version | None = None
    until: Version | None = None


@dataclass(frozen=True)
class Image:
    """What an engine's image holds of a library, by the version in its tag; `holds` is None where sources disagree.

    `oldest` and `newest` bound the library's version where it was read; they are one where it is known. `flavour` is a
    part that the tag has besides, such as cu129; a row without it is for all tags that no other row is for.
    """

    repository: str
    since: Version
    until: Version
    library: str
    holds: bool | None
    source: str
    oldest: Version | None = None
    newest: Version | None = None
    flavour: str = ""


# --- vLLM ---------------------------------------------------------------------------------------------------------

_FACTORY = "vllm/distributed/kv_transfer/kv_connector/factory.py"
_TRANSFER = "vllm/config/kv_transfer.py"
_CONNECTORS = "vllm/distributed/kv_transfer/kv_connector/v1"
_HASHES = "vllm/v1/core/kv_cache_utils.py"
_TIERING = "vllm/v1/kv_offload/tiering"
_ARGUMENTS = "vllm/engine/arg_utils.py"

VLLM_IN_PROCESS = Row(
    VLLM,
    since=(0, 11, 0),
    what="LMCacheConnectorV1, and with it the oldest vLLM that is attached",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"LMCacheConnectorV1"'),
)
VLLM_MODULE_PATH = Row(
    VLLM,
    since=(0, 11, 0),
    what="`kv_connector_module_path` names a connector outside vLLM",
    source="config/kv_transfer.py",
    probe=Probe(_TRANSFER, r"kv_connector_module_path"),
)
VLLM_MULTI = Row(
    VLLM,
    since=(0, 11, 0),
    what="MultiConnector",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"MultiConnector"'),
)
VLLM_NIXL = Row(
    VLLM,
    since=(0, 11, 0),
    what="NixlConnector",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"NixlConnector"'),
)
VLLM_OFFLOADING = Row(
    VLLM,
    since=(0, 11, 0),
    what="OffloadingConnector",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"OffloadingConnector"'),
)
VLLM_LMCACHE_MP = Row(
    VLLM,
    since=(0, 11, 1),
    what="LMCacheMPConnector of its own, which knows no isolated IPC",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"LMCacheMPConnector"'),
)
VLLM_MULTIPROCESS = Row(
    VLLM,
    since=(0, 22, 0),
    what="LMCache 0.5.6's own LMCacheMPConnector imports: every name that it wants of vLLM is there",
    source="v1/kv_cache_interface.py; the imports of lmcache/integration/vllm against each wheel",
    probe=Probe("vllm/v1/kv_cache_interface.py", r"^class KVCacheSpecKind\b"),
)
VLLM_FAILURE_POLICY = Row(
    VLLM,
    since=(0, 13, 0),
    what="`kv_load_failure_policy`",
    source="config/kv_transfer.py",
    probe=Probe(_TRANSFER, r"^    kv_load_failure_policy:"),
)
VLLM_FAILURE_FAILS = Row(
    VLLM,
    since=(0, 17, 0),
    what="`kv_load_failure_policy` is `fail` where nobody says; `recompute` before",
    source="config/kv_transfer.py",
    probe=Probe(_TRANSFER, r'^    kv_load_failure_policy:.*= "fail"'),
)
VLLM_KV_RANK = Row(
    VLLM,
    since=(0, 11, 0),
    until=(0, 32, 0),
    what="`kv_rank`, `kv_parallel_size`, `kv_ip` and `kv_buffer_size` in --kv-transfer-config; an error afterwards",
    source="config/kv_transfer.py",
    probe=Probe(_TRANSFER, r"^    kv_rank:"),
)
VLLM_UNKNOWN_FIELDS_FAIL = Row(
    VLLM,
    since=(0, 16, 0),
    what="an unknown field in --kv-transfer-config stops the engine",
    source="config/utils.py",
    probe=Probe("vllm/config/utils.py", r'extra="forbid"'),
)
VLLM_MOONCAKE_P2P = Row(
    VLLM,
    since=(0, 13, 0),
    what="MooncakeConnector, from prefill to decode",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"MooncakeConnector"'),
)
VLLM_MOONCAKE_STORE = Row(
    VLLM,
    since=(0, 21, 0),
    what="MooncakeStoreConnector",
    source="distributed/kv_transfer/kv_connector/factory.py",
    probe=Probe(_FACTORY, r'"MooncakeStoreConnector"'),
)
VLLM_MOONCAKE = Row(
    VLLM,
    since=(0, 22, 0),
    what="MooncakeStoreConnector's mode `standalone-store`, and errors for blocks that failed to load",
    source="kv_connector/v1/mooncake/store/worker.py; later distributed/mooncake_store.py",
    probe=Probe("vllm/distributed/**/*.py", r"standalone-store"),
)
VLLM_CACHE_PREFIX = Row(
    VLLM,
    since=(0, 24, 0),
    what="MooncakeStoreConnector's keys begin with `cache_prefix`",
    source="kv_connector/v1/mooncake/store/data.py",
    probe=Probe(f"{_CONNECTORS}/mooncake/store/data.py", r"cache_prefix"),
)
VLLM_TIER_FS = Row(
    VLLM,
    since=(0, 22, 0),
    what="OffloadingConnector's TieringOffloadingSpec, with a folder",
    source="v1/kv_offload/factory.py, v1/kv_offload/tiering",
    probe=Probe("vllm/v1/kv_offload/factory.py", r"TieringOffloadingSpec"),
)
VLLM_TIER_BUCKET = Row(
    VLLM,
    since=(0, 23, 0),
    what="TieringOffloadingSpec with a bucket, its credentials in the arguments",
    source="v1/kv_offload/tiering/obj/config.py",
    probe=Probe(f"{_TIERING}/obj/config.py", r"access_key"),
)
VLLM_TIER_OBJ = Row(
    VLLM,
    since=(0, 26, 0),
    what="TieringOffloadingSpec with a bucket, its credentials in the environment",
    source="v1/kv_offload/tiering/obj/config.py",
    probe=Probe(f"{_TIERING}/obj/config.py", r'access_key: str = field\(default=""'),
)
VLLM_TIER_REPLICAS = Row(
    VLLM,
    since=(0, 26, 0),
    what="TieringOffloadingSpec's data-parallel replicas have a file each in /dev/shm; before, all map one",
    source="v1/kv_offload/tiering/spec.py",
    probe=Probe(f"{_TIERING}/spec.py", r"engine_id=self\._engine_id"),
)
VLLM_LORA_NAMED = Row(
    VLLM,
    since=(0, 11, 1),
    what="a block's hash holds its LoRA adapter's name; before, a number that is not the same everywhere",
    source="v1/core/kv_cache_utils.py",
    probe=Probe(_HASHES, r"lora_request\.lora_name"),
)
VLLM_LORA_HASHED = Row(
    VLLM,
    since=(0, 31, 0),
    what="a block's hash holds its LoRA adapter's name and path",
    source="v1/core/kv_cache_utils.py",
    probe=Probe(_HASHES, r"lora_request\.lora_path"),
)
VLLM_NONE_HASH_FIXED = Row(
    VLLM,
    since=(0, 29, 0),
    what="a chain's first hash is the same in every process; before, random but by PYTHONHASHSEED, which still wins",
    source="v1/core/kv_cache_utils.py",
    probe=Probe(_HASHES, r"vllm-none-hash"),
)
VLLM_HANDSHAKE = Row(
    VLLM,
    since=(0, 13, 0),
    what="NixlConnector compares model, dtype and version before it reads",
    source="kv_connector/v1/nixl_connector.py; later kv_connector/v1/nixl/metadata.py",
    probe=Probe(f"{_CONNECTORS}/**/*.py", r"compute_nixl_compatibility_hash"),
)
VLLM_LEASE = Row(
    VLLM,
    since=(0, 22, 0),
    what="NixlConnector's `kv_lease_duration`, in place of VLLM_NIXL_ABORT_REQUEST_TIMEOUT",
    source="kv_connector/v1/nixl/scheduler.py; envs.py",
    probe=Probe(f"{_CONNECTORS}/nixl/*.py", r"kv_lease_duration"),
)
VLLM_EXPANDABLE_REJECTED = Row(
    VLLM,
    since=(0, 21, 0),
    what="a connector beside PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True stops the engine, but with sleep mode",
    source="config/vllm.py `_verify_kv_transfer_compat`",
    probe=Probe("vllm/config/vllm.py", r"PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
)
VLLM_CUMEM_LIFTS = Row(
    VLLM,
    since=(0, 22, 0),
    what="--enable-cumem-allocator allows a connector beside expandable_segments",
    source="config/vllm.py `_verify_kv_transfer_compat`",
    probe=Probe("vllm/config/vllm.py", r"self\.model_config\.enable_cumem_allocator"),
)
VLLM_HYBRID_ASKED = Row(
    VLLM,
    since=(0, 13, 0),
    what="the hybrid KV cache manager stays on where it is asked for, whatever the connector; before, it went off",
    source="config/vllm.py",
    probe=Probe("vllm/config/vllm.py", r"disable_hybrid_kv_cache_manager is None"),
)
VLLM_NIXL_HYBRID = Row(
    VLLM,
    since=(0, 18, 0),
    what="NixlConnector goes with the hybrid KV cache manager",
    source="kv_connector/v1/nixl_connector.py; later nixl/connector.py",
    probe=Probe(f"{_CONNECTORS}/**/*connector.py", r"class Nixl\w*Connector\(.*SupportsHMA"),
)
VLLM_NIXL_WAKES = Row(
    VLLM,
    since=(0, 33, 0),
    what="NixlConnector registers KV anew after a sleep",
    source="kv_connector/v1/nixl/connector.py",
    probe=Probe(f"{_CONNECTORS}/nixl/connector.py", r"def restore_kv_caches"),
)
VLLM_MULTI_BLOCKS = Row(
    VLLM,
    since=(0, 26, 0),
    what="MultiConnector tells every connector of a request's blocks; before, none but the one that loads, so that "
    "LMCache's stored wrong ones (vllm#46865)",
    source="kv_connector/v1/multi_connector.py",
    probe=Probe(f"{_CONNECTORS}/multi_connector.py", r"blocks\.new_empty\(\)", absent=True),
)
VLLM_MULTI_HANDSHAKE = Row(
    VLLM,
    since=(0, 22, 0),
    what="MultiConnector with NixlConnector beside OffloadingConnector or MooncakeStoreConnector",
    source="kv_connector/v1/multi_connector.py, offloading and mooncake/store, as read",
    probe="behaviour",
)
VLLM_NODES = Row(
    VLLM,
    since=(0, 11, 1),
    what="--nnodes and --node-rank: one engine over several pods without Ray",
    source="engine/arg_utils.py",
    probe=Probe(_ARGUMENTS, r'"--nnodes"'),
)
VLLM_HEADLESS = Row(
    VLLM,
    since=(0, 11, 0),
    what="--headless: a pod of an engine without its API",
    source="entrypoints/openai/cli_args.py; later entrypoints/serve",
    probe=Probe("vllm/entrypoints/**/*.py", r'"--headless"'),
)
VLLM_OFFLOADING_FLAGS = Row(
    VLLM,
    since=(0, 11, 1),
    what="--kv-offloading-size and --kv-offloading-backend",
    source="engine/arg_utils.py",
    probe=Probe(_ARGUMENTS, r'"--kv-offloading-size"'),
)
VLLM_AIBRIX_PATCHED = Row(
    VLLM,
    since=(0, 10, 2),
    until=(0, 10, 3),
    what="AIBrix's own images hold this vLLM, patched, with AIBrixOffloadingConnectorV1Type3",
    source="aibrix v0.7.0: integration/vllm/patches, samples/kvcache/l1cache/vllm.yaml",
    probe="patched",
)
VLLM_VINEYARD = Row(
    VLLM,
    since=(0, 6, 1),
    until=(0, 6, 2),
    what="AIBrix's own image holds this vLLM, changed to speak to Vineyard",
    source="aibrix v0.7.0: samples/kvcache/vineyard/deployment.yaml",
    probe="patched",
)
VLLM_AIBRIX = Row(
    VLLM,
    since=(0, 14, 0),
    what="every name that AIBrix 0.8.0's connectors import of vLLM is there",
    source="v1/attention/selector.py; the imports of aibrix_kvcache/integration/vllm against each wheel",
    probe=Probe("vllm/v1/attention/selector.py", r"^def get_attn_backend\("),
)
VLLM_AIBRIX_UNCORRECTED = Row(
    VLLM,
    since=(0, 19, 0),
    what="GPUModelRunner._update_states returns what corrects speculative decoding; AIBrix 0.8.0's wrapper drops it",
    source="v1/worker/gpu_model_runner.py; aibrix_kvcache/integration/vllm/kv_connector/__init__.py",
    probe=Probe("vllm/v1/worker/gpu_model_runner.py", r"deferred_state_corrections_fn = self\._update_states"),
)
VLLM_RUNNER_V2 = Row(
    VLLM,
    since=(0, 22, 0),
    what="Model Runner V2 runs where nobody says; AIBrix 0.8.0 wraps the other one, and would load nothing",
    source="config/vllm.py `use_v2_model_runner`; aibrix_kvcache/integration/vllm/kv_connector/__init__.py",
    probe=Probe("vllm/config/vllm.py", r"^    def use_v2_model_runner\("),
)

# --- SGLang -------------------------------------------------------------------------------------------------------

_MEM_CACHE = "sglang/srt/mem_cache"
_POOL = f"{_MEM_CACHE}/storage/mooncake_store/mooncake_store.py"

SGLANG_HICACHE = Row(
    SGLANG,
    since=(0, 5, 5),
    what="every hicache flag and value that is written, and with them the oldest SGLang that is attached",
    source="srt/server_args.py; later srt/arg_groups/fields/memory.py",
    probe=Probe(
        "sglang/srt/**/*.py", r"hicache-storage-backend-extra-config|hicache_storage_backend_extra_config: A\["
    ),
)
SGLANG_BACKEND_TAG = Row(
    SGLANG,
    since=(0, 5, 5),
    what="`extra_backend_tag` in mooncake's keys",
    source="srt/mem_cache/storage/mooncake_store/mooncake_store.py",
    probe=Probe(_POOL, r"extra_backend_tag"),
)
SGLANG_LMCACHE = Row(
    SGLANG,
    since=(0, 5, 5),
    what="--enable-lmcache, which goes with no hierarchical cache",
    source="srt/server_args.py; later srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/**/*.py", r'"--enable-lmcache"|^    enable_lmcache: A\['),
)
SGLANG_LMCACHE_CONFIG = Row(
    SGLANG,
    since=(0, 5, 13),
    what="--lmcache-config-file",
    source="srt/server_args.py; later srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/**/*.py", r'"--lmcache-config-file"|^    lmcache_config_file: A\['),
)
SGLANG_POOL_HOSTNAME = Row(
    SGLANG,
    since=(0, 5, 6),
    what="mooncake's address is MOONCAKE_LOCAL_HOSTNAME; before, LOCAL_HOSTNAME alone",
    source="srt/mem_cache/storage/mooncake_store/mooncake_store.py",
    probe=Probe(_POOL, r"MOONCAKE_LOCAL_HOSTNAME"),
)
SGLANG_EXTRA_CONFIG_FILE = Row(
    SGLANG,
    since=(0, 5, 9),
    what="--hicache-storage-backend-extra-config takes @file",
    source="srt/mem_cache/hiradix_cache.py; later srt/mem_cache/hybrid_cache/hybrid_cache_controller.py",
    probe=Probe(f"{_MEM_CACHE}/**/*.py", r'extra_config\.startswith\("@"\)'),
)
SGLANG_POOL_STAGES = Row(
    SGLANG,
    since=(0, 5, 8),
    what="mooncake's keys tell pipeline stages",
    source="srt/mem_cache/storage/mooncake_store/mooncake_store.py",
    probe=Probe(_POOL, r"self\.pp_rank"),
)
SGLANG_POOL_SLICES = Row(
    SGLANG,
    since=(0, 5, 11),
    what="mooncake's keys tell slices of context parallelism",
    source="srt/mem_cache/storage/mooncake_store/mooncake_store.py",
    probe=Probe(_POOL, r"attn_cp_rank"),
)
SGLANG_POOL_NAMED = Row(
    SGLANG,
    since=(0, 5, 17),
    what="mooncake's keys hold the served model's name",
    source="srt/mem_cache/storage/mooncake_store/mooncake_store.py",
    probe=Probe(_POOL, r"storage_config\.model_name"),
)
SGLANG_POOL_RDMA = Row(
    SGLANG,
    since=(0, 5, 13),
    what="mooncake's protocol is rdma where MOONCAKE_PROTOCOL does not say; tcp before",
    source="srt/environ.py",
    probe=Probe("sglang/srt/environ.py", r'MOONCAKE_PROTOCOL = EnvStr\("rdma"'),
)
SGLANG_FILE_STAGES = Row(
    SGLANG,
    since=(0, 5, 10),
    what="names of the file backend's files tell pipeline stages",
    source="srt/mem_cache/hicache_storage.py",
    probe=Probe(f"{_MEM_CACHE}/hicache_storage.py", r"f\"_\{pp_size\}_\{pp_rank\}\""),
)
SGLANG_FILE_SLICES = Row(
    SGLANG,
    since=(0, 5, 14),
    what="names of the file backend's files tell slices of context parallelism",
    source="srt/mem_cache/hicache_storage.py",
    probe=Probe(f"{_MEM_CACHE}/hicache_storage.py", r"f\"_cp\{attn_cp_rank\}_"),
)
SGLANG_AIBRIX = Row(
    SGLANG,
    since=(0, 5, 5),
    what="a store of AIBrix's, whose keys tell pipeline stages by their layers",
    source="srt/mem_cache/storage/aibrix_kvcache/aibrix_kvcache_storage.py",
    probe=Probe(f"{_MEM_CACHE}/storage/aibrix_kvcache/aibrix_kvcache_storage.py", r"for pipeline parallel"),
)
SGLANG_CGROUP = Row(
    SGLANG,
    since=(0, 5, 21),
    what="host memory is held against its container's limit before it is taken; before, against the node's",
    source="mem_cache/host_memory.py",
    probe=Probe("sglang/srt/mem_cache/host_memory.py", r"cgroup"),
)
SGLANG_FILE_BOUND = Row(
    SGLANG,
    since=(0, 5, 14),
    what="the file backend evicts, instead of filling its volume",
    source="srt/mem_cache/storage/file/lru_file_evictor.py",
    probe=Probe(f"{_MEM_CACHE}/storage/file/lru_file_evictor.py", r"SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE"),
)
SGLANG_FA3_KERNEL = Row(
    SGLANG,
    since=(0, 5, 14),
    what="FlashAttention 3 decodes beside --hicache-io-backend kernel; before, one of the two is exchanged",
    source="srt/server_args.py",
    probe=Probe("sglang/srt/**/*.py", r"FlashAttention3 decode backend is not compatible", absent=True),
)
SGLANG_NIXL_NUMBERED = Row(
    SGLANG,
    since=(0, 5, 13),
    what="the nixl backend numbers its objects, and closes its files whatever happens",
    source="srt/mem_cache/storage/nixl/nixl_registry.py",
    probe=Probe(f"{_MEM_CACHE}/storage/nixl/*.py", r"_obj_devid_next"),
)
SGLANG_NIXL = Row(
    SGLANG,
    since=(0, 5, 20),
    what="the nixl backend numbers its files too; before, two transfers may mean each other's",
    source="srt/mem_cache/storage/nixl/nixl_registry.py",
    probe=Probe(f"{_MEM_CACHE}/storage/nixl/*.py", r"_file_devid_next"),
)
SGLANG_LORA_KEYED = Row(
    SGLANG,
    since=(0, 5, 20),
    what="pages of a LoRA adapter have other keys in L3 than its base model's",
    source="srt/mem_cache/utils.py",
    probe=Probe(f"{_MEM_CACHE}/utils.py", r"extra_key"),
)
SGLANG_LAYOUT_LAYERS = Row(
    SGLANG,
    since=(0, 5, 5),
    until=(0, 5, 14),
    what="--hicache-mem-layout is layer_first where nobody says; page_first afterwards",
    source="srt/server_args.py; later srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/server_args.py", r'hicache_mem_layout: str = "layer_first"'),
)
SGLANG_PREFETCH_BEST_EFFORT = Row(
    SGLANG,
    since=(0, 5, 5),
    until=(0, 5, 12),
    what="--hicache-storage-prefetch-policy is best_effort where nobody says; timeout afterwards",
    source="srt/server_args.py; later srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/server_args.py", r'hicache_storage_prefetch_policy: str = "best_effort"'),
)
SGLANG_HOST_EXCEEDS_DEVICE = Row(
    SGLANG,
    since=(0, 5, 5),
    until=(0, 5, 15),
    what="host memory has to exceed the cache in GPU memory, or the engine stops; a warning afterwards",
    source="srt/mem_cache/memory_pool_host.py; later srt/mem_cache/pool_host/base.py",
    probe=Probe(f"{_MEM_CACHE}/**/*.py", r"host memory should be larger"),
)
SGLANG_HOST_FRACTION = Row(
    SGLANG,
    since=(0, 5, 21),
    what="--hicache-host-memory-fraction bounds host memory where neither size nor ratio is given",
    source="srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/**/*.py", r"hicache_host_memory_fraction: A\["),
)
SGLANG_HICACHE_ALIAS = Row(
    SGLANG,
    since=(0, 5, 23),
    what="--enable-hicache is --enable-hierarchical-cache",
    source="srt/arg_groups/fields/memory.py",
    probe=Probe("sglang/srt/**/*.py", r'"--enable-hicache"'),
)

# --- LMCache ------------------------------------------------------------------------------------------------------

_REMOTE = "lmcache/v1/storage_backend/connector"
_SERVER = "lmcache/v1/multiprocess"

LMCACHE_EXPERIMENTAL = Row(
    LMCACHE,
    since=(0, 3, 7),
    until=(0, 3, 12),
    what="LMCACHE_USE_EXPERIMENTAL is read",
    source="integration/vllm/utils.py",
    probe=Probe("lmcache/integration/vllm/*.py", r"LMCACHE_USE_EXPERIMENTAL"),
)
LMCACHE_CLUSTER = Row(
    LMCACHE,
    since=(0, 3, 9),
    what="redis-cluster://; before, the whole URL, password and all, goes into a warning",
    source="v1/storage_backend/connector/redis_adapter.py",
    probe=Probe(f"{_REMOTE}/redis_adapter.py", r"redis-cluster://"),
)
LMCACHE_DTYPE_KEYED = Row(
    LMCACHE,
    since=(0, 3, 10),
    what="in-process keys hold the dtype",
    source="utils.py `CacheEngineKey`",
    probe=Probe("lmcache/utils.py", r"self\.dtype"),
)
LMCACHE_RESP_PLAIN = Row(
    LMCACHE,
    since=(0, 3, 15),
    what="resp://, its credentials in the file",
    source="v1/storage_backend/connector/redis_adapter.py",
    probe=Probe(f"{_REMOTE}/*.py", r"[\"']resp://"),
)
LMCACHE_RESP = Row(
    LMCACHE,
    since=(0, 4, 3),
    what="resp:// with credentials in LMCACHE_RESP_USERNAME and _PASSWORD; before, redis:// with them in the URL",
    source="v1/storage_backend/connector/redis_adapter.py",
    probe=Probe(f"{_REMOTE}/redis_adapter.py", r"LMCACHE_RESP_PASSWORD"),
)
LMCACHE_SERVER = Row(
    LMCACHE,
    since=(0, 4, 3),
    what="`lmcache server`",
    source="cli/commands/server.py",
    probe=Probe("lmcache/cli/commands/server.py", r"^class "),
)
LMCACHE_OWN_CONNECTOR = Row(
    LMCACHE,
    since=(0, 4, 5),
    what="an LMCacheMPConnector of its own, for kv_connector_module_path",
    source="integration/vllm/lmcache_mp_connector.py",
    probe=Probe("lmcache/integration/vllm/lmcache_mp_connector.py", r"^class LMCacheMPConnector"),
)
LMCACHE_SERVER_URLS = Row(
    LMCACHE,
    since=(0, 5, 0),
    what="`lmcache.mp.server_urls`: agents of several nodes, in the order of ranks",
    source="integration/vllm",
    probe=Probe("lmcache/**/*.py", r"lmcache\.mp\.server_urls"),
)
LMCACHE_REAP = Row(
    LMCACHE,
    since=(0, 5, 0),
    what="--worker-reap-timeout-seconds",
    source="v1/multiprocess/config.py",
    probe=Probe(f"{_SERVER}/*.py", r"worker-reap-timeout-seconds"),
)
LMCACHE_AESGCM = Row(
    LMCACHE,
    since=(0, 5, 3),
    what="serde aesgcm, in agents alone",
    source="v1/distributed/serde/aesgcm.py",
    probe=Probe("lmcache/v1/distributed/serde/*.py", r"aesgcm"),
)
LMCACHE_ISOLATED = Row(
    LMCACHE,
    since=(0, 5, 5),
    what="isolated IPC: --isolated-ipc and `lmcache.mp.isolated_ipc`",
    source="v1/multiprocess/config.py, integration/vllm",
    probe=Probe(f"{_SERVER}/config.py", r"--isolated-ipc"),
)
LMCACHE_WIRE_FROZEN = Row(
    LMCACHE,
    since=(0, 5, 5),
    what="the numbers by which agents and engines name operations stay as they are",
    source="v1/multiprocess/protocols/base.py; later v1/multiprocess/transport/zmq_impl/wire.py",
    probe=Probe(f"{_SERVER}/**/*.py", r"frozen-table test|^LEGACY_OPERATION_IDS"),
)
LMCACHE_MULTIPROCESS = Row(
    LMCACHE,
    since=(0, 5, 6),
    what="isolated clients recover from a restart of their agent; the oldest that is attached to agents",
    source="LMCache #5168",
    probe="behaviour",
)
LMCACHE_HTTP_LOOPBACK = Row(
    LMCACHE,
    since=(0, 5, 6),
    what="the agent's HTTP is on loopback where --http-host does not say",
    source="v1/multiprocess/config.py",
    probe=Probe(f"{_SERVER}/*.py", r'http_host: str = "127\.0\.0\.1"'),
)

# --- Mooncake -----------------------------------------------------------------------------------------------------

_CONFIG = "mooncake/mooncake_config.py"

MOONCAKE_HOSTNAME = Row(
    MOONCAKE,
    since=(0, 3, 8),
    what="MOONCAKE_LOCAL_HOSTNAME; before, LOCAL_HOSTNAME",
    source="mooncake_config.py",
    probe=Probe(_CONFIG, r"MOONCAKE_LOCAL_HOSTNAME"),
)
MOONCAKE_WAITS = Row(
    MOONCAKE,
    since=(0, 3, 9),
    what="the store service's --max-wait-time",
    source="mooncake_store_service.py",
    probe=Probe("mooncake/mooncake_store_service.py", r"max-wait-time"),
)
MOONCAKE_SIZE_UNITS = Row(
    MOONCAKE,
    since=(0, 3, 12),
    what="sizes such as 512mb or 1.5gb; before, whole bytes or whole gb",
    source="mooncake_config.py",
    probe=Probe(_CONFIG, r'"tb"'),
)
MOONCAKE_OFFLOAD = Row(
    MOONCAKE,
    since=(0, 3, 12),
    what="MOONCAKE_OFFLOAD_ENABLED and MOONCAKE_OFFLOAD_FILE_STORAGE_PATH: an agent's disk",
    source="mooncake_config.py",
    probe=Probe(_CONFIG, r"MOONCAKE_OFFLOAD_ENABLED"),
)
MOONCAKE_CLIENT_HTTP = Row(
    MOONCAKE,
    since=(0, 3, 12),
    what="MOONCAKE_ENABLE_CLIENT_HTTP_SERVER and MOONCAKE_CLIENT_HTTP_PORT: an agent's health and metrics",
    source="mooncake_config.py",
    probe=Probe(_CONFIG, r"MOONCAKE_ENABLE_CLIENT_HTTP_SERVER"),
)

# --- AIBrix -------------------------------------------------------------------------------------------------------

AIBRIX_CONNECTORS = Row(
    AIBRIX,
    since=(0, 7, 0),
    what="connectors of its own for kv_connector_module_path, which wrap an unpatched vLLM's model runner",
    source="integration/vllm/kv_connector",
    probe=Probe(
        "aibrix_kvcache/integration/vllm/kv_connector/aibrix_offloading_connector_type1.py",
        r"^class AIBrixOffloadingConnector\(KVConnectorBase_V1\)",
    ),
)

AIBRIX_FILES = Row(
    AIBRIX,
    since=(0, 6, 0),
    what="stores in files (SHFS) and in PrisKV by that name",
    source="l2/connectors/connector.py",
    probe=Probe("aibrix_kvcache/l2/connectors/connector.py", r'"SHFS"'),
)

# --- beside and between -------------------------------------------------------------------------------------------

OLDEST_LMCACHE = (
    Beside(VLLM, (0, 11, 0), LMCACHE, (0, 3, 7), "wheel 0.11.0: LMCache #1840 (0.3.8 does not import)"),
    Beside(VLLM, (0, 20, 2), LMCACHE, (0, 4, 5), "imports of the wheels against each other"),
)

TOGETHER = (
    Together(
        LMCACHE,
        since=LMCACHE_WIRE_FROZEN.since,
        until=(0, 6, 0),
        what="agents and engines name operations by numbers, which releases before 0.5.5 have changed",
        source="LMCache #4711 (0.4.5 and 0.5.3 crash); RequestType of 0.5.2, 0.5.3 and 0.5.5; 0.5.6: zmq_impl/wire.py",
    ),
    Together(
        MOONCAKE,
        what="a client that is not of its master's release stores and finds nothing",
        source="Mooncake #1061, #2551; measured against a master of 0.3.13.post1: a client of 0.3.13 stores and reads, "
        "every put of 0.3.10.post2, 0.3.11.post1 and 0.3.12.post1 fails with -900",
    ),
)

# --- images -------------------------------------------------------------------------------------------------------

_VLLM_IMAGE, _SGLANG_IMAGE, _LMCACHE_IMAGE = "vllm/vllm-openai", "lmsysorg/sglang", "lmcache/vllm-openai"
_AIBRIX_IMAGE = "aibrix/vllm-openai-aibrix-kvcache"
# What docker/Dockerfile installs where .buildkite/release-pipeline.yaml asks for it: INSTALL_KV_CONNECTORS=true in all.
_VLLM_SOURCE = "vllm sdist: requirements/kv_connectors.txt"

IMAGES = (
    # Until 0.13.0 the Dockerfile goes on where the installation fails, as it did on arm64 (vLLM #30805); on x86 LMCache
    # #1515 saw LMCache in an image of 2025, and others write that it was not there before 0.14.
    Image(_VLLM_IMAGE, (0, 11, 0), (0, 14, 0), LMCACHE, holds=None, source=f"{_VLLM_SOURCE}; vLLM #30805"),
    Image(_VLLM_IMAGE, (0, 14, 0), (0, 16, 0), LMCACHE, holds=True, source=_VLLM_SOURCE),
    Image(_VLLM_IMAGE, (0, 16, 0), (0, 19, 1), LMCACHE, holds=True, oldest=(0, 3, 9), source=_VLLM_SOURCE),
    Image(
        *(_VLLM_IMAGE, (0, 19, 1), (0, 19, 2), LMCACHE),
        holds=True,
        oldest=(0, 4, 3),
        newest=(0, 4, 3),
        source=f"{_VLLM_SOURCE}; seen in the image in April 2026",
    ),
    Image(
        *(_VLLM_IMAGE, (0, 19, 2), (0, 32, 0), LMCACHE),
        holds=True,
        oldest=(0, 3, 9),
        newest=(0, 5, 5),
        source=f"{_VLLM_SOURCE}; 0.31.0 was built on 2026-10-03, LMCache 0.5.6 on 2026-10-15",
    ),
    Image(_VLLM_IMAGE, (0, 32, 0), (0, 33, 0), LMCACHE, holds=True, oldest=(0, 3, 9), source=_VLLM_SOURCE),
    Image(
        *(_VLLM_IMAGE, (0, 31, 0), (0, 33, 0), LMCACHE),
        flavour="cu129",
        holds=True,
        oldest=(0, 4, 4),
        newest=(0, 4, 4),
        source="vllm sdist: requirements/kv_connectors_cu12.txt",
    ),
    Image(_VLLM_IMAGE, (0, 33, 0), (0, 34, 0), LMCACHE, holds=True, oldest=(0, 5, 6), source=_VLLM_SOURCE),
    Image(
        *(_VLLM_IMAGE, (0, 33, 0), (0, 34, 0), LMCACHE),
        flavour="cu129",
        holds=True,
        oldest=(0, 5, 6),
        newest=(0, 5, 6),
        source="vllm sdist: requirements/kv_connectors_cu12.txt",
    ),
    Image(_VLLM_IMAGE, (0, 11, 0), (0, 17, 0), MOONCAKE, holds=False, source=_VLLM_SOURCE),
    Image(_VLLM_IMAGE, (0, 17, 0), (0, 19, 1), MOONCAKE, holds=True, oldest=(0, 3, 8), source=_VLLM_SOURCE),
    Image(
        *(_VLLM_IMAGE, (0, 19, 1), (0, 19, 2), MOONCAKE),
        holds=True,
        oldest=(0, 3, 10),
        newest=(0, 3, 10),
        source=f"{_VLLM_SOURCE}; seen in the image in April 2026",
    ),
    Image(_VLLM_IMAGE, (0, 19, 2), (0, 22, 0), MOONCAKE, holds=True, oldest=(0, 3, 8), source=_VLLM_SOURCE),
    Image(
        *(_VLLM_IMAGE, (0, 22, 0), (0, 28, 0), MOONCAKE),
        holds=True,
        oldest=(0, 3, 10),
        newest=(0, 3, 10),
        source="vllm sdist: .buildkite/release-pipeline.yaml (0.3.10.post2); seen in 0.23.0 (llm-d #1826)",
    ),
    Image(_VLLM_IMAGE, (0, 28, 0), (0, 34, 0), MOONCAKE, holds=True, oldest=(0, 3, 12), source=_VLLM_SOURCE),
    Image(_VLLM_IMAGE, (0, 11, 0), (0, 14, 0), NIXL, holds=None, source=f"{_VLLM_SOURCE}; vLLM #30805"),
    Image(_VLLM_IMAGE, (0, 14, 0), (0, 34, 0), NIXL, holds=True, source=_VLLM_SOURCE),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 5), (0, 5, 6), MOONCAKE),
        holds=True,
        oldest=(0, 3, 7),
        newest=(0, 3, 7),
        source="sglang docker/Dockerfile of 0.5.5",
    ),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 13), (0, 5, 17), MOONCAKE),
        holds=True,
        oldest=(0, 3, 11),
        newest=(0, 3, 11),
        source="sglang docker/Dockerfile of 0.5.13 and 0.5.16, as others cite it",
    ),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 20), (0, 5, 24), MOONCAKE),
        holds=True,
        oldest=(0, 3, 13),
        newest=(0, 3, 13),
        source="SGLang #36493, three weeks before 0.5.20; Mooncake has had no later minor release",
    ),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 5), (0, 5, 6), NIXL),
        holds=True,
        source="sglang docker/Dockerfile of 0.5.5",
    ),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 5), (0, 5, 24), LMCACHE),
        holds=False,
        source="sglang docker/Dockerfile of 0.5.5; LMCache #4719 (August 2026)",
    ),
    # The tag is vLLM's version.
    Image(
        *(_AIBRIX_IMAGE, (0, 10, 2), (0, 10, 3), AIBRIX),
        holds=True,
        source="aibrix v0.7.0: integration/vllm/docker/README.md, samples/kvcache",
    ),
    Image(*(_VLLM_IMAGE, (0, 10, 2), (0, 34, 0), AIBRIX), holds=False, source=_VLLM_SOURCE),
    Image(
        *(_SGLANG_IMAGE, (0, 5, 5), (0, 5, 24), AIBRIX),
        holds=False,
        source="aibrix v0.7.0 makes images of its own from this one",
    ),
    # The tag is LMCache's version.
    Image(
        *(_LMCACHE_IMAGE, (0, 5, 6), (0, 5, 7), MOONCAKE),
        holds=False,
        source="lmcache sdist 0.5.6: docker/Dockerfile",
    ),
    Image(
        *(_LMCACHE_IMAGE, (0, 5, 6), (0, 5, 7), MOONCAKE),
        flavour="lightweight",
        holds=None,
        source="lmcache sdist 0.5.6: docker/Dockerfile.lightweight, from whatever vllm/vllm-openai:latest was",
    ),
    Image(
        *(_LMCACHE_IMAGE, (0, 5, 6), (0, 5, 7), NIXL),
        holds=True,
        source="lmcache sdist 0.5.6: docker/Dockerfile",
    ),
)
