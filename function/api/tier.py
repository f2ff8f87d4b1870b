"""KVOffloadTier: the spec a platform team writes, with the defaults and rules of apis/kvoffloadtier.yaml."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from function import kube, releases
from function.api import (
    BUCKET,
    DEVICE,
    ENDPOINT,
    HOST,
    IMAGE,
    NAMESPACE,
    PATH,
    REGION,
    RESOURCE,
    Address,
    Bool,
    Disk,
    Int,
    Key,
    Members,
    Memory,
    Model,
    Number,
    ObjectName,
    Ref,
)

HA = 3
HOST_PORTS = 8


class Mode(StrEnum):
    """Where LMCache holds KV: in a node's agent, in the engine's own process, or whichever an engine can speak."""

    AUTO = "Auto"
    MULTIPROCESS = "Multiprocess"
    IN_PROCESS = "InProcess"


class SecretRef(Model):
    """The Redis credentials, in the tier's namespace, or in its targetNamespace with `onCluster`."""

    name: ObjectName
    username_key: Key = "username"
    password_key: Key = "password"  # noqa: S105 (a key, no password)
    url_key: Key | None = None
    on_cluster: Bool = False


class Volume(Model):
    """A volume of each member, by a claim that outlives its pod."""

    size: Disk = "8Gi"
    storage_class_name: ObjectName | None = None


class Provision(Model):
    """A Valkey that the tier runs itself. `memory` is its pod's, of which keys get their share."""

    memory: Memory
    persistence: Volume | None = None


class Redis(Model):
    """A Redis or Valkey: one that is there already, by its host, or one that the tier provisions."""

    host: str | None = Field(None, min_length=1, max_length=253, pattern=HOST)
    provision: Provision | None = None
    port: Int = Field(6379, ge=1, le=65535)
    tls: Bool = False
    mode: Literal["Standalone", "Cluster"] = "Standalone"
    secret_ref: SecretRef | None = None
    max_capacity_gib: Int | None = Field(None, alias="maxCapacityGiB", ge=1, le=1048576)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.host is None) == (self.provision is None):
            raise ValueError("set exactly one of host and provision")
        given = self.model_fields_set & {"port", "tls", "mode", "secret_ref", "max_capacity_gib"}
        if self.provision and given and self != Redis(provision=self.provision):
            raise ValueError(
                "port, tls, mode, secretRef and maxCapacityGiB go with host; a provisioned Valkey has its own"
            )
        return self


class Remote(Model):
    """The remote store behind every node's own cache."""

    redis: Redis


class HostPath(Model):
    """A folder that each node has."""

    path: str = Field(pattern=PATH, max_length=1024)


def _exactly_one(**given: object) -> None:
    """Refuse a union of which not exactly one member is set; `given` are its members by their names in the API."""
    if sum(value is not None for value in given.values()) != 1:
        *most, last = given
        raise ValueError(f"set exactly one of {', '.join(most)} and {last}")


class DiskTier(Model):
    """A node's disk: a volume of a storage class, or a folder of the node."""

    size_per_node: Disk
    storage_class_name: ObjectName | None = None
    host_path: HostPath | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.storage_class_name is None) == (self.host_path is None):
            raise ValueError("set exactly one of storageClassName and hostPath")
        return self


class KeySecretRef(Model):
    """The key of an encryption, in the tier's namespace, or in its targetNamespace with `onCluster`."""

    name: ObjectName
    key: Key = "key"
    on_cluster: Bool = False


class Encryption(Model):
    """AES-GCM of what agents put on disk and into Redis."""

    secret_ref: KeySecretRef


