"""Decides which clusters of a fleet get a change now: canaries, then waves.

It knows no clock and keeps no memory. Who is in which wave follows from names alone, so a pass that sees one tier late
comes to the same answer as the pass before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from function import kube

# Crossplane ends a pass after two minutes, and each tier that changes has passes of its own meanwhile.
AT_ONCE = 50

# How a tier was before its last change.
READY, NOT_READY, NEW = "ready", "not ready", "new"


@dataclass(frozen=True)
class Member:
    """A cluster of the fleet.

    `target` is the revision that its tier should have, `applied` the one that it has, empty where there is no tier.
    `settled`: with the applied revision it was ready once, so that what ails it now is not the fleet's doing. `ready`:
    it is. `before`: how it was when applied was. `cold`: to go from applied to target empties a cache. `was_cold`: to
    come to applied did.
    """

    cluster: str
    target: str
    applied: str = ""
    settled: bool = False
    ready: bool = False
    before: str = READY
    canary: bool = False
    cold: bool = False
    was_cold: bool = False

    @property
    def started(self) -> bool:
        """Whether its tier has the target."""
        return self.applied == self.target

    @property
    def done(self) -> bool:
        """Whether its tier has the target, and was ready with it."""
        return self.started and self.settled

    @property
    def away(self) -> bool:
        """Whether it has left what it was ready with, and has not been ready since: for the fleet's sake."""
        return bool(self.applied) and not self.settled and self.before == READY

    @property
    def sick(self) -> bool:
        """Whether it is not ready, and not for the fleet's sake; one that is new may yet be."""
        begins = self.started and not self.settled and self.before == NEW
        return bool(self.applied) and not self.ready and not self.away and not begins


@dataclass(frozen=True)
class Limits:
    """How much at once: clusters away, clusters with a cold cache, who starts, and whether others than canaries may."""

    unavailable: int = 1
    cold: int = 1
    starts: int = AT_ONCE
    approved: bool = True
    paused: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do now.

    `start` are the clusters that get their target now, and did not have it. `wave` is who has to be done before the
    next wave; empty when all are. `held` says what alone keeps more from starting: Paused or AwaitingApproval.
    """

    start: frozenset[str] = frozenset()
    wave: Sequence[Member] = ()
    held: str = ""


def decide(members: Iterable[Member], limits: Limits) -> Decision:
    """Decide who starts.

    Args:
        members: All clusters that count.
        limits: How much at once.

    Returns:
        The decision. Of one wave all start together, fifty in a pass, but for those with a cold cache, of which only so
        many are away at once.
        Nobody starts while another wave's are away: so a wave that goes bad ends the rollout by itself, and no more
        clusters are away for the fleet's sake than one wave has.
    """
    order = waves(members, limits.unavailable)
    wave = next((w for w in order if not all(m.done for m in w)), [])
    away = [m for w in order for m in w if m.away]
    pending = [m for m in wave if not m.started]
    if not pending or any(m not in wave for m in away):
        return Decision(wave=wave)
    if limits.paused:
        return Decision(wave=wave, held="Paused")
    if not limits.approved:
        pending = [m for m in pending if m.canary]
        if not pending:
            return Decision(wave=wave, held="AwaitingApproval")
    start = []
    room = limits.cold - sum(m.was_cold for m in away)
    for member in pending:
        # Who is cold already loses nothing more.
        colder = member.cold and not (member.away and member.was_cold)
        if not colder or room > 0:
            start.append(member.cluster)
            room -= colder
    return Decision(frozenset(start[: limits.starts]), wave)


def waves(members: Iterable[Member], size: int) -> list[list[Member]]:
    """Put clusters in the order in which they change, in waves of at most `size`.

    Where an earlier change has left some away, all who are away are first, whatever their number: they have nothing to
    lose by the next one, and wait for it. Then canaries, then the others by a hash of their names, since names often go
    by place or worth; of both, who is sick goes last, and so keeps nobody.
    """
    order = sorted(members, key=_place)
    left = [m for m in order if m.away] if any(m.away and not m.started for m in order) else []
    found = [left] if left else []
    for canary in (True, False):
        some = [m for m in order if m.canary is canary and m not in left]
        found += [some[at : at + size] for at in range(0, len(some), size)]
    return found


def _place(member: Member) -> tuple[bool, str]:
    return member.sick, kube.digest(member.cluster)
