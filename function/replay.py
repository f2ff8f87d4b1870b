"""Answers a composite that has not changed as it was answered before.

Crossplane asks again and again, at least once a minute for each composite, and mostly nothing that matters has changed.
An answer is a pure function of what the composer looked at in the request. So that is remembered beside the answer
(lazy.py), and where the composite's next request holds the same there, it gets the same answer. `fn.run` knows nothing
of it: it composes whatever is not replayed.
"""

import random
from dataclasses import dataclass
from typing import cast

from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import fn, lazy

# Bytes that an answer costs beside its own: its key and Python's objects; and its shape for each resource, of which
# all but the name is shared.
_OVERHEAD, _OF_EACH = 2048, 256


@dataclass(slots=True)
class _Others:
    """What was looked at of all resources but the composite, and what was found there."""

    shape: lazy.Shape
    facts: bytes

    @property
    def count(self) -> int:
        """How many resources were looked for."""
        (_, observed), (_, required) = self.shape
        return len(observed) + len(required)


@dataclass(slots=True)
class _Answer:
    """What was looked at of the composite, what was found there, and the response: its meta, and the bytes of the rest.

    `others`: None where these were not looked at one by one, and only their versions tell whether they are the same.
    `again`: whether it came out just like the one before, though there were other versions.
    """

    shape: lazy.Shape
    own: bytes
    versions: bytes | None
    others: _Others | None
    meta: fnv1.ResponseMeta
    rest: bytes
    again: bool

    @property
    def size(self) -> int:
        return len(self.rest) + _OVERHEAD + _OF_EACH * (self.others.count if self.others else 0)

    def holds(self, req: lazy.Request, versions: bytes | None) -> bool:
        """Say whether a request holds what was found when the answer was made."""
        if self.own != req.own_facts(self.shape):
            return False
        if versions is not None and versions == self.versions:
            return True
        if self.others is None or self.others.facts != req.others_facts(self.others.shape):
            return False
        # These have changed in nothing that matters.
        self.versions = versions
        return True

    def write(self, tag: str) -> bytes:
        """Give the response's bytes; the order of fields is free."""
        rsp = fnv1.RunFunctionResponse(meta=self.meta)
        rsp.meta.tag = tag
        return rsp.SerializeToString() + self.rest


class Replay:
    """Answers RunFunction; see the module."""

    def __init__(self, size: int, *, trusting: bool = False) -> None:
        """Begin with nothing remembered.

        Args:
            size: How many bytes of answers are remembered at most.
            trusting: Whether a resource of the same uid, resourceVersion and size is the same one. So says the API
                server, but not somebody who edits files.
        """
        self._left = size
        self._trusting = trusting
        self._answers: dict[tuple[object, ...], _Answer] = {}
        self._keys: list[tuple[object, ...]] = []

    def answer(self, req: lazy.Request) -> bytes:
        """Answer a request as `fn.answer` does; returns the response's bytes."""
        key, versions = req.key(), req.versions() if self._trusting else None
        known = self._answers.get(key)
        if known and known.holds(req, versions):
            return known.write(req.meta.tag)
        # Looks are noted where versions do not tell enough: there are none, or new ones come with nothing new in them.
        noting = versions is None or (known is not None and known.again)
        if not noting:
            req.show_others()
        rsp = fn.run(cast(fnv1.RunFunctionRequest, req))
        if fn.fatal(rsp):
            # A fatal result is none before it was read in the plain way.
            return fn.answer(fnv1.RunFunctionRequest.FromString(req.raw)).SerializeToString()
        shape, others, meta = req.own_shape(), None, fnv1.ResponseMeta()
        if noting:
            seen = req.others_shape()
            others = _Others(seen, req.others_facts(seen))
        # A copy, since a part of a message keeps all of it in memory.
        meta.CopyFrom(rsp.meta)
        rsp.ClearField("meta")
        rest = rsp.SerializeToString(deterministic=True)
        again = known is not None and known.rest == rest
        answer = _Answer(shape, req.own_facts(shape), versions, others, meta, rest, again)
        self._remember(key, answer)
        return answer.write(req.meta.tag)

    def _remember(self, key: tuple[object, ...], answer: _Answer) -> None:
        """Remember an answer, and forget others at random until it fits.

        At random, because composites take turns: of a cache that is too small for all of them, the least recently used
        answer is the one that is asked for next.
        """
        if key in self._answers:
            self._left += self._answers[key].size
        else:
            self._keys.append(key)
        self._answers[key] = answer
        self._left -= answer.size
        while self._left < 0:
            at = random.randrange(len(self._keys))  # noqa: S311 (nobody gains by guessing it)
            self._keys[at], self._keys[-1] = self._keys[-1], self._keys[at]
            self._left += self._answers.pop(self._keys.pop()).size
