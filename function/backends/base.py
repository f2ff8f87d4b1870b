"""What every backend is: a Protocol, and the data that it takes and returns.

A backend returns data and never sees a response: Parts for what a tier runs, a patch or a refusal for an engine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from function import kube, releases
from function.api.tier import TierSpec
from function.engines import Engine, table, versions

# A StatefulSet's pods carry its name and a hash in one label, of 63 characters at most; "-master" has to fit in too.
_LONGEST_INSTANCE = 45


def instance(namespace: str, name: str) -> str:
    """Name the tier of this namespace and name on an inference cluster; also the value of kube.LABEL_TIER."""
    return kube.child_name("kvtier", namespace, name, longest=_LONGEST_INSTANCE)


@dataclass(frozen=True)
class Tier:
    """A tier as backends see it: whose it is, what it says, and what it latched.

    `release` and `gpus_per_node` are what it was first composed with: pools that come and go change nothing. By `uid`
    it is told from another one that had its name before.
    """

    namespace: str
    name: str
    spec: TierSpec
    release: releases.Release
    gpus_per_node: int | None = None
    uid: str = ""

    @property
    def instance(self) -> str:
        """The name that everything of this tier has on the inference cluster, or begins with."""
        return instance(self.namespace, self.name)

    def named(self, component: str = "") -> str:
        """Name what a component has of its own, where a tier has several of a kind."""
        return f"{self.instance}-{component}" if component else self.instance

    def host(self, component: str = "") -> str:
        """The DNS name of a component's Service, as the cluster's pods resolve it."""
        return f"{self.named(component)}.{self.spec.target_namespace}.svc"

    @property
    def labels(self) -> dict[str, str]:
        """What everything of this tier is labelled with on the inference cluster."""
        return {"app.kubernetes.io/instance": self.instance, **kube.MANAGED_BY}

    def selector(self, component: str) -> dict[str, str]:
        """The labels that tell one component's pods of this tier."""
        return {"app.kubernetes.io/instance": self.instance, "app.kubernetes.io/component": component}

    def metadata(self, component: str | None = None, name: str = "") -> kube.Manifest:
        """The metadata of a manifest of this tier, labelled with its component, and named `name` or as the tier is."""
        labels = self.labels | (self.selector(component) if component else {})
        return {"name": self.named(name), "namespace": self.spec.target_namespace, "labels": labels}

    @property
    def ref(self) -> str:
        """The tier as people write it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Site:
    """What a backend has to know of the inference cluster, and of the tier behind this one.

    `gpus_per_node` is the largest pool's, None if unknown. `l3` is the tier that `spec.hicache.l3.tierRef` names.
    `known` is False while nobody has read the cluster yet. `pools` are what a node of each pool can hand out by claim,
    by DeviceClass.
    """

    gpus_per_node: int | None = None
    l3: Tier | None = None
    known: bool = True
    pools: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One manifest for the inference cluster.

    `name` is stable and unique within the composite. `ready` is a CEL query over `object`; empty: ready once created.
    `version` stands for a Secret's bytes in the part's hash, so that no hash of a secret is ever published.
    `annotations` go on the Object that carries the manifest, not on the manifest. `after` names a part without which a
    change of this one would only take down what runs. `loses` ends the sentence that says what a restart of it costs.
    `maker` is who else makes it on the cluster: such a part is looked at, and never written nor deleted; its `version`
    is the kube.ANNOTATION_CONFIG that its pod template should have.
    """

    name: str
    manifest: kube.Manifest
    ready: str = ""
    version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    after: str = ""
    loses: str = ""
    maker: str = ""


@dataclass(frozen=True)
class Credential:
    """A resolved Secret: base64 data by key, and a version that changes with it."""

    data: Mapping[str, str]
    version: str


# In place of a Secret's name: credentials that are drawn once, and kept in the part's own Secret.
DRAWN = ""
# The key of a drawn password's version, which stands for it in hashes; its Secret has to hold both.
DRAWN_AT = "drawn"


