"""Engines: what a ModelDeployment runs, and what a backend may ask about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from function import kube
from function.engines import kv_transfer, table, versions
from function.engines.args import CommandLine
from function.engines.identity import Identity
from function.engines.kind import Kind
from function.engines.versions import Bundled, Version


@dataclass(frozen=True)
class Engine:
    """What a backend sees of an engine when it decides how to attach it.

    `version` is None where it is unknown. `line` is its command line. `role` is Prefill or Decode where the user has
    split the work. `env` are its own variables, None for a value that is not in the spec. `pods` is how many it runs
    in. `memory` is what its container asks for in bytes, 0 where it says nothing. `devices` are what its own claims ask
    for, by DeviceClass, and `pool` its nodes', where they are known; no patch depends on them.
    """

    kind: Kind
    image: str
    version: Version | None
    identity: Identity
    dra: bool
    line: CommandLine
    role: str | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    pods: int = 1
    memory: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)
    pool: str = ""

    @property
    def ranks(self) -> int:
        """TP x PP x DP, the processes in each of its pods."""
        return self.kind.ranks(self.line, self.pods)

    @property
    def spans(self) -> bool:
        """Whether the ranks of one replica are in several pods, and so on several nodes."""
        return self.kind.spans(self.line, self.pods)

    @property
    def env_names(self) -> frozenset[str]:
        """The names of its own variables."""
        return frozenset(self.env)

    @property
    def settings(self) -> list[tuple[str, str | None]]:
        """Those of its own variables, by name, that may change how it lays KV out."""
        kind = self.kind
        return sorted((n, v) for n, v in self.env.items() if n.startswith(kind.prefix) and n not in kind.harmless_env)

    @property
    def facts(self) -> list[object]:
        """Everything that a backend may decide by, as JSON can hold it."""
        asked = [self.kind.name, self.image, self.version, self.identity.value, self.role]
        # Left out where nobody says it, so that a basis from before it was looked at still holds.
        memory = [self.memory] if self.memory else []
        return [*asked, self.line.written, dict(self.env), self.dra, self.ranks, self.pods, *memory]

    def bundled(self, library: str) -> Bundled:
        """What its image is known to hold of a library."""
        return versions.bundled(self.image, library)

    @property
    def lmcache(self) -> Version | None:
        """The LMCache in its image, None where unknown."""
        return self.bundled(table.LMCACHE).version

    @property
    def keyspace(self) -> str:
        """A hash of what engines have to agree on to share a store whose keys hold no more than tokens and a rank.

        The version is part of it, since no engine promises that another version's pages look alike, and so are the
        engine's own variables, some of which choose the layout.
        """
        layout: list[object] = [self.kind.layout(self.line), self.version, *self.settings]
        # A connector that moves KV between engines has it laid out by heads.
        if self.kind.kv_transfer and (beside := kv_transfer.transports(kv_transfer.of(self.line))):
            layout.append(beside)
        return kube.digest([self.identity.value, self.identity.lora, *layout])[:12]
