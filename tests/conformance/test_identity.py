"""Cache identity in process: two identities never share a key, and one identity always does.

The keys are LMCache's own. vLLM is stood in for by the line that makes a chain's first hash from PYTHONHASHSEED
(in_process.py); that it is vLLM's was read in its wheels and is not tested here.
"""

from dataclasses import dataclass

import pytest

from tests.conformance import cases, runner
from tests.conformance.conftest import Run, Server
from tests.conformance.pods import Manifest, Process, process

# One string, and in two deployments two models: Modelplane mounts every cached model there.
MODEL = "--model=/mnt/models"
ALL, NONE = [True] * 4, [False] * 4


def engine(name: str, *args: str, port: int) -> Process:
    """An engine of a deployment's name and arguments."""

    def deployment(manifest: Manifest) -> None:
        manifest["metadata"]["name"] = name
        manifest["spec"]["engine"]["args"] = list(args)

    manifests = cases.changed("lmcache", tier=cases.redis_at(port), deployment=deployment)
    return process(manifests, "Deployment", "engine")


@dataclass(frozen=True)
class Three:
    """Three engines, one after the other."""

    first: runner.Outcome  # stores what it computed
    again: runner.Outcome  # of the same deployment
    other: runner.Outcome  # of another one


@pytest.fixture(scope="module")
def three(lmcache: Run, redis_or_none: Server | None) -> Three:
    if redis_or_none:
        redis_or_none.admin.flushall()
    store, look = ({"remote": task} if redis_or_none else {} for task in ("store", "look"))
    port = redis_or_none.port if redis_or_none else runner.free_port()
    mine, other = (engine(name, MODEL, port=port) for name in ("llama", "qwen"))
    return Three(lmcache(mine, **store), lmcache(mine, **look), lmcache(other, **look))


def test_one_identity_has_the_same_keys_in_every_process(three: Three) -> None:
    assert len(set(three.first.found["keys"])) == 4
    assert three.first.found["keys"] == three.again.found["keys"]


def test_two_identities_share_no_key(three: Three) -> None:
    """The same tokens and the same model string, which is all that a key holds beside the hash."""
    assert set(three.first.found["keys"]).isdisjoint(three.other.found["keys"])


def test_in_redis_one_identity_finds_what_it_stored_and_another_does_not(redis: Server, three: Three) -> None:
    assert redis.admin.ping()
    assert [run.found["seen"] for run in (three.first, three.again, three.other)] == [NONE, ALL, NONE]


def test_without_vllm_the_seed_separates_nothing(three: Three) -> None:
    """Why in process is for vLLM alone: an SGLang engine's LMCache would share keys with any other model's."""
    assert three.first.found["keys_without_vllm"] == three.other.found["keys_without_vllm"]


@pytest.mark.parametrize("option", ["--quantization=fp8", "--kv-cache-dtype=fp8", "--revision=main"])
def test_what_changes_kv_changes_the_seed(option: str) -> None:
    hub = "--model=meta-llama/Llama-3.3-70B-Instruct"
    seeds = {engine("llama", *args, port=6379).env["PYTHONHASHSEED"] for args in [(hub,), (hub, option)]}
    assert len(seeds) == 2
