"""What an engine's image holds of the libraries that attach it, and whether that goes with the tier's agents."""

from function.backends.base import Notice, Refusal
from function.engines import Engine, table, versions

_NAMES = {
    table.LMCACHE: "LMCache",
    table.MOONCAKE: "Mooncake",
    table.NIXL: "NIXL",
    table.AIBRIX: "AIBrix's KV cache package",
}


def missing(engine: Engine, library: str, fix: str) -> Refusal | None:
    """Say that an image is known not to hold a library, without which its engine would fail at start."""
    if engine.bundled(library).holds is not False:
        return None
    return Refusal(
        "LibraryMissing",
        f"image {engine.image!r} does not hold {_NAMES[library]}, without which the engine fails at start; {fix}",
    )


def skew(engine: Engine, agent_image: str, oldest: table.Row, field: str) -> Refusal | None:
    """Say that an image's library does not go with the tier's agents; None where it does, or where nobody knows.

    Args:
        engine: The engine.
        agent_image: The image of the tier's agents.
        oldest: What the oldest agents that a tier can run have, and with it the library.
        field: The tier's field that chooses it.
    """
    library = oldest.package
    agent, held = versions.agent(agent_image, library), engine.bundled(library)
    if not versions.apart(library, agent, held):
        return None
    name, rule = _NAMES[library], versions.together(library)
    among = ""
    if rule.since and rule.until:
        among = f", or from {versions.show(rule.since)} to before {versions.show(rule.until)},"
    follows = held.newest is None or oldest.holds(held.newest)
    fix = f"take an engine image with {name} {agent.shown}"
    if follows:
        fix += f", or a tier whose {field} is of the engine's"
    return Refusal(
        "VersionSkew",
        f"the tier's agents run {name} {agent.shown}, and image {engine.image!r} holds {held.shown}; both have to be "
        f"of one release{among} since {rule.what}; {fix}",
    )


def unverified(engine: Engine, library: str, reason: str, needed: str) -> Notice:
    """Say that nobody knows whether an engine's image holds what it needs.

    Args:
        engine: The engine.
        library: What it needs.
        reason: The condition's.
        needed: Which of it, as people read it.
    """
    if engine.bundled(library).holds:
        what = f"image {engine.image!r} holds {_NAMES[library]}, but whether it is {needed}, is not known"
    else:
        what = f"whether image {engine.image!r} holds {needed}, is not known; without it the engine fails at start"
    return Notice("EngineImageUnverified", reason, what)