class LMCache(Model):
    """LMCache's block. Sizes are per node: GiB of host memory, and a quantity of disk."""

    cpu_tier_gib_per_node: Int = Field(alias="cpuTierGiBPerNode", ge=1, le=65536)
    disk_tier: DiskTier | None = None
    remote: Remote | None = None
    mode: Mode = Mode.AUTO
    ipc: Literal["Isolated", "Shared"] = "Isolated"
    chunk_size: Int = Field(256, ge=16, le=16384, multiple_of=16)
    encryption: Encryption | None = None

    @property
    def redis(self) -> Redis | None:
        """The remote Redis, where there is one."""
        return self.remote.redis if self.remote else None

    @property
    def secret_ref(self) -> SecretRef | None:
        """Where the Redis credentials are, where there are any."""
        return self.redis.secret_ref if self.redis else None

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        redis = self.redis
        if redis and self.mode is not Mode.IN_PROCESS and (redis.tls or redis.mode == "Cluster"):
            raise ValueError(
                "remote.redis.tls and remote.redis.mode Cluster need mode InProcess: "
                "the agent's Redis adapter speaks neither"
            )
        if redis and redis.tls and redis.mode == "Cluster":
            raise ValueError("remote.redis.tls with remote.redis.mode Cluster is not supported by LMCache: choose one")
        if self.mode is Mode.IN_PROCESS and self.disk_tier and self.disk_tier.host_path:
            raise ValueError(
                "diskTier.hostPath needs an agent that empties it; with mode InProcess set diskTier.storageClassName"
            )
        if self.encryption and self.mode is Mode.IN_PROCESS:
            raise ValueError(
                "encryption is the agents', and engines in process have none: set mode to Auto or Multiprocess, or "
                "remove encryption"
            )
        if self.encryption and not (self.disk_tier or self.remote):
            raise ValueError(
                "encryption is of what lies on disk and in Redis, memory stays plain: set diskTier or remote, or "
                "remove encryption"
            )
        return self


class Master(Model):
    """Mooncake's master: one, or three of which one leads. With `oplog` a new leader knows the keys."""

    replicas: Members = 1
    oplog: Bool = False

    @model_validator(mode="after")
    def _has_standbys(self) -> Self:
        if self.oplog and self.replicas != HA:
            raise ValueError("oplog is what standbys learn keys from; it goes with replicas 3 only")
        return self


class EtcdProvision(Model):
    """An etcd that the tier runs itself. `ephemeral` members have no volume, and lose what they hold with their pod."""

    replicas: Members = 3
    volume: Volume | None = None
    ephemeral: Bool = False

    @model_validator(mode="after")
    def _has_a_volume_or_none(self) -> Self:
        if self.ephemeral and self.replicas != 1:
            raise ValueError(
                "an ephemeral etcd has one member, since of three each one that is replaced would have to be repaired "
                "by hand: set replicas to 1, or ephemeral to false"
            )
        if self.ephemeral and self.volume:
            raise ValueError("ephemeral members have no volume; set one of them")
        return self


class CASecretRef(Model):
    """The authority of an etcd's certificate, in the tier's namespace, or in its targetNamespace with `onCluster`."""

    name: ObjectName
    key: Key = "ca.crt"
    on_cluster: Bool = False


Endpoint = Annotated[str, Field(pattern=ENDPOINT, max_length=262)]


def _up_to_nine(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(endpoints) <= 9:  # noqa: PLR2004 (as the message says)
        raise ValueError("must be one to nine URLs")
    return endpoints


class Etcd(Model):
    """The etcd behind several masters: one that the tier provisions, or one that is there already."""

    provision: EtcdProvision | None = None
    endpoints: Annotated[tuple[Endpoint, ...], AfterValidator(_up_to_nine)] | None = None
    ca_secret_ref: CASecretRef | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(provision=self.provision, endpoints=self.endpoints)
        if self.ca_secret_ref and self.provision:
            raise ValueError("caSecretRef goes with endpoints; a provisioned etcd speaks no TLS")
        return self


class Mooncake(Model):
    """Mooncake's block. `segmentGiBPerNode` is the GiB of host memory that each node gives to the pool."""

    segment_gib_per_node: Int = Field(alias="segmentGiBPerNode", ge=1, le=65536)
    protocol: Literal["RDMA", "TCP"] = "RDMA"
    huge_pages: Literal["2Mi", "1Gi"] | None = None
    master: Master = Field(default_factory=Master)
    etcd: Etcd | None = None
    metadata: Literal["P2P", "HTTP"] = "P2P"
    disk: DiskTier | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.master.replicas == HA) != (self.etcd is not None):
            raise ValueError("master.replicas 3 needs etcd, and etcd goes with master.replicas 3 only")
        if self.metadata == "HTTP" and self.etcd is not None:
            raise ValueError("metadata HTTP is held by a single master; with master.replicas 3 use P2P")
        return self


