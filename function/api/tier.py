"""KVOffloadTier: the spec a platform team writes, with the defaults and rules of apis/kvoffloadtier.yaml."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from function import kube, releases
from function.api import Bool, Disk, Int, Model, Name, Ref


class Mode(StrEnum):
    """Where LMCache holds KV: in a node's agent, in the engine's own process, or whichever an engine can speak."""

    AUTO = "Auto"
    MULTIPROCESS = "Multiprocess"
    IN_PROCESS = "InProcess"


class SecretRef(Model):
    """The Redis credentials, in the tier's namespace, or in its targetNamespace with `onCluster`."""

    name: Name
    username_key: Name = "username"
    password_key: Name = "password"  # noqa: S105 (a key, no password)
    url_key: Name | None = None
    on_cluster: Bool = False


class Redis(Model):
    """A Redis or Valkey that is there already."""

    host: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    port: Int = Field(6379, ge=1, le=65535)
    tls: Bool = False
    mode: Literal["Standalone", "Cluster"] = "Standalone"
    secret_ref: SecretRef | None = None
    max_capacity_gib: Int | None = Field(None, alias="maxCapacityGiB", ge=1, le=1048576)


class Remote(Model):
    """The remote store behind every node's own cache."""

    redis: Redis


class HostPath(Model):
    """A folder that each node has."""

    path: str = Field(pattern=r"^/[^:]+$", max_length=1024)


class DiskTier(Model):
    """A node's disk: a volume of a storage class, or a folder of the node."""

    size_per_node: Disk
    storage_class_name: Name | None = None
    host_path: HostPath | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.storage_class_name is None) == (self.host_path is None):
            raise ValueError("set exactly one of storageClassName and hostPath")
        return self


class LMCache(Model):
    """LMCache's block. Sizes are per node: GiB of host memory, and a quantity of disk."""

    cpu_tier_gib_per_node: Int = Field(alias="cpuTierGiBPerNode", ge=1, le=65536)
    disk_tier: DiskTier | None = None
    remote: Remote | None = None
    mode: Mode = Mode.AUTO
    ipc: Literal["Isolated", "Shared"] = "Isolated"
    chunk_size: Int = Field(256, ge=16, le=16384, multiple_of=16)

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
        return self


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
    gpu_access: GPUAccess = GPUAccess()
    priority_class_name: Name | None = None
    gpus_per_node: Int | None = Field(None, ge=1, le=64)


class Images(Model):
    """Images that replace the release's."""

    lmcache: str | None = Field(None, max_length=512, pattern=r"^[^ ]+(:[^ :/]+|@sha256:[0-9a-f]{64})$")


def _number_or_percent(value: object) -> int | str:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) and value >= 1
    if whole:
        return int(value)  # type: ignore[call-overload, no-any-return]
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?%|100%", value):
        return value
    raise ValueError("must be a number from 1 on or a percentage such as 10%")


class UpdateStrategy(Model):
    """How agents are replaced."""

    type: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"
    max_unavailable: Annotated[int | str, BeforeValidator(_number_or_percent)] = 1

    @model_validator(mode="after")
    def _rolls(self) -> Self:
        if self.type == "OnDelete" and "max_unavailable" in self.model_fields_set:
            raise ValueError("maxUnavailable goes with type RollingUpdate only; remove it for OnDelete")
        return self


class AllowedNamespaces(Model):
    """Who may name this tier."""

    from_: Literal["All", "Same"] = Field("All", alias="from")


class TierSpec(Model):
    """The whole spec of a KVOffloadTier."""

    inference_cluster_ref: Ref
    backend: Literal["LMCache"]
    target_namespace: str = Field("default", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    release: str | None = None
    lmcache: LMCache
    placement: Placement = Placement()
    images: Images = Images()
    update_strategy: UpdateStrategy = UpdateStrategy()

    @model_validator(mode="before")
    @classmethod
    def _block_of_backend(cls, spec: Any) -> Any:
        if isinstance(spec, dict) and spec.get("backend") == "LMCache" and "lmcache" not in spec:
            raise ValueError("spec.lmcache is required when spec.backend is LMCache")
        return spec

    @field_validator("release")
    @classmethod
    def _known(cls, release: str | None) -> str | None:
        if release is not None and release not in releases.RELEASES:
            raise ValueError(f"this function knows the releases {', '.join(releases.RELEASES)}")
        return release
