"""Reads an engine's command line the way vLLM's own parser does, without running it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

# What the kubelet replaces by a variable, or, doubled, by itself.
REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
# Flags that always take a value, which may be a secret that only the kubelet knows.
VALUED = frozenset(
    {
        *("--api-key", "--admin-api-key", "--model", "--served-model-name", "--download-dir", "--host", "--port"),
        *("--root-path", "--node-rank", "--nnodes", "--master-addr", "--master-port", "--dist-init-addr"),
        *("--data-parallel-start-rank", "--data-parallel-address", "--data-parallel-rpc-port", "--nccl-init-addr"),
    }
)
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})

# The shortest prefix that vLLM's parser could still take for a long flag; a shorter one is always ambiguous.
SHORTEST = len("--dt")
# A whole flag that other flags' names begin with.
_WHOLE = frozenset({"--model"})
_NODES = ("--nnodes", "-n")


_NO_ENV: Mapping[str, str | None] = MappingProxyType({})


@dataclass(frozen=True)
class Flag:
    """One flag as the user wrote it: its name with dashes for underscores, and its value where one follows."""

    name: str
    value: str | None


class CommandLine:
    """An engine's command and args, read as flags and positional words."""

    def __init__(self, command: Sequence[str], args: Sequence[str], env: Mapping[str, str | None] = _NO_ENV) -> None:
        """Read a container's command and args, both of which may hold flags.

        Args:
            command: The container's command.
            args: Its args.
            env: Its environment, which `$(NAME)` refers to; None for a value that is not in the spec.
        """
        self.written = (*command, *args)
        command = [expand(word, env) for word in command]
        args = [expand(word, env) for word in args]
        self.words = (*command, *args)
        # A shell, or a word that nobody knows yet, may hold any flag.
        started = command or args[:1]
        shell = any(word.rsplit("/", 1)[-1] in SHELLS for word in started)
        unknown = (REFERENCE.match(w) and before not in VALUED for before, w in pairwise(("", *self.words)))
        self.hidden = shell or any(unknown)
        self._flags: list[Flag] = []
        # Everybody asks for the same few.
        self._found: dict[tuple[str, ...], Sequence[Flag]] = {}
        self._positional: list[str] = []
        words = iter(self._after_program(command, args))
        pending: str | None = None
        for word in words:
            if word.startswith("-") and not _is_number(word):
                if pending is not None:
                    self._flags.append(Flag(pending, None))
                name, equals, value = word.partition("=")
                name = name.replace("_", "-") if name.startswith("--") else name
                pending = None if equals else name
                if equals:
                    self._flags.append(Flag(name, value))
            elif pending is not None:
                self._flags.append(Flag(pending, word))
                pending = None
            else:
                self._positional.append(word)
        if pending is not None:
            self._flags.append(Flag(pending, None))

    @staticmethod
    def _after_program(command: Sequence[str], args: Sequence[str]) -> tuple[str, ...]:
        """Drop the program (python -m module, vllm) that a command begins with."""
        rest = list(command)
        while rest and (not rest[0].startswith("-") or rest[0] == "-m"):
            rest.pop(0)
        program = [w for w in command[: len(command) - len(rest)] if w != "-m"]
        # `vllm serve MODEL`: what stands after serve belongs to the command line.
        if "serve" in program:
            rest = [*program[program.index("serve") + 1 :], *rest]
        words = [*rest, *args]
        return tuple(words[1:] if words[:1] == ["serve"] else words)

    def flags(self, *names: str) -> Sequence[Flag]:
        """Find flags by their full names, in any spelling: underscores, dotted (`--x.y`), or an argparse prefix."""
        found = self._found.get(names)
        if found is None:
            found = self._found[names] = [f for f in self._flags if any(means(f.name, name) for name in names)]
        return found

    def value(self, *names: str) -> str | None:
        """Give the value of the last of the named flags, as argparse does; None where there is none."""
        found = self.flags(*names)
        return found[-1].value if found else None

    def integer(self, *names: str) -> int:
        """Give the value of a flag as a whole number; 1 where it is missing or not one."""
        value = self.value(*names)
        return int(value) if value and re.fullmatch("[0-9]{1,9}", value) and int(value) else 1

    @property
    def nodes(self) -> int:
        """How many nodes the engine is said to run on; two where only the cluster knows: it is not one alone."""
        return 2 if REFERENCE.search(self.value(*_NODES) or "") else self.integer(*_NODES)

    @property
    def all(self) -> Sequence[Flag]:
        """All flags, as they stand."""
        return self._flags

    @property
    def positional(self) -> str | None:
        """The first positional word: the model, where the image starts `vllm serve`."""
        return self._positional[0] if self._positional else None


def expand(word: str, env: Mapping[str, str | None]) -> str:
    """Replace references as the kubelet does; one to a value that is not known stays."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = env.get(match[1])
        return match[0] if found is None else found

    return REFERENCE.sub(value, word)


def means(given: str, name: str) -> bool:
    """Tell whether a flag as it is given means the one of that full name: itself, dotted, or an argparse prefix."""
    base = given.split(".", 1)[0]
    if base == name:
        return True
    return base not in _WHOLE and base.startswith("--") and len(base) >= SHORTEST and name.startswith(base)


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdigit()


def names(flags: Iterable[Flag]) -> str:
    """Show flags by name, each once."""
    return ", ".join(dict.fromkeys(flag.name for flag in flags))
