"""What every backend is: a Protocol, and the data that it takes and returns.

A backend returns data and never sees a response: Parts for what a tier runs, a patch or a refusal for an engine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from function import kube, releases
from function.api.tier import TierSpec
from function.engines import Engine


@dataclass(frozen=True)
class Tier:
    """A tier as backends see it: whose it is, what it says, and what it latched.

    `release` and `gpus_per_node` are what it was first composed with: pools that come and go change nothing.
    """

    namespace: str
    name: str
    spec: TierSpec
    release: releases.Release
    gpus_per_node: int | None = None

    @property
    def instance(self) -> str:
        """The one name that everything of this tier has on the inference cluster."""
        return kube.child_name("kvtier", self.namespace, self.name)

    @property
    def labels(self) -> dict[str, str]:
        """What everything of this tier is labelled with on the inference cluster."""
        return {"app.kubernetes.io/instance": self.instance, **kube.MANAGED_BY}

    def selector(self, component: str) -> dict[str, str]:
        """The labels that tell one component's pods of this tier."""
        return {"app.kubernetes.io/instance": self.instance, "app.kubernetes.io/component": component}

    def metadata(self, component: str | None = None) -> kube.Manifest:
        """The metadata of a manifest of this tier: all have one name, and their kinds tell them apart."""
        labels = self.labels | (self.selector(component) if component else {})
        return {"name": self.instance, "namespace": self.spec.target_namespace, "labels": labels}

    @property
    def ref(self) -> str:
        """The tier as people write it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Site:
    """What a backend has to know of the inference cluster. `gpus_per_node` is the largest pool's; None if unknown."""

    gpus_per_node: int | None = None


@dataclass(frozen=True)
class Part:
    """One manifest for the inference cluster.

    `name` is stable and unique within the composite. `ready` is a CEL query over `object`; empty: ready once created.
    `version` stands for a Secret's bytes in the part's hash, so that no hash of a secret is ever published.
    `annotations` go on the Object that carries the manifest, not on the manifest. `after` names a part without which a
    change of this one would only take down what runs.
    """

    name: str
    manifest: kube.Manifest
    ready: str = ""
    version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    after: str = ""


@dataclass(frozen=True)
class Credential:
    """A resolved Secret: base64 data by key, and a version that changes with it."""

    data: Mapping[str, str]
    version: str


@dataclass(frozen=True)
class Plan:
    """What a tier runs. `held` names parts that cannot be computed now, and stay as they are observed.

    `memory` is a node's budget in GiB, for people to read. `agents` tells whether there is a DaemonSet named AGENTS.
    """

    parts: Sequence[Part]
    held: Sequence[str] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    agents: bool = True


AGENTS = "agents"
CONNECTOR = "connector"
CREDENTIALS = "credentials"


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
    """Something that an ML engineer should know about an attachment: a warning condition by type."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """Why an engine is not attached: reason and message of the condition."""

    reason: str
    message: str


@dataclass(frozen=True)
class EnginePatch:
    """What an attachment adds to an engine's pod; pure data, kept as JSON on the engine's Object.

    `tier` and `connector` say to what and how. `identity`, `since` and `library_since` tell which engine: the hash of
    its cache identity, and the lowest versions of it and of its LMCache, or the like, that the rest is written for.
    `guards` are variables that must not be the user's. `env`, `mounts` and `args` go into the engine's container, the
    rest into the pod. `affinity` holds nodeSelectorTerms.
    """

    tier: str
    connector: str
    identity: str = ""
    since: Sequence[int] = ()
    library_since: Sequence[int] = ()
    guards: Sequence[str] = ()
    env: Sequence[kube.Manifest] = ()
    args: Sequence[str] = ()
    mounts: Sequence[kube.Manifest] = ()
    volumes: Sequence[kube.Manifest] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Sequence[kube.Manifest] = ()
    tolerations: Sequence[kube.Manifest] = ()
    notices: Sequence[Notice] = ()

    def to_json(self) -> str:
        """Write the patch as the latch holds it."""
        return kube.compact(kube.prune({**vars(self), "notices": [vars(n) for n in self.notices]}))

    @classmethod
    def from_json(cls, text: str) -> "EnginePatch":
        """Read a latch back; raises ValueError or TypeError for one that this class did not write."""
        raw: dict[str, Any] = json.loads(text)
        return cls(**{**raw, "notices": tuple(Notice(**n) for n in raw.get("notices", ()))})

    def holds(self, engine: Engine) -> bool:
        """Tell whether this patch is still right for an engine that may have changed since."""
        return (
            self.identity == engine.identity.digest
            and (engine.version is None or engine.version >= tuple(self.since))
            and (engine.lmcache is None or engine.lmcache >= tuple(self.library_since))
            and engine.env_names.isdisjoint(self.guards)
        )

    def with_notice(self, notice: Notice) -> "EnginePatch":
        """Add a notice."""
        return replace(self, notices=(*self.notices, notice))


class Backend(Protocol):
    """What every backend does."""

    def credentials(self, tier: Tier) -> str | None:
        """Name the Secret of the tier's namespace that has to be read; None if there is none to read."""
        ...

    def plan(self, tier: Tier, site: Site, credential: Credential | None) -> Plan:
        """Plan what the tier runs on a site.

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