class FileStore(Model):
    """KV in files: a folder of each node, of which `sizePerNode` may be filled."""

    host_path: HostPath
    size_per_node: Disk


class ObjectSecretRef(Model):
    """The credentials of a bucket, in the tier's namespace, or in its targetNamespace with `onCluster`."""

    name: ObjectName
    access_key_id_key: Key = "access-key-id"
    secret_access_key_key: Key = "secret-access-key"  # noqa: S105 (a key, no password)
    on_cluster: Bool = False


class ObjectStore(Model):
    """KV in a bucket of S3 or the like."""

    bucket: str = Field(min_length=3, max_length=63, pattern=BUCKET)
    endpoint: str | None = Field(None, max_length=262, pattern=ENDPOINT)
    region: str | None = Field(None, min_length=1, max_length=64, pattern=REGION)
    secret_ref: ObjectSecretRef | None = None

    @model_validator(mode="after")
    def _is_found(self) -> Self:
        if self.endpoint is None and self.region is None:
            raise ValueError("set endpoint, or region for a bucket of Amazon's")
        return self


class NixlStorage(Model):
    """Offload to files or objects through NIXL. `cpuTierGiBPerNode` is the host memory in front of them, per node."""

    cpu_tier_gib_per_node: Int = Field(alias="cpuTierGiBPerNode", ge=1, le=65536)
    fs: FileStore | None = None
    obj: ObjectStore | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(fs=self.fs, obj=self.obj)
        return self


class NixlP2P(Model):
    """KV moved from prefill engines to decode engines; each data-parallel rank listens on a port of its own."""

    side_channel_port: Int = Field(5600, ge=1024, le=65000)


class Nixl(Model):
    """Nixl's block: storage, or peer to peer."""

    storage: NixlStorage | None = None
    p2p: NixlP2P | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(storage=self.storage, p2p=self.p2p)
        return self


class FileL3(Model):
    """A folder that engines share: a claim that many pods may mount, which fills up to `size` per rank."""

    claim_name: ObjectName
    size_per_rank: Disk


def _behind_hicache(backend: object) -> object:
    if backend == "LMCache":
        raise ValueError("SGLang refuses LMCache beside HiCache; for LMCache make a tier of that backend")
    return backend


class L3Ref(Ref):
    """The tier behind another one on the same cluster: by its name, or as the one that a fleet has there."""

    kind: Literal["KVOffloadTier", "KVOffloadFleet"] = "KVOffloadTier"


class L3(Model):
    """What stands behind HiCache's host memory: a backend of this same tier, a claim, or another tier."""

    backend: Annotated[Literal["Mooncake", "Nixl", "AIBrix", "File"], BeforeValidator(_behind_hicache)] | None = None
    tier_ref: L3Ref | None = None
    file: FileL3 | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _exactly_one(backend=self.backend, tierRef=self.tier_ref)
        if (self.backend == "File") != (self.file is not None):
            raise ValueError("file is required when backend is File, and wrong otherwise")
        return self


class HiCache(Model):
    """HiCache's block. `hostMemoryGiBPerNode` is what all ranks of a node may hold, `ratio` times their GPU cache."""

    host_memory_gib_per_node: Int | None = Field(None, alias="hostMemoryGiBPerNode", ge=1, le=65536)
    ratio: Number | None = Field(None, gt=1, le=100)
    write_policy: Literal["WriteThrough", "WriteThroughSelective", "WriteBack"] = "WriteThrough"
    l3: L3 | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        _exactly_one(hostMemoryGiBPerNode=self.host_memory_gib_per_node, ratio=self.ratio)
        return self


class SecretKeyRef(Model):
    """One key of a Secret in the tier's namespace."""

    name: ObjectName
    key: Key = "password"


class MetadataProvision(Model):
    """A Valkey that the tier runs itself. `memory` is its pod's."""

    memory: Memory = "1Gi"


