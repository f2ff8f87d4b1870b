"""vLLM's --kv-transfer-config: what a user wrote, in any spelling, and one that holds the tier's connector beside it.

vLLM takes the flag once: of two the last one counts, and dotted ones (`--kv-transfer-config.kv_role x`) are gathered
into one that comes last (vllm: utils/argparse_utils.py). So a tier never adds a second one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from function import kube
from function.engines import table
from function.engines.args import REFERENCE, SHORTEST, CommandLine, means
from function.engines.versions import Version, show

FLAG = "--kv-transfer-config"
# What it begins with in any spelling, as the shortest abbreviation does.
_BEGIN = FLAG[:SHORTEST]
MULTI = "MultiConnector"

# They move KV between engines and keep none, so that a cache goes beside them; every other one is a cache, or unknown.
TRANSPORTS = frozenset({"NixlConnector", "NixlPullConnector", "NixlPushConnector", "MooncakeConnector"})

# From which vLLM on a cache may go beside a transport. LMCacheConnectorV1 has no row: nobody has shown it to work there
# (vLLM #20609).
BESIDE: Mapping[str, table.Row] = {
    "LMCacheMPConnector": table.VLLM_MULTI_BLOCKS,
    "OffloadingConnector": table.VLLM_MULTI_HANDSHAKE,
    "MooncakeStoreConnector": table.VLLM_MULTI_HANDSHAKE,
}

# Numbers as people write them: thousands in small letters, powers of two in capitals (vllm: utils/argparse_utils.py).
_WRITTEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])|([+-]?\d[\d_]*))\s*")
_THOUSANDS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_POWERS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_REMOVE = "remove it to have the tier attached"


@dataclass(frozen=True)
class Own:
    """A user's own configuration: what vLLM ends up with, or why that cannot be told."""

    config: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Word:
    """The flag, once, among a container's words: where it stands, how many words it takes, its name, path and value.

    `value` is None where nothing follows that could be one.
    """

    at: int
    length: int
    name: str
    path: tuple[str, ...]
    value: str | None

    @property
    def place(self) -> tuple[object, ...]:
        """All but its value."""
        return self.at, self.length, self.name, self.path


def read(words: Sequence[str]) -> Own | None:
    """Read a user's configuration.

    Args:
        words: A container's command and args, as they are written.

    Returns:
        What vLLM makes of them; None where they say nothing of it.
    """
    found = list(_words(words))
    if any(word.value is None for word in found):
        return Own({}, "has no value")
    # Dotted ones become one JSON for each name as it is written, behind all other words and so instead of them.
    dotted: dict[str, dict[str, Any]] = {}
    for word in found:
        if word.path:
            _update(dotted.setdefault(word.name, {}), word.path, _value(word))
    if dotted:
        return Own(list(dotted.values())[-1])
    last = found[-1].value if found else None
    if last in (None, "", "None"):
        return None
    assert last is not None
    try:
        config = json.loads(last)
    except ValueError:
        return Own({}, "refers to a variable: write its value itself" if REFERENCE.search(last) else "is no JSON")
    return Own(config) if isinstance(config, dict) else Own({}, "is no JSON object")


def of(line: CommandLine) -> Own | None:
    """Read a user's configuration from a command line, whose words may hold variables; None where it says nothing."""
    if [word.place for word in _words(line.words)] != [word.place for word in _words(line.written)]:
        return Own({}, "stands in a variable")
    return read(line.written)


def transports(own: Own | None) -> tuple[str, ...]:
    """Name the user's connectors that move KV between engines, which have it laid out in their own way."""
    names = (str(child.get("kv_connector")) for child in _children(own.config)) if own else ()
    return tuple(sorted(name for name in names if name in TRANSPORTS))


def conflict(own: Own | None, ours: Mapping[str, Any] | None = None, version: Version | None = None) -> str:
    """Say why a tier's connector cannot go beside a user's configuration, and what to do; empty where it can.

    Args:
        own: The user's; None for none.
        ours: The tier's connector; None where it is not known yet.
        version: The engine's version; None where it is not known yet.
    """
    if own is None or own.config == ours:
        return ""
    if own.problem:
        return f"{own.problem}; {_REMOVE}"
    children = _children(own.config)
    if ours in children:
        return ""
    names = [str(child.get("kv_connector")) for child in children]
    others = [name for name in names if name not in TRANSPORTS]
    if others or not names:
        return f"names {', '.join(others) or 'no connector'}, beside which a tier adds nothing; {_REMOVE}"
    if any("kv_role" not in child for child in children):
        return "names a connector without kv_role, with which vLLM does not start; give it one"
    if not ours:
        return ""
    name = ours["kv_connector"]
    if name in TRANSPORTS:
        return f"names {', '.join(names)}, and the tier would add {name}, which does the same; {_REMOVE}"
    since = BESIDE.get(name)
    if since is None or (version and not since.holds(version)):
        beside = f"names {', '.join(names)}, beside which the tier's {name}"
        if since:
            return f"{beside} works from vLLM {show(since.since)} on; take that or newer, or {_REMOVE}"
        other = "a tier of backend Mooncake, with nixl.storage, or with lmcache.mode Multiprocess"
        return f"{beside} is not known to work in any version; choose {other}, or {_REMOVE}"
    return ""


