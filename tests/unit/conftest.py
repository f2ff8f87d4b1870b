"""Holds the fast path to its reference in every test here: whatever a test asks, Replay answers the same."""

import secrets
from collections.abc import Iterator
from typing import cast
from unittest import mock

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import fn, lazy
from function.replay import Replay


class Checked:
    """`fn.run`, beside one Replay for all tests, whose composites often have one name: what is stale would show."""

    def __init__(self) -> None:
        self.run = fn.run
        self.forget()

    def forget(self) -> None:
        self.replay = Replay(8 << 20)

    def __call__(self, req: fnv1.RunFunctionRequest) -> fnv1.RunFunctionResponse:
        if isinstance(req, lazy.Request):
            return self.run(req)
        with (
            mock.patch.object(fn, "run", self.run),
            mock.patch.object(secrets, "token_urlsafe", wraps=secrets.token_urlsafe) as draw,
        ):
            rsp = self.run(req)
            # Nobody draws the same twice.
            if not draw.called:
                raw = req.SerializeToString()
                answer = self.replay.answer(lazy.Request(raw))
                assert fnv1.RunFunctionResponse.FromString(answer) == rsp
                shown = lazy.Request(raw)
                shown.show_others()
                assert self.run(cast(fnv1.RunFunctionRequest, shown)) == rsp
        return rsp


@pytest.fixture(scope="session", autouse=True)
def checked() -> Iterator[Checked]:
    """Check every request of every test."""
    run = Checked()
    with mock.patch.object(fn, "run", run):
        yield run


@pytest.fixture(autouse=True)
def _other_code(checked: Checked, request: pytest.FixtureRequest) -> Iterator[None]:
    """Share no answer with a test that changes the code."""
    changes = "monkeypatch" in request.fixturenames
    if changes:
        checked.forget()
    yield
    if changes:
        checked.forget()
