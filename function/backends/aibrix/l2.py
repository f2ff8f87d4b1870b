"""L2: the store behind each rank's memory, and what an engine needs to reach it.

Keys hold a namespace, heads, layers, the block's layout and tokens (l2/l2_cache.py), so the namespace is the keyspace.
"""

from collections.abc import Sequence

from function import kube, preflight, rdma, workloads
from function.api.tier import L2, EICSecretRef, FileStore, InfiniStore, InfiniStoreServers, LinkType, SecretKeyRef
from function.backends import compatibility, hierarchy
from function.backends.aibrix import connector, kvcache, metadata
from function.backends.aibrix.metadata import PREFIX
from function.backends.base import CREDENTIALS, Credential, CredentialError, Notice, Part, Refusal, Tier, given
from function.engines import Engine, table, versions
from function.engines import vllm as vllm_line
from function.stores import files, valkey

BACKEND = "aibrix"

_EIC_DIR = "/etc/kv-offload-eic"
_EIC_FILE = "eic.yaml"
_ROCKSDB_DIR = "/var/lib/kv-offload-rocksdb"
# What the package imports of others for each store, and does not require itself (l2/connectors).
_CLIENTS = {"INFINISTORE": "infinistore", "HPKV": "hpkv", "PRISKV": "priskv", "EIC": "eic"}
_SGLANG_REPLICAS = ("--data-parallel-size", "--dp-size", "--dp")
# Of a batch that lacks a block, AIBrix counts those that it got and takes as many from the first on, filled or not
# (l2/l2_cache.py, cache_manager.py); these are the stores that it asks for several at once.
_BATCHED = ("SHFS", "EIC")
_BATCH = "L2_CACHE_OP_BATCH"
LINKS: dict[LinkType, str] = {"Ethernet": "Ethernet", "InfiniBand": "IB"}


def secret_name(tier: Tier) -> str | None:
    """Name the Secret that the store's clients need; DRAWN for one that is drawn, None for a store without one."""
    ref = _secret_ref(tier)
    return ref.name if ref else metadata.secret_name(tier)


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the Secret that the store's clients need.

    Raises:
        CredentialError: the user's lacks the key.
    """
    ref = _secret_ref(tier)
    if ref is None:
        return metadata.secret(tier, credential)
    if not credential.data.get(ref.key):
        raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {ref.key!r}")
    name = _EIC_FILE if isinstance(ref, EICSecretRef) else valkey.PASSWORD_KEY
    data = {name: credential.data[ref.key]}
    return workloads.secret(tier, CREDENTIALS, data, f"{credential.version} {ref.key} {name}")


def _secret_ref(tier: Tier) -> SecretKeyRef | EICSecretRef | None:
    spec = given(tier.spec.aibrix).l2
    if spec and spec.eic:
        return spec.eic.secret_ref
    return spec.priskv.secret_ref if spec and spec.priskv else None


def store(tier: Tier, engine: Engine) -> hierarchy.Store | Refusal | None:
    """Give the store that stands behind an engine's memory, why it cannot use it, or None where there is none."""
    aibrix = given(tier.spec.aibrix)
    if aibrix.servers:
        return _store(tier, engine, "INFINISTORE", _infinistore(tier, aibrix.servers), nics=True)
    spec = aibrix.l2
    if spec is None:
        return None
    if refusal := _unguarded(tier, engine):
        return refusal
    if (spec.shfs or spec.priskv) and (refusal := _older(engine, "shfs" if spec.shfs else "priskv")):
        return refusal
    if spec.infinistore:
        return _store(tier, engine, "INFINISTORE", _infinistore(tier, spec.infinistore), nics=spec.by_nics)
    if spec.hpkv:
        return _store(tier, engine, "HPKV", _hpkv(tier, spec), nics=True)
    if spec.priskv:
        return _store(tier, engine, "PRISKV", _priskv(tier, spec), nics=True)
    if spec.eic:
        mounts, volumes = _eic(tier)
        env = _variables({"EIC_CONFIG_FILE": f"{_EIC_DIR}/{_EIC_FILE}"})
        return _store(tier, engine, "EIC", env, nics=True, mounts=mounts, volumes=volumes)
    if spec.shfs:
        return _shfs(tier, engine, spec.shfs)
    return _rocksdb(tier, engine, spec)


