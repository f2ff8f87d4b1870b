"""What differs between engines: how each is started, reached, and read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from function.engines.args import CommandLine
from function.engines.table import Row


@dataclass(frozen=True)
class Kind:
    """One engine.

    `repository` is the word that tells its images, `program` the one that tells its command line. `command` starts it
    where the user gives none and no image does. `listen` goes behind the user's args where those do not say it.
    `own_wiring` are flags by which a user wires a cache by hand, next to which a tier adds nothing; `kv_transfer` says
    whether it has a flag for connectors, which may be several. `harmless` options change no KV; `lora` ones load
    adapters; `source_env` are variables that change what a model's name means. Variables that begin with `prefix` may
    change how KV is laid out, but `harmless_env`. `ranks` counts the processes, and so the GPUs, of each of so many
    pods, `spans` says whether one replica's are in several of them, and `layout` says how KV is split among them, which
    a store's keys may leave out. `attached` is the version table's row for what is attached at all.
    `example` is a version for messages.
    """

    name: str
    repository: str
    port: int
    command: Sequence[str]
    listen: Sequence[str]
    model: Sequence[str]
    own_wiring: Sequence[str]
    harmless: frozenset[str]
    lora: Sequence[str]
    source_env: Sequence[str]
    prefix: str
    harmless_env: frozenset[str]
    kv_transfer: bool
    program: str
    ranks: Callable[[CommandLine, int], int]
    spans: Callable[[CommandLine, int], bool]
    layout: Callable[[CommandLine], Sequence[int]]
    attached: Row
    example: str