class MetadataRedis(Model):
    """A Redis or Valkey: one that is there already, by its host, or one that the tier provisions."""

    host: str | None = Field(None, min_length=1, max_length=253, pattern=HOST)
    port: Int = Field(6379, ge=1, le=65535)
    secret_ref: SecretKeyRef | None = None
    provision: MetadataProvision | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(host=self.host, provision=self.provision)
        given = self.model_fields_set & {"port", "secret_ref"}
        if self.provision and given and self != MetadataRedis(provision=self.provision):
            raise ValueError("port and secretRef go with host; a provisioned Valkey has its own")
        return self


class Metadata(Model):
    """Where a store's members are written down for its clients."""

    redis: MetadataRedis = MetadataRedis(provision=MetadataProvision())


Transport = Literal["RDMA", "TCP"]
LinkType = Literal["Ethernet", "InfiniBand"]


class InfiniStore(Model):
    """InfiniStore's servers: one by its address, or members that are written down. `protocol` is the engines'."""

    address: Address | None = None
    port: Int = Field(12345, ge=1, le=65535)
    metadata: Metadata | None = None
    protocol: Transport = "RDMA"
    link_type: LinkType = "Ethernet"

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(address=self.address, metadata=self.metadata)
        return self


class HPKV(Model):
    """HPKV's servers: one by its address, or members that are written down."""

    address: Address | None = None
    port: Int = Field(18512, ge=1, le=65535)
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(address=self.address, metadata=self.metadata)
        return self


class PrisKV(Model):
    """A PrisKV server, and its password where it has one."""

    address: Address
    port: Int = Field(6379, ge=1, le=65535)
    secret_ref: SecretKeyRef | None = None


class EICSecretRef(Model):
    """The Secret in the tier's namespace that holds EIC's own configuration file."""

    name: ObjectName
    key: Key = "eic.yaml"


class EIC(Model):
    """An EIC, as its own configuration file says where it is."""

    secret_ref: EICSecretRef


class RocksDB(Model):
    """A RocksDB of each engine's pod, on a volume of its own; what is `ttlSeconds` old goes."""

    size_per_pod: Disk
    storage_class_name: ObjectName | None = None
    ttl_seconds: Int = Field(600, ge=60, le=31536000)


class L2(Model):
    """What stands behind each rank's memory. `ingestion` is what goes there."""

    ingestion: Literal["Hot", "All", "Evicted"] = "Hot"
    infinistore: InfiniStore | None = None
    hpkv: HPKV | None = None
    priskv: PrisKV | None = None
    eic: EIC | None = None
    shfs: FileStore | None = None
    rocksdb: RocksDB | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        stores = ("infinistore", "hpkv", "priskv", "eic", "shfs", "rocksdb")
        _exactly_one(**{name: getattr(self, name) for name in stores})
        return self

    @property
    def metadata(self) -> Metadata | None:
        """Where members are written down; None for a store without members."""
        members = self.infinistore or self.hpkv
        return members.metadata if members else None

    @property
    def by_nics(self) -> bool:
        """Whether engines reach it by RDMA."""
        return bool(self.hpkv or self.priskv or self.eic or (self.infinistore and self.infinistore.protocol == "RDMA"))


class OwnMemory(Model):
    """KV in each rank's own memory: a share of `cpuTierGiBPerNode`, or what the engine's own memory leaves.

    `engineGiBPerRank` is what each rank needs beside it, in GiB.
    """

    cpu_tier_gib_per_node: Int | None = Field(None, alias="cpuTierGiBPerNode", ge=1, le=65536)
    engine_gib_per_rank: Int = Field(20, alias="engineGiBPerRank", ge=1, le=1024)


class Offloading(OwnMemory):
    """AIBrix's L1, and the L2 behind it where there is one."""

    eviction_policy: Literal["S3FIFO", "LRU", "FIFO"] = "S3FIFO"
    l2: L2 | None = None


class Servers(Model):
    """The servers that AIBrix's controller runs: each holds `memoryGiBPerReplica`."""

    replicas: Int = Field(1, ge=1, le=64)
    memory_gib_per_replica: Int = Field(alias="memoryGiBPerReplica", ge=1, le=4096)


