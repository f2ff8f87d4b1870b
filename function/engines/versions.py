"""Versions: how they are read from what users write, and what engine/table.py says of them.

A tag without a patch number means the lowest; what is not in the table is not attached.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from function.engines import table

Version: TypeAlias = table.Version

_NUMBER = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.?post\d+)?(?:[-+_].*)?")
_UNRELEASED = re.compile(r"(?:[-._+]|\d)(?:rc|dev|nightly|alpha|beta)\d*(?:$|[-._+])")


@dataclass(frozen=True)
class Bundled:
    """What is known of a library in an image: whether it is there, and between which versions.

    `holds` is None where nobody knows.
    """

    holds: bool | None = None
    oldest: Version | None = None
    newest: Version | None = None

    @property
    def version(self) -> Version | None:
        """The library's version, where it is known."""
        return self.oldest if self.oldest == self.newest else None

    @property
    def shown(self) -> str:
        """The version, or between which it is, as people read it."""
        if self.version:
            return show(self.version)
        bounds = (("or newer", self.oldest), ("at most", self.newest))
        return ", ".join(f"{show(bound)} {word}" for word, bound in bounds if bound)

    def fits(self, needed: Version) -> bool:
        """Whether the image is known to hold the library, of this version or newer."""
        return bool(self.holds and self.oldest and self.oldest >= needed)


def show(version: Version) -> str:
    """Write a version as 1.2.3."""
    return ".".join(str(part) for part in version)


def parse(text: str) -> Version | None:
    """Read a version or an image's tag; None where it names no release (a release candidate, latest)."""
    match = None if _UNRELEASED.search(text) else _NUMBER.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def of_engine(version: str | None, image: str, word: str) -> Version | None:
    """Tell an engine's version.

    Args:
        version: What the user says; it wins.
        image: The image; its tag counts only where the repository is one of the engine, as lmcache/vllm-openai's tags
            are LMCache's versions.
        word: What the engine's repositories have in their name: vllm or sglang.

    Returns:
        The version, its lowest patch where none is named; None where it cannot be known.
    """
    if version:
        return parse(version)
    repository, _, tag = image.partition("@")[0].rpartition(":")
    if "/" in tag or not repository:
        return None
    parts = repository.split("/")
    if word not in parts[-1] or "lmcache" in parts:
        return None
    found = parse(tag)
    # Neither engine has another major: vendors' images count their own versions.
    return found if found and found[0] == 0 else None


def oldest_lmcache(vllm: Version) -> table.Beside:
    """Find what LMCache may be relied on beside a vLLM that is attached, in an image that nobody has looked into."""
    return [beside for beside in table.OLDEST_LMCACHE if beside.since <= vllm][-1]


def bundled(image: str, library: str) -> Bundled:
    """Tell what an engine's image holds of a library, by its repository and tag.

    Mirrors keep the last two words of a repository. In LMCache's own images, the tag is LMCache's version.
    """
    repository, _, tag = image.partition("@")[0].rpartition(":")
    if "/" in tag:
        repository, tag = image.partition("@")[0], ""
    parts, version = repository.split("/"), parse(tag)
    if library == table.LMCACHE and "lmcache" in parts:
        return exactly(version)
    name = "/".join(parts[-2:])
    rows = [
        row
        for row in table.IMAGES
        if version and (row.repository, row.library) == (name, library) and row.since <= version < row.until
    ]
    words = re.split(r"[-_+]", tag)
    exact = [row for row in rows if row.flavour in words]
    for row in exact or [row for row in rows if not row.flavour]:
        return Bundled(row.holds, row.oldest, row.newest)
    return Bundled()


def agent(image: str, library: str) -> Bundled:
    """Tell the version of a library that an agent's image runs: as the table knows the image, else by its tag."""
    known = bundled(image, library)
    if known.holds is not None:
        return known
    tag = image.partition("@")[0].rpartition(":")[2]
    return exactly(None if "/" in tag else parse(tag))


def exactly(version: Sequence[int] | None) -> Bundled:
    """Write a version as what an image holds; None for one that nobody knows."""
    known = (version[0], version[1], version[2]) if version else None
    return Bundled(holds=True, oldest=known, newest=known)


def together(library: str) -> table.Together:
    """Find which releases agents and engines may have at once."""
    return next(rule for rule in table.TOGETHER if rule.library == library)


def apart(library: str, one: Bundled, other: Bundled) -> bool:
    """Whether an agent's and an engine's library are known not to go together."""
    rule = together(library)
    if _before(one.newest, other.oldest) or _before(other.newest, one.oldest):
        return any(
            rule.since is None or _before(held.newest, rule.since) or not _before(held.oldest, rule.until)
            for held in (one, other)
        )
    return False


def _before(one: Version | None, other: Version | None) -> bool:
    return one is not None and other is not None and one < other
