"""Cache identity: what must be equal for two engines to share KV.

Backends key by the model string alone, so everything else that changes KV has to be part of an identity, and two
identities must never share keys. See docs/cache-identity.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from function import kube
from function.engines.args import REFERENCE, CommandLine
from function.engines.kind import Kind

_SEEDS = 2**32  # PYTHONHASHSEED is a decimal number below this, or Python does not start


@dataclass(frozen=True)
class Identity:
    """What an engine's KV may be shared under.

    `plain`: a hub id and nothing else that changes KV, so that the model string alone says everything.
    `vouched`: the user gave `kvCache.identity`.
    `lora`: the engine serves adapters, whose KV no LMCache version keys apart within one engine.
    `beside`: what keeps it from being plain, for messages.
    """

    value: str
    plain: bool
    vouched: bool
    lora: bool
    beside: str = ""

    @property
    def digest(self) -> str:
        """A hash that changes with the identity."""
        return kube.digest([self.value, self.lora])[:12]

    @property
    def seed(self) -> str:
        """The PYTHONHASHSEED of this identity: it seeds the first hash of every prefix chain."""
        return seed(self.value)


def seed(text: str) -> str:
    """Give the PYTHONHASHSEED of a text: a decimal number below 2**32."""
    return str(int(kube.digest(text)[:16], 16) % _SEEDS)


def is_hub_id(model: str) -> bool:
    """Tell a hub's `owner/name` from a path, of which every image has its own."""
    return model.count("/") == 1 and not model.startswith(("/", ".", "~")) and not model.endswith("/")


def options(kind: Kind, line: CommandLine) -> dict[str, str | None]:
    """Give an engine's options by name, but for its model and those that change no KV; the last of a name counts."""
    return dict(_written(kind, line))


def model(kind: Kind, line: CommandLine) -> str:
    """Give the model of a command line; empty where it names none."""
    return line.value(*kind.model) or line.positional or ""


def derive(
    kind: Kind,
    line: CommandLine,
    env: Mapping[str, str | None],
    *,
    image: str,
    owner: Sequence[str],
    vouched: str | None,
    unseen: bool = False,
) -> Identity:
    """Derive an engine's identity.

    Args:
        kind: Which engine it is: no two kinds share KV.
        line: The engine's command line.
        env: Its environment; None for a value that is not in the spec.
        image: Its image: part of the identity of a model that is read from a path.
        owner: Namespace and name of the deployment, for a model that only it can know.
        vouched: `kvCache.identity`, which stands for all of it.
        unseen: Whether it has variables that not even their names are known of (envFrom).

    Returns:
        The identity; equal inputs give equal identities, in any order of flags.
    """
    lora = bool(line.flags(*kind.lora))
    if vouched:
        return Identity(kube.compact({"identity": vouched}), plain=False, vouched=True, lora=lora)
    named, given = model(kind, line), options(kind, line)
    source = {name: env[name] for name in kind.source_env if name in env}
    facts: dict[str, object] = {"model": named, "options": given, "source": source}
    # Order matters only where two names may mean one option.
    if _ambiguous(given):
        facts["ordered"] = _written(kind, line)
    known = (named, *given, *(value or "" for value in given.values()))
    hidden = line.hidden or bool(line.flags("--config")) or any(REFERENCE.search(text) for text in known)
    hub = is_hub_id(named) and not hidden and None not in source.values() and not unseen
    if not hub:
        # Two deployments may mean two models by one path: nothing but this one's own pods may share.
        facts |= {"image": image, "owner": list(owner), "words": list(line.words)}
    told = "is a path, or hidden, or comes with variables that only the cluster knows"
    own = told if not hub else f"comes with {', '.join(sorted([*given, *source]))}"
    plain = hub and not given and not source
    return Identity(kube.compact(facts), plain=plain, vouched=False, lora=lora, beside="" if plain else own)


def _written(kind: Kind, line: CommandLine) -> list[tuple[str, str | None]]:
    return [(flag.name, flag.value) for flag in line.all if flag.name.partition(".")[0] not in kind.harmless]


def _ambiguous(names: Iterable[str]) -> bool:
    """Tell whether two names may mean one option: a short one, or one that another begins with."""
    ordered = sorted(names)
    return any(not n.startswith("--") for n in ordered) or any(b.startswith(a) for a, b in pairwise(ordered))
