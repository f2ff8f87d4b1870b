"""Cache identity in process: two identities never share a key, and one identity always does.

The keys are LMCache's own. vLLM is stood in for by the line that makes a chain's first hash from PYTHONHASHSEED
(in_process.py); that the line is vLLM's is read in its wheels, not tested here.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance import cases, runner
from tests.conformance.conftest import Server
from tests.conformance.pods import Process, process

Run = Callable[..., runner.Outcome]

# Two models which every backend that keys by the model's name takes for one.
MODEL = "--model=/mnt/models"


def engine(name: str, *args: str, port: int | None = None) -> Process:
    """An engine of a deployment's name and arguments, with no Redis unless a port is given."""

    def deployment(manifest: dict[str, Any]) -> None:
        manifest["metadata"]["name"] = name
        manifest["spec"]["engine"]["args"] = list(args)

    tier = cases.redis_at(port or runner.free_port())
    return process(cases.changed("lmcache", tier=tier, deployment=deployment), "Deployment", "engine")


def keys(lmcache: Run, subject: Process, **task: Any) -> list[str]:
    found = lmcache(subject, **task).found["keys"]
    assert len(found) == 4
    return list(found)


def test_one_identity_has_the_same_keys_in_every_process(lmcache: Run) -> None:
    first, second = engine("llama", MODEL), engine("llama", MODEL, "--max-num-seqs=8")
    # Another option makes no other model, but of a path's options nobody knows all, so only the same words are the same.
    assert keys(lmcache, first) == keys(lmcache, engine("llama", MODEL))
    assert second.env["PYTHONHASHSEED"].isdigit()


def test_two_identities_share_no_key(lmcache: Run) -> None:
    """The same tokens and the same model string, which is all that LMCache's keys hold beside the hash."""
    mine, yours = keys(lmcache, engine("llama", MODEL)), keys(lmcache, engine("qwen", MODEL))
    assert set(mine).isdisjoint(yours)


@pytest.mark.parametrize("option", ["--quantization=fp8", "--kv-cache-dtype=fp8", "--revision=main"])
def test_what_changes_kv_changes_the_seed(option: str) -> None:
    hub = "--model=meta-llama/Llama-3.3-70B-Instruct"
    seeds = {engine("llama", *args).env["PYTHONHASHSEED"] for args in [(hub,), (hub, option)]}
    assert len(seeds) == 2


def test_in_redis_one_identity_finds_what_it_stored_and_another_does_not(redis: Server, lmcache: Run) -> None:
    redis.admin.flushall()
    mine, yours = (engine(name, MODEL, port=redis.port) for name in ("llama", "qwen"))
    assert lmcache(mine, remote="store").found["seen"] == [False] * 4
    assert lmcache(mine, remote="look").found["seen"] == [True] * 4
    assert lmcache(yours, remote="look").found["seen"] == [False] * 4


def test_without_vllm_the_seed_separates_nothing(lmcache: Run) -> None:
    """Why in process is for vLLM alone: an SGLang engine's LMCache would share its keys with any other model's."""
    mine, yours = (keys(lmcache, engine(name, MODEL), vllm=False) for name in ("llama", "qwen"))
    assert mine == yours