def guards(tier: Tier) -> list[str]:
    """Name the variables that would make an engine take KV that nobody has read, if they were the user's."""
    spec = given(tier.spec.aibrix).l2
    if spec and (spec.shfs or spec.eic):
        return [f"{PREFIX}{_BATCH}"]
    return [f"{PREFIX}PRISKV_USE_MPUT_MGET"] if spec and spec.priskv else []


def _unguarded(tier: Tier, engine: Engine) -> Refusal | None:
    """Say that an engine sets one of them; SGLang looks whether it got what it asked for."""
    found = [name for name in guards(tier) if name in engine.env_names]
    if not found or engine.kind.name != "vLLM":
        return None
    return Refusal(
        compatibility.INCOMPATIBLE,
        f"engine.env sets {found[0]}, by which AIBrix would take KV that it has not read, so answers could be wrong; "
        "remove it",
        tuple(connector.CONNECTORS),
    )


def _store(
    tier: Tier,
    engine: Engine,
    name: str,
    env: Sequence[kube.Manifest],
    *,
    nics: bool = False,
    mounts: Sequence[kube.Manifest] = (),
    volumes: Sequence[kube.Manifest] = (),
) -> hierarchy.Store:
    spec = given(tier.spec.aibrix).l2
    held = rdma.for_engine(tier) if nics else rdma.Nics()
    # Without members an engine fails at start, with its model loaded.
    answers = [metadata.address(tier)] if metadata.of(tier) else []
    if given(tier.spec.aibrix).servers:
        # By the list alone a server that still registers its memory would be lost to the engine for good.
        answers.append(kvcache.headless(tier))
    waits = [preflight.container(tier.ref, answers, every=True)] if answers else []
    common = {
        "L2_CACHE_BACKEND": name,
        "L2_CACHE_NAMESPACE": engine.keyspace,
        **({_BATCH: "1"} if name in _BATCHED else {}),
        **({"L2_CACHE_INGESTION_TYPE": spec.ingestion.upper()} if spec else {}),
    }
    return hierarchy.Store(
        backend=BACKEND,
        library=table.AIBRIX,
        env=[*_variables(common), *env],
        mounts=mounts,
        volumes=volumes,
        resources=held.resources,
        devices=held.devices,
        align=held.align,
        capabilities=held.capabilities,
        host_network=held.host_network,
        init_containers=waits,
        notices=_notices(engine, name),
    )


def _notices(engine: Engine, name: str) -> list[Notice]:
    """Say that nobody knows whether an engine's image holds the store's client; nothing where somebody does."""
    client = _CLIENTS.get(name)
    # AIBrix's sample for InfiniStore has its image.
    if client is None or (name == "INFINISTORE" and engine.bundled(table.AIBRIX).holds):
        return []
    what = f"whether image {engine.image!r} holds the Python package {client}, is not known"
    return [Notice("StoreClientUnverified", "ClientUnknown", f"{what}; without it the engine fails at start")]


def _infinistore(tier: Tier, spec: InfiniStore | InfiniStoreServers) -> list[kube.Manifest]:
    values = {
        "INFINISTORE_CONNECTION_TYPE": spec.protocol,
        "INFINISTORE_LINK_TYPE": LINKS[spec.link_type],
    }
    if spec.protocol == "RDMA":
        values |= _devices(tier)
    if isinstance(spec, InfiniStore) and spec.address:
        return _variables({"INFINISTORE_HOST_ADDR": spec.address, "INFINISTORE_SERVICE_PORT": str(spec.port)} | values)
    return [*_variables(values), *metadata.reader(tier)]


