"""Engines: what a ModelDeployment runs, and what a backend may ask about it."""

from dataclasses import dataclass

from function import kube
from function.engines import table, versions
from function.engines.args import CommandLine
from function.engines.identity import Identity
from function.engines.kind import Kind
from function.engines.versions import Bundled, Version


@dataclass(frozen=True)
class Engine:
    """What a backend sees of an engine when it decides how to attach it.

    `ranks` is TP x PP x DP, the processes in one pod. `version` is None where it is unknown. `line` is its command
    line. `role` is Prefill or Decode where the user has split the work. `settings` are its own variables, by name, that
    may change how it lays KV out.
    """

    kind: Kind
    image: str
    version: Version | None
    identity: Identity
    ranks: int
    dra: bool
    env_names: frozenset[str]
    line: CommandLine
    role: str | None = None
    settings: tuple[tuple[str, str | None], ...] = ()

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
        layout = [self.kind.layout(self.line), self.version, *self.settings]
        return kube.digest([self.identity.value, self.identity.lora, *layout])[:12]