@dataclass(frozen=True)
class Plan:
    """What a tier runs. `held` names parts that cannot be computed now, and stay as they are observed.

    A held part that is among `parts` as well is put where none is observed yet.

    A part named AGENTS is the DaemonSet of its agents, one named CONNECTOR the ConfigMap that engines mount.
    Deployments and StatefulSets are its control plane. `memory` is a node's budget in GiB, for people to read.
    `notices` are what a platform engineer should know about it.
    """

    parts: Sequence[Part]
    held: Sequence[str] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    notices: Sequence["Notice"] = ()

    def part(self, name: str) -> Part | None:
        """Find a part by its name; None where this plan has none."""
        return next((p for p in self.parts if p.name == name), None)


AGENTS = "agents"
CONNECTOR = "connector"
CREDENTIALS = "credentials"


Block = TypeVar("Block")


def given(block: Block | None) -> Block:
    """Give the block of a tier's spec that its backend requires."""
    assert block is not None
    return block


class Invalid(Exception):
    """A spec that is well-formed, but cannot be composed on this site; the text names the field and the fix."""


class CredentialError(Exception):
    """A Secret that lacks something; the text names the key and never a value. `reason` is the condition's."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the condition's reason beside its message."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Notice:
    """Something that people should know about a tier or an attachment: a warning condition by type."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """Why an engine is not attached: reason and message of the condition.

    `rules_out` are connectors by which the engine as it is now must not run, even if one of them attached it before.
    """

    reason: str
    message: str
    rules_out: Sequence[str] = ()


@dataclass(frozen=True)
class EnginePatch:
    """What an attachment adds to an engine's pod; pure data, kept as JSON on the engine's Object.

    `tier` and `connector` say to what and how, and `basis` stands for everything that this was decided by. `identity`,
    `since` and `library_since` tell which engine: its cache identity's hash or its keyspace, and the lowest versions of
    it and of its `library` that the rest is written for; `release` is that of the agents, where the library has to be
    of the same. `guards` are variables that must not be the user's. `kv_transfer` is vLLM's --kv-transfer-config, which
    goes beside the user's own. It, `env`, `mounts`, `args`, `resources` (extended ones, by name), `ports` and
    `capabilities` go into the engine's container, the rest into the pod. `devices` are DRA requests, for which whoever
    applies the patch finds a claim, with `align` one that puts them on the PCIe roots of the GPUs. `affinity` holds
    nodeSelectorTerms. `role` is the engine's, if the rest is written for it. `init_containers` run by the engine's
    image, and so have none of their own. `memory` is what all this makes a pod of the engine hold in host memory, in
    bytes; 0 where that is nothing, or not known. `engine_memory` is what each of its ranks is taken to need beside it,
    in bytes; 0 for what any engine is.
    """

    tier: str
    connector: str
    basis: str = ""
    identity: str = ""
    since: Sequence[int] = ()
    library: str | None = None
    library_since: Sequence[int] = ()
    release: Sequence[int] = ()
    guards: Sequence[str] = ()
    role: str | None = None
    kv_transfer: Mapping[str, Any] = field(default_factory=dict)
    env: Sequence[kube.Manifest] = ()
    args: Sequence[str] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[kube.Manifest] = ()
    align: bool = False
    ports: Sequence[kube.Manifest] = ()
    capabilities: Sequence[str] = ()
    host_network: bool = False
    mounts: Sequence[kube.Manifest] = ()
    volumes: Sequence[kube.Manifest] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Sequence[kube.Manifest] = ()
    tolerations: Sequence[kube.Manifest] = ()
    init_containers: Sequence[kube.Manifest] = ()
    notices: Sequence[Notice] = ()
    memory: int = 0
    engine_memory: int = 0

    def to_json(self) -> str:
        """Write the patch as the latch holds it."""
        own = {
            **vars(self),
            "basis": self.basis or None,
            "align": self.align or None,
            "host_network": self.host_network or None,
            "memory": self.memory or None,
            "engine_memory": self.engine_memory or None,
            "notices": [vars(n) for n in self.notices],
        }
        return kube.compact(kube.prune(own))

    @classmethod
    def from_json(cls, text: str) -> "EnginePatch":
        """Read a latch back; raises ValueError or TypeError for one that this class did not write."""
        raw: dict[str, Any] = json.loads(text)
        return cls(**{**raw, "notices": tuple(Notice(**n) for n in raw.get("notices", ()))})

    def holds(self, engine: Engine) -> bool:
        """Tell whether this patch is still right for an engine that may have changed since."""
        # Patches were LMCache's where they do not say it.
        library = self.library or table.LMCACHE
        held = engine.bundled(library)
        return (
            self.identity in (engine.identity.digest, engine.keyspace)
            and (engine.version is None or engine.version >= tuple(self.since))
            and (held.newest is None or held.newest >= tuple(self.library_since))
            and not (self.release and versions.apart(library, versions.exactly(self.release), held))
            and engine.env_names.isdisjoint(self.guards)
            and self.role in (None, engine.role)
        )

    def with_notice(self, notice: Notice) -> "EnginePatch":
        """Add a notice."""
        return replace(self, notices=(*self.notices, notice))


def gpus_per_node(tier: Tier, site: Site, needed_by: str) -> int:
    """Tell what a node's memory is divided by: as the tier says, else as it was first composed, else the largest pool.

    Raises:
        Invalid: nobody knows; `needed_by` is the field that needs it.
    """
    gpus = tier.spec.placement.gpus_per_node or tier.gpus_per_node or site.gpus_per_node
    if not gpus:
        raise Invalid(
            f"spec.placement.gpusPerNode is required with {needed_by}, since InferenceCluster "
            f"{tier.spec.inference_cluster_ref.name} reports no GPU pools"
        )
    return gpus


def suffices(field: str, node: int, gpus: int) -> None:
    """Raise Invalid where `node` GiB, as the tier's `field` says, are less than 1 GiB for each of a node's GPUs."""
    if node < gpus:
        raise Invalid(f"spec.{field} (is {node}) is less than 1 GiB for each of {gpus} GPUs; set at least {gpus}")


def unsupported(
    engine: Engine, kinds: Sequence[str], otherwise: str, oldest: table.Row | None = None
) -> Refusal | None:
    """Say why an engine cannot be attached whatever else it is: of another kind, or of no version that we know.

    Args:
        engine: The engine.
        kinds: The kinds of engine that the tier attaches.
        otherwise: What to do with an engine of another kind.
        oldest: What the oldest engine has that the tier attaches, where that is not the oldest of its kind.
    """
    name, oldest = engine.kind.name, oldest or engine.kind.attached
    if name not in kinds:
        return Refusal("EngineNotSupported", f"this tier attaches {' and '.join(kinds)}, not {name}; {otherwise}")
    if engine.version is None:
        return Refusal(
            "EngineVersionUnknown",
            f"the version of image {engine.image!r} cannot be told from its tag; set engine.version, as in "
            f"{engine.kind.example}",
        )
    if engine.version < oldest.since:
        return Refusal(
            "EngineVersionUnsupported",
            f"{name} {versions.show(engine.version)} is older than {versions.show(oldest.since)}, the "
            "oldest that is attached; use that or newer",
        )
    return None


def too_old(engine: Engine, row: table.Row, what: str) -> Refusal | None:
    """Say that an engine is too old for what a tier is attached by; None for one that is not."""
    if engine.version and not row.holds(engine.version):
        shown = f"{engine.kind.name} {versions.show(engine.version)}"
        newer = f"use {versions.show(row.since)} or newer, or a tier of another backend"
        return Refusal("EngineTooOld", f"{shown} has no {what}; {newer}")
    return None


class Backend(Protocol):
    """What every backend does."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the Secrets of the tier's namespace that have to be read, by the part that each is copied to.

        DRAWN in place of a name asks for a password that no person has chosen.
        """
        ...

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan what the tier runs on a site, with those of its Secrets that could be read, by part.

        Raises:
            Invalid: the spec cannot be composed there.
            CredentialError: the Secret lacks something.
        """
        ...

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Say what attaches an engine to the tier, or why it is not attached.

        Raises:
            Invalid: the spec cannot be composed there.
        """
        ...