class InfiniStoreServers(Servers):
    """InfiniStore's servers, and where they are written down. `protocol` is the engines'."""

    metadata: Metadata = Field(default_factory=Metadata)
    protocol: Transport = "RDMA"
    link_type: LinkType = "Ethernet"


class Vineyard(Servers, OwnMemory):
    """Vineyard's servers, which engines reach by a socket of their node, and the etcd between them."""

    etcd: EtcdProvision = Field(default_factory=EtcdProvision)


class Distributed(Model):
    """A distributed KV cache that AIBrix's controller runs."""

    infinistore: InfiniStoreServers | None = None
    vineyard: Vineyard | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(infinistore=self.infinistore, vineyard=self.vineyard)
        return self


class AIBrix(Model):
    """AIBrix's block."""

    offloading: Offloading | None = None
    distributed: Distributed | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(offloading=self.offloading, distributed=self.distributed)
        return self

    @property
    def l2(self) -> L2 | None:
        """The store that is there already; None for one that the tier runs, or none."""
        return self.offloading.l2 if self.offloading else None

    @property
    def servers(self) -> InfiniStoreServers | None:
        """The InfiniStore that the tier runs."""
        return self.distributed.infinistore if self.distributed else None

    @property
    def vineyard(self) -> Vineyard | None:
        """The Vineyard that the tier runs."""
        return self.distributed.vineyard if self.distributed else None

    @property
    def metadata(self) -> Metadata | None:
        """Where a store's members are written down."""
        return self.servers.metadata if self.servers else self.l2.metadata if self.l2 else None


class Selector(Model):
    """What a device must be, as a CEL expression."""

    cel: str = Field(min_length=1, max_length=10240)


class DRA(Model):
    """NICs by DRA claim."""

    device_class_name: ObjectName
    selectors: tuple[Selector, ...] = Field((), max_length=8)
    align_with_gpu: Bool = Field(default=False, alias="alignWithGPU")


class ExtendedResource(Model):
    """NICs by a device plugin's resource."""

    name: str = Field(max_length=316, pattern=RESOURCE)


class Count(Model):
    """How many NICs each pod asks for."""

    count: Int = Field(ge=0, le=64)


# Ports that every node has taken.
_TAKEN = (
    (10248, 10256, "which are the kubelet's and kube-proxy's"),
    (30000, 60999, "which are the node ports and those of outgoing connections"),
)


class HostNetwork(Model):
    """The node's own network for agents and engines; agents listen on HOST_PORTS ports from `firstPort` on."""

    first_port: Int = Field(ge=1024, le=65000)

    @field_validator("first_port")
    @classmethod
    def _is_free(cls, first: int) -> int:
        for lowest, highest, whose in _TAKEN:
            if first <= highest and first + HOST_PORTS > lowest:
                raise ValueError(
                    f"it and the {HOST_PORTS - 1} ports after it must not be among {lowest} to {highest}, {whose}"
                )
        return first


class RDMA(Model):
    """How agents and engines reach the NICs. A claimed NIC is its pod's alone, so both are counted apart."""

    dra: DRA | None = None
    extended_resource: ExtendedResource | None = None
    agents: Count
    engines: Count
    net_devices: tuple[Annotated[str, Field(pattern=DEVICE, max_length=64)], ...] = Field((), max_length=64)
    gid_index: Int | None = Field(None, ge=0, le=255)
    host_network: HostNetwork | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(dra=self.dra, extendedResource=self.extended_resource)
        return self


class Monitoring(Model):
    """What Prometheus and Grafana get. `labels` are those that they select by."""

    pod_monitors: Bool = True
    alerts: Bool = True
    dashboard: Bool = True
    labels: dict[str, str] = Field(default_factory=dict)
    prometheus_namespace: str = Field("monitoring", pattern=NAMESPACE, max_length=63)


class GPUAccess(Model):
    """How an agent sees its node's GPUs without claiming them."""

    type: Literal["Runtime", "CDI"] = "Runtime"
    runtime_class_name: str = Field("nvidia", max_length=253)


