"""ModelDeployment: the spec an ML team writes, with the defaults and rules of apis/standalone/modeldeployment.yaml."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from function import kube
from function.api import VERSION, Amount, Int, Model, Name, Ref


class TierRef(Model):
    """The tier by name, or the fleet that has one on the engine's cluster."""

    name: Name
    namespace: Name = kube.SYSTEM_NAMESPACE
    kind: Literal["KVOffloadTier", "KVOffloadFleet"] = "KVOffloadTier"

    @property
    def of_fleet(self) -> bool:
        """Whether which tier it is follows from the cluster."""
        return self.kind == "KVOffloadFleet"


class KVCache(Model):
    """The offload tier that this engine uses, and what it does while it cannot have it."""

    tier_ref: TierRef
    on_unavailable: Literal["Wait", "ServeWithout"] = "Wait"
    identity: str | None = Field(None, min_length=1, max_length=253)
    role: Literal["Prefill", "Decode"] | None = None


class EnvVar(Model):
    """An environment variable; Kubernetes' own shape."""

    name: Name
    value: str | None = None
    value_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("set only one of value and valueFrom")
        return self

    def manifest(self) -> kube.Manifest:
        """Give the variable as it stands in a container."""
        return kube.prune(self.model_dump(by_alias=True))


class Claim(Model):
    """A GPU claim by DRA: a ResourceClaimTemplate on the inference cluster."""

    name: Name
    resource_claim_template_name: Name


class Resources(Model):
    """What the engine's container asks for."""

    requests: dict[str, Amount] = Field(default_factory=dict)
    limits: dict[str, Amount] = Field(default_factory=dict)
    claims: tuple[Claim, ...] = ()


class Engine(Model):
    """The engine's container."""

    name: Literal["vLLM", "SGLang"]
    image: str = Field(min_length=1, max_length=512)
    version: str | None = Field(None, pattern=VERSION)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    resources: Resources | None = None
    kv_cache: KVCache | None = None


class DeploymentSpec(Model):
    """The whole spec of a ModelDeployment."""

    engine: Engine
    replicas: Int = Field(1, ge=0, le=1000)
    inference_cluster_ref: Ref | None = None

    @model_validator(mode="after")
    def _has_cluster(self) -> Self:
        if self.inference_cluster_ref is None and self.engine.kv_cache is None:
            raise ValueError(
                "inferenceClusterRef is required without engine.kvCache.tierRef, whose cluster it would be"
            )
        if self.inference_cluster_ref is None and self.engine.kv_cache and self.engine.kv_cache.tier_ref.of_fleet:
            raise ValueError(
                "inferenceClusterRef is required with engine.kvCache.tierRef.kind KVOffloadFleet, which has a tier on "
                "each of its clusters"
            )
        return self