def _devices(tier: Tier) -> dict[str, str]:
    """Name the NICs, each with its GID where the tier says one; nothing where AIBrix is to look for itself."""
    found = given(tier.spec.rdma)
    index = "" if found.gid_index is None else f":{found.gid_index}"
    names = ",".join(f"{name}{index}" for name in found.net_devices)
    return {"INFINISTORE_VISIBLE_DEV_LIST": names} if names else {}


def _hpkv(tier: Tier, spec: L2) -> list[kube.Manifest]:
    hpkv = given(spec.hpkv)
    # It binds to the address that its peers see.
    own = [workloads.field(f"{PREFIX}HPKV_LOCAL_ADDR", "status.podIP")]
    if hpkv.address:
        return [*_variables({"HPKV_REMOTE_ADDR": hpkv.address, "HPKV_REMOTE_PORT": str(hpkv.port)}), *own]
    return [*own, *metadata.reader(tier)]


def _priskv(tier: Tier, spec: L2) -> list[kube.Manifest]:
    priskv = given(spec.priskv)
    env = _variables({"PRISKV_REMOTE_ADDR": priskv.address, "PRISKV_REMOTE_PORT": str(priskv.port)})
    if priskv.secret_ref is None:
        return env
    password = {"secretKeyRef": {"name": tier.instance, "key": valkey.PASSWORD_KEY}}
    return [*env, {"name": f"{PREFIX}PRISKV_PASSWORD", "valueFrom": password}]


def _eic(tier: Tier) -> tuple[list[kube.Manifest], list[kube.Manifest]]:
    mount = {"name": "kv-eic", "mountPath": _EIC_DIR, "readOnly": True}
    file = {"secretName": tier.instance, "items": [{"key": _EIC_FILE, "path": _EIC_FILE}]}
    return [mount], [{"name": "kv-eic", "secret": file}]


def _shfs(tier: Tier, engine: Engine, spec: FileStore) -> hierarchy.Store:
    env = _variables({"SHFS_ROOT": f"{files.DIR}/{BACKEND}"})
    return _store(tier, engine, "SHFS", env, mounts=files.mounts(tier), volumes=files.volumes(spec))


def _rocksdb(tier: Tier, engine: Engine, spec: L2) -> hierarchy.Store | Refusal:
    """Give each rank a database of its own, told from the others by the heads that it has."""
    replicas = vllm_line.replicas(engine.line) if engine.kind.name == "vLLM" else engine.line.integer(*_SGLANG_REPLICAS)
    if replicas > 1:
        return Refusal(
            compatibility.INCOMPATIBLE,
            "data-parallel replicas of one pod have the same heads, and would open one RocksDB twice, which it "
            "refuses; take replicas instead of data parallelism, or a tier with another aibrix.offloading.l2",
        )
    rocksdb = given(spec.rocksdb)
    values = {"ROCKSDB_ROOT": _ROCKSDB_DIR, "ROCKSDB_TTL_S": str(rocksdb.ttl_seconds)}
    disk = {**workloads.ephemeral_disk(rocksdb.storage_class_name, rocksdb.size_per_pod), "name": "kv-rocksdb"}
    mount = {"name": "kv-rocksdb", "mountPath": _ROCKSDB_DIR}
    return _store(tier, engine, "ROCKSDB", _variables(values), mounts=[mount], volumes=[disk])


def _older(engine: Engine, name: str) -> Refusal | None:
    """Say that AIBrix's own image of vLLM holds a package from before it knew a store."""
    if engine.version is None or not table.VLLM_AIBRIX_PATCHED.holds(engine.version) or engine.kind.name != "vLLM":
        return None
    since = versions.show(table.AIBRIX_FILES.since)
    return Refusal(
        "EngineTooOld",
        f"AIBrix's images of vLLM {versions.show(engine.version)} hold its package from before {since}, which knows no "
        f"{name}; take vLLM {versions.show(table.VLLM_AIBRIX.since)} or newer with that package, or a tier with "
        "another aibrix.offloading.l2",
    )


def _variables(values: dict[str, str]) -> list[kube.Manifest]:
    return workloads.variables({f"{PREFIX}{name}": value for name, value in values.items()})