class Toleration(Model):
    """A pod toleration; Kubernetes' own shape."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Int | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("a toleration without a key needs operator Exists, and tolerates every taint")
        if self.value is not None and self.operator == "Exists":
            raise ValueError("a toleration with operator Exists has no value; remove it, or use Equal")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with effect NoExecute only")
        return self

    def manifest(self) -> kube.Manifest:
        """Give the toleration as it stands in a pod."""
        return kube.prune(self.model_dump(by_alias=True))


class Placement(Model):
    """The nodes that run agents; engines follow."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", operator="Exists"),)
    gpu_access: GPUAccess = Field(default_factory=GPUAccess)
    priority_class_name: ObjectName | None = None
    gpus_per_node: Int | None = Field(None, ge=1, le=64)


class Images(Model):
    """Images that replace the release's."""

    lmcache: str | None = Field(None, max_length=512, pattern=IMAGE)
    mooncake: str | None = Field(None, max_length=512, pattern=IMAGE)
    etcd: str | None = Field(None, max_length=512, pattern=IMAGE)
    valkey: str | None = Field(None, max_length=512, pattern=IMAGE)
    exporter: str | None = Field(None, max_length=512, pattern=IMAGE)
    shell: str | None = Field(None, max_length=512, pattern=IMAGE)
    infinistore: str | None = Field(None, max_length=512, pattern=IMAGE)
    vineyard: str | None = Field(None, max_length=512, pattern=IMAGE)
    watcher: str | None = Field(None, max_length=512, pattern=IMAGE)


def _number_or_percent(value: object) -> int | str:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) and value >= 1
    if whole:
        return int(value)  # type: ignore[call-overload, no-any-return]
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?%|100%", value):
        return value
    raise ValueError("must be a number from 1 on or a percentage such as 10%")


NumberOrPercent = Annotated[int | str, BeforeValidator(_number_or_percent)]


class UpdateStrategy(Model):
    """How agents are replaced. `min_ready_seconds` is for how long each is ready before it counts."""

    type: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"
    max_unavailable: NumberOrPercent = 1
    min_ready_seconds: Int | None = Field(None, ge=0, le=86400)

    @model_validator(mode="after")
    def _rolls(self) -> Self:
        if self.type == "OnDelete" and "max_unavailable" in self.model_fields_set:
            raise ValueError("maxUnavailable goes with type RollingUpdate only; remove it for OnDelete")
        return self


def _release(name: str | None) -> str | None:
    if name is not None and name not in releases.RELEASES:
        raise ValueError(f"this function knows the releases {', '.join(releases.RELEASES)}")
    return name


Release = Annotated[str | None, AfterValidator(_release)]


class AllowedNamespaces(Model):
    """Who may name this tier."""

    from_: Literal["All", "Same"] = Field("All", alias="from")


BACKENDS = ("LMCache", "Mooncake", "Nixl", "HiCache", "AIBrix")
BLOCKS = tuple(name.lower() for name in BACKENDS)


