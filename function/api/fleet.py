"""KVOffloadFleet: one tier for many clusters, with the defaults and rules of apis/kvoffloadfleet.yaml."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from function import api, kube
from function.api import Bool, Int, Invalid, Model
from function.api.tier import NumberOrPercent, Release, TierSpec

# The fields of a tier that differ from cluster to cluster, by their paths; a block stands for all that is in it.
OVERRIDABLE = (
    "lmcache.cpuTierGiBPerNode",
    "lmcache.diskTier",
    "mooncake.segmentGiBPerNode",
    "mooncake.disk",
    "nixl.storage.cpuTierGiBPerNode",
    "nixl.storage.fs",
    "hicache.hostMemoryGiBPerNode",
    "aibrix.offloading.cpuTierGiBPerNode",
    "aibrix.offloading.l2.shfs",
    "aibrix.offloading.l2.rocksdb",
    "aibrix.distributed.vineyard.cpuTierGiBPerNode",
    "rdma",
    "placement",
    "images",
)
# What a tier gets from elsewhere than its fleet's template.
OF_FLEET = ("inferenceClusterRef", "release")

# Of these a tier has one: an override that sets one of them takes the place of the other.
_UNIONS = (frozenset({"storageClassName", "hostPath"}), frozenset({"dra", "extendedResource"}))


def _known(value: object) -> object:
    """Refuse what an override cannot set; the API server does that by the schema."""
    if isinstance(value, dict):
        for path in _paths(value):
            if not any(path == known or path.startswith(f"{known}.") for known in OVERRIDABLE):
                raise ValueError(f"{path} cannot be overridden; these can: {', '.join(OVERRIDABLE)}")
    return value


def _paths(value: Mapping[str, Any], base: str = "") -> Sequence[str]:
    """List the fields that hold something else than a block that is not overridable as a whole."""
    found: list[str] = []
    for name, inner in value.items():
        path = f"{base}{name}"
        within = any(known.startswith(f"{path}.") for known in OVERRIDABLE)
        found += _paths(inner, f"{path}.") if within and isinstance(inner, dict) else [path]
    return found


class Labels(Model):
    """Clusters by their labels; none selects all."""

    match_labels: dict[str, str] = Field(default_factory=dict)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether something with these labels is selected."""
        return self.match_labels.items() <= labels.items()


class Override(Labels):
    """What is different on some clusters: part of a tier's spec."""

    spec: Annotated[dict[str, Any], BeforeValidator(_known)] = Field(default_factory=dict)


class Template(Model):
    """The spec of each tier, but for what OF_FLEET names."""

    spec: dict[str, Any]


class Canary(Model):
    """The clusters that get a change before all others."""

    match_labels: dict[str, str] = Field(min_length=1)


class Rollout(Model):
    """How a change goes through the clusters."""

    canary: Canary | None = None
    max_unavailable: NumberOrPercent = 1
    max_cold_clusters: Int = Field(1, ge=1, le=10000)
    min_ready_seconds: Int | None = Field(None, ge=0, le=86400)
    approved_revision: str | None = Field(None, min_length=1, max_length=63)
    paused: Bool = False

    def most(self, clusters: int) -> int:
        """How many clusters of so many may be away at once: a percentage is rounded down, and one always may."""
        if isinstance(self.max_unavailable, int):
            return self.max_unavailable
        return max(1, clusters * int(self.max_unavailable.rstrip("%")) // 100)

    def is_canary(self, labels: Mapping[str, str]) -> bool:
        """Whether a cluster with these labels gets a change first."""
        return self.canary is not None and self.canary.match_labels.items() <= labels.items()


class FleetSpec(Model):
    """The whole spec of a KVOffloadFleet."""

    cluster_selector: Labels
    template: Template
    overrides: tuple[Override, ...] = Field((), max_length=16)
    release: Release = None
    rollout: Rollout = Field(default_factory=Rollout)

    @model_validator(mode="after")
    def _of_template(self) -> Self:
        if given := [name for name in OF_FLEET if name in self.template.spec]:
            raise ValueError(f"spec.template.spec.{given[0]} is not the template's to say; remove it")
        return self

    def overridden_by(self, labels: Mapping[str, str]) -> tuple[int, ...]:
        """Say which overrides a cluster with these labels has, by their places in the list."""
        return tuple(at for at, override in enumerate(self.overrides) if override.matches(labels))

    def tier(self, overrides: Sequence[int], release: str) -> TierSpec:
        """Give the spec of the tiers that have these overrides, on a cluster that has no name yet.

        Args:
            overrides: Which overrides, the last of which wins.
            release: The release of all of the fleet's tiers.

        Raises:
            Invalid: it is none that can be composed; the text names the template's field, and the overrides.
        """
        spec = self.template.spec
        for at in overrides:
            spec = _merged(spec, self.overrides[at].spec)
        if self.rollout.min_ready_seconds is not None:
            spec = _merged(spec, {"updateStrategy": {"minReadySeconds": self.rollout.min_ready_seconds}})
        try:
            found = api.parse(TierSpec, {**spec, "inferenceClusterRef": {"name": "-"}, "release": release})
        except Invalid as e:
            where = f" (with {', '.join(f'spec.overrides[{at}]' for at in overrides)})" if overrides else ""
            raise Invalid(re.sub(r"\bspec\.", "spec.template.spec.", str(e)) + where) from None
        behind = found.hicache.l3.tier_ref if found.hicache and found.hicache.l3 else None
        if behind and behind.kind != "KVOffloadFleet":
            raise Invalid(
                f"spec.template.spec.hicache.l3.tierRef.kind (is {behind.kind!r}): a tier is on one cluster, so name a "
                "fleet that has one on each: KVOffloadFleet"
            )
        return found


def canonical(spec: TierSpec) -> kube.Manifest:
    """Write a tier's spec without its cluster and without defaults: the same for all ways to write the same."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"inference_cluster_ref"})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one spec over another, field by field; a list is a field."""
    found = dict(base)
    for name, value in over.items():
        for union in _UNIONS:
            if name in union:
                found = {other: kept for other, kept in found.items() if other not in union - {name}}
        held = found.get(name)
        found[name] = _merged(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return found
