"""Writes docs/versions.md from the version table: `python -m tests.tools.table docs/versions.md`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from function.engines import table
from function.engines.table import Version
from function.engines.versions import Bundled, show
from tests.tools.released import ROWS

NAMES = {
    table.VLLM: "vLLM",
    table.SGLANG: "SGLang",
    table.LMCACHE: "LMCache",
    table.MOONCAKE: "Mooncake",
    table.NIXL: "NIXL",
    table.AIBRIX: "AIBrix",
}
_HOLDS = {True: "yes", False: "no", None: "unknown"}

_HEAD = """# Versions

<!-- Made by `make versions` from function/engines/table.py; not edited by hand. -->

What this function knows of engines and libraries by their versions. Each line was read in the released packages that
are named above it, and a test holds it against every one of them; a line that no file shows says why in brackets.
Engines that are older are not attached, but where a line says so; newer ones are treated as the newest of these.

An engine's version is `engine.version`, else its image's tag; a tag without a patch number is the lowest.
"""
_TOGETHER = """
## Agents and engines

Where two are known not to go together, a new engine is refused with `VersionSkew`; one that runs attached stays so.
An agent's version is that of its image: the release's, or `spec.images.lmcache` and `spec.images.mooncake`, whose tag
tells.
"""
_BESIDE = """
In an image that nobody has looked into, no older library than this is reckoned with:
"""
_IMAGES = """
## Images

What the released images of a repository hold. Mirrors count where they keep the last two words of its name; in
LMCache's own images, the tag is LMCache's version. *no*: engines that need it are refused (`LibraryMissing`).
*unknown*, or a version that is not known to fit: `EngineImageUnverified`. What is not in this table is unknown.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


def _until(version: Version | None) -> str:
    return show(version) if version else ""


def _row(row: table.Row) -> list[str]:
    why = "" if isinstance(row.probe, table.Probe) else f" ({row.probe})"
    return [show(row.since), _until(row.until), row.what, row.source + why]


def _together(rule: table.Together) -> list[str]:
    among = f"; any two from {show(rule.since)} to before {show(rule.until)}" if rule.since and rule.until else ""
    return [NAMES[rule.library], f"those of one release{among}", rule.what, rule.source]


def _beside(beside: table.Beside) -> list[str]:
    names = NAMES[beside.engine], NAMES[beside.library]
    return [f"{names[0]} {show(beside.since)}", f"{names[1]} {show(beside.oldest)}", beside.source]


def _image(image: table.Image) -> list[str]:
    held = Bundled(image.holds, image.oldest, image.newest).shown
    tags = f"{show(image.since)} to before {show(image.until)}{f', {image.flavour}' if image.flavour else ''}"
    holds = _HOLDS[image.holds] + (f": {held}" if held else "")
    return [f"`{image.repository}`", tags, NAMES[image.library], holds, image.source]


def page() -> str:
    """Write the page."""
    lines = [_HEAD]
    for package in table.PACKAGES:
        rows = sorted((row for row in ROWS.values() if row.package == package.name), key=lambda row: row.since)
        read = f"Read in `{package.released}` {show(package.oldest)} to {show(package.newest)}."
        lines += [f"## {NAMES[package.name]}", "", read, ""]
        lines += [*_table(("from", "until before", "what holds", "where"), map(_row, rows)), ""]
    head = ("library", "go together", "why", "source")
    lines += [_TOGETHER.lstrip("\n"), *_table(head, map(_together, table.TOGETHER)), _BESIDE]
    lines += _table(("from", "with", "source"), map(_beside, table.OLDEST_LMCACHE))
    lines += [_IMAGES, *_table(("image", "tags", "library", "holds it", "source"), map(_image, table.IMAGES))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
