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
class _Answer:
    """What was looked at, what was found there, and the response: its meta, and the bytes of the rest."""

    shape: lazy.Shape
    own: bytes
    others: bytes
    versions: bytes | None
    meta: fnv1.ResponseMeta
    rest: bytes

    @property
    def size(self) -> int:
        _, (_, observed), (_, required) = self.shape
        return len(self.rest) + _OVERHEAD + _OF_EACH * (len(observed) + len(required))

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
        if known and _same(known, req, versions):
            return known.write(req.meta.tag)
        rsp = fn.run(cast(fnv1.RunFunctionRequest, req))
        if fn.fatal(rsp):
            # A fatal result is none before it was read in the plain way.
            return fn.answer(fnv1.RunFunctionRequest.FromString(req.raw)).SerializeToString()
        shape, meta = req.shape(), fnv1.ResponseMeta()
        # A copy, since a part of a message keeps all of it in memory.
        meta.CopyFrom(rsp.meta)
        rsp.ClearField("meta")
        own, others = req.own_facts(shape), req.others_facts(shape)
        answer = _Answer(shape, own, others, versions, meta, rsp.SerializeToString())
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


def _same(known: _Answer, req: lazy.Request, versions: bytes | None) -> bool:
    """Say whether a request holds what was found when an answer was made."""
    if known.own != req.own_facts(known.shape):
        return False
    if versions is not None and versions == known.versions:
        return True
    if known.others != req.others_facts(known.shape):
        return False
    # These have changed in nothing that matters.
    known.versions = versions
    return True