class TierSpec(Model):
    """The whole spec of a KVOffloadTier."""

    inference_cluster_ref: Ref
    backend: Literal["LMCache", "Mooncake", "Nixl", "HiCache", "AIBrix"]
    target_namespace: str = Field("default", pattern=NAMESPACE, max_length=63)
    allowed_namespaces: AllowedNamespaces = Field(default_factory=AllowedNamespaces)
    release: Release = None
    lmcache: LMCache | None = None
    mooncake: Mooncake | None = None
    nixl: Nixl | None = None
    hicache: HiCache | None = None
    aibrix: AIBrix | None = None
    rdma: RDMA | None = None
    placement: Placement = Field(default_factory=Placement)
    images: Images = Field(default_factory=Images)
    update_strategy: UpdateStrategy = Field(default_factory=UpdateStrategy)
    monitoring: Monitoring | None = None

    @property
    def l3_ref(self) -> str | None:
        """The tier that stands behind this one; None for none."""
        l3 = self.hicache.l3 if self.hicache else None
        if l3 is None or l3.tier_ref is None:
            return None
        if l3.tier_ref.kind == "KVOffloadFleet":
            return kube.tier_of_fleet(l3.tier_ref.name, self.inference_cluster_ref.name)
        return l3.tier_ref.name

    @property
    def storeless(self) -> str | None:
        """What this tier has instead of a store that may stand behind another one; None where it has a store."""
        if self.nixl and self.nixl.p2p:
            return "nixl.p2p"
        if self.aibrix and not (self.aibrix.l2 or self.aibrix.servers):
            return "aibrix.distributed.vineyard" if self.aibrix.vineyard else "aibrix.offloading without l2"
        return None

    @model_validator(mode="before")
    @classmethod
    def _blocks_of_backend(cls, spec: Any) -> Any:
        if not isinstance(spec, dict) or spec.get("backend") not in BACKENDS:
            return spec
        hicache = spec.get("hicache")
        l3 = hicache.get("l3") if isinstance(hicache, dict) else None
        behind = l3.get("backend") if isinstance(l3, dict) else None
        # LMCache is none of those that may stand behind, and says so itself.
        fields = {
            "spec.backend": spec.get("backend"),
            "spec.hicache.l3.backend": behind if behind != "LMCache" else None,
        }
        for block in BLOCKS:
            takes = [f"{f} is {v}" for f, v in fields.items() if isinstance(v, str) and v.lower() == block]
            if takes and block not in spec:
                raise ValueError(f"spec.{block} is required when {takes[0]}")
            if not takes and block in spec:
                raise ValueError(f"spec.{block} does not go with spec.backend {spec.get('backend')}; remove it")
        return spec

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        self._has_its_nics()
        if self.hicache and self.aibrix and not (self.aibrix.l2 or self.aibrix.servers):
            raise ValueError(
                "hicache.l3.backend AIBrix needs aibrix.offloading.l2 or aibrix.distributed.infinistore, since nothing "
                "else of AIBrix's is a store for SGLang"
            )
        if self.hicache and self.nixl and not self.nixl.storage:
            raise ValueError("hicache.l3.backend Nixl needs nixl.storage, since nixl.p2p stores nothing")
        return self

    def _has_its_nics(self) -> None:
        """Refuse NICs that nothing uses, and what moves KV by NICs without any."""
        rdma, mooncake, aibrix = self.rdma, self.mooncake, self.aibrix
        by_mooncake = mooncake is not None and mooncake.protocol == "RDMA"
        p2p = self.nixl is not None and self.nixl.p2p is not None
        servers, l2 = (aibrix.servers, aibrix.l2) if aibrix else (None, None)
        if rdma and not (by_mooncake or p2p or servers or (l2 and l2.by_nics)):
            raise ValueError(
                "spec.rdma goes with what moves KV by it, which is mooncake with protocol RDMA, nixl.p2p, and of "
                "aibrix distributed.infinistore and an l2 other than shfs, rocksdb and infinistore with protocol TCP: "
                "set one of these, or remove rdma"
            )
        if rdma and (p2p or l2) and (rdma.agents.count or not rdma.engines.count):
            raise ValueError(
                "spec.rdma with nixl.p2p or aibrix.offloading needs engines.count of at least 1 and agents.count 0, "
                "since only engines move KV and no agent has a NIC"
            )
        if l2 and l2.by_nics and not rdma:
            raise ValueError(
                "aibrix.offloading.l2 is reached by RDMA, for which engines need NICs: set spec.rdma, or with "
                "infinistore protocol to TCP"
            )
        if servers and not (rdma and rdma.agents.count and bool(rdma.engines.count) == (servers.protocol == "RDMA")):
            raise ValueError(
                "aibrix.distributed.infinistore needs spec.rdma, with agents.count of at least 1, since its servers do "
                "not start without a NIC, and engines.count of at least 1 with protocol RDMA, and 0 with TCP"
            )
        if aibrix and rdma and rdma.host_network:
            raise ValueError(
                "rdma.hostNetwork does not go with aibrix, whose servers and list of members let in pods by their "
                "labels: remove it"
            )
        if by_mooncake and not (rdma and rdma.agents.count and rdma.engines.count):
            raise ValueError(
                "mooncake.protocol RDMA needs spec.rdma, with agents.count and engines.count of at least 1, since a "
                "NIC on one side only fails at transfer: set both, or mooncake.protocol to TCP"
            )