def beside(own: Own | None, ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put a tier's connector beside a user's, in one configuration.

    Args:
        own: The user's, that has no conflict with ours; None for none.
        ours: The tier's.

    Returns:
        Ours alone; or a MultiConnector, which loads from the first that has something, so that what a request brings
        with it comes before the cache, and stores to all.
    """
    if own is None or own.config == ours or ours in _children(own.config):
        return ours if own is None else own.config
    config = dict(own.config)
    # One for all connectors: a child with its own is an error (vllm: multi_connector.py).
    engine_id = {"engine_id": config.pop("engine_id")} if "engine_id" in config else {}
    outer: dict[str, Any] = config if config["kv_connector"] == MULTI else {"kv_connector": MULTI}
    # Both, whatever the children do: the scheduler keeps blocks that may still be loaded to by the outer one's role.
    outer = {**outer, "kv_role": "kv_both"}
    # The scheduler asks the outer one alone what to do when a load fails. What the user says of it counts; else a lost
    # cache is computed anew, which is right for what the other connector lost as well.
    for policy in (config, ours):
        if "kv_load_failure_policy" in policy:
            outer = {"kv_load_failure_policy": policy["kv_load_failure_policy"]} | outer
    extra = {**outer.get("kv_connector_extra_config", {}), "connectors": [*_children(config), ours]}
    return {**outer, **engine_id, "kv_connector_extra_config": extra}


def write(command: list[str], args: list[str], config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Write a configuration into a container's command and args, in place of what is said there.

    Args:
        command: The command.
        args: The args.
        config: The one configuration.

    Returns:
        Command and args. All other words keep their order; where the words say just this already, nothing changes.
    """
    words = [*command, *args]
    own = read(words)
    if own and own.config == config:
        return command, args
    # A flag may stand last in the command, and its value first in the args.
    said = {at for word in _words(words) for at in range(word.at, word.at + word.length)}
    kept = [(at, word) for at, word in enumerate(words) if at not in said]
    start = len(command)
    rest = [word for at, word in kept if at >= start]
    return [word for at, word in kept if at < start], [*rest, FLAG, kube.compact(config)]


def _words(words: Sequence[str]) -> Iterator[Word]:
    """Find the flag in any spelling: with underscores, split or with `=`, abbreviated, dotted."""
    skip = False
    for at, word in enumerate(words):
        if skip:
            skip = False
            continue
        if not word.startswith(_BEGIN):
            continue
        given, equals, text = word.partition("=")
        base, *path = given.split(".")
        name = base.replace("_", "-")
        if not means(name, FLAG):
            continue
        value: str | None = text
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else None
            if value is not None and value.startswith("--") and not path:
                value = None
            skip = value is not None
        yield Word(at, 2 if skip else 1, name, tuple(path), value)


def _value(word: Word) -> Any:
    """Read a dotted flag's value as vLLM does: JSON, a number as people write it, a text; `name+` takes a list."""
    text = word.value or ""
    if word.path[-1].endswith("+"):
        return text.split(",")
    try:
        return json.loads(text)
    except ValueError:
        match = _WRITTEN.fullmatch(text)
    if match is None:
        return text
    decimal, thousands, whole, power, plain = match.groups()
    if thousands:
        return int(float(decimal) * _THOUSANDS[thousands])
    return int(whole) * _POWERS[power] if power else int(plain)


def _update(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        inner = config.setdefault(name, {})
        if not isinstance(inner, dict):
            inner = config[name] = {}
        config = inner
    last = last.removesuffix("+")
    old = config.get(last)
    if isinstance(old, list) and isinstance(value, list):
        old += value
    elif isinstance(old, dict) and isinstance(value, dict):
        for name, inner in value.items():
            _update(old, (name,), inner)
    else:
        config[last] = value


def _children(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if config.get("kv_connector") != MULTI:
        return [config]
    extra = config.get("kv_connector_extra_config")
    connectors = extra.get("connectors") if isinstance(extra, dict) else None
    return [child for child in connectors if isinstance(child, dict)] if isinstance(connectors, list) else []
