"""What a tier makes an engine's pod hold, and whether the container asks for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function import attach, attachment, memory, sizing
from function.backends.base import EnginePatch
from function.engines import Engine
from function.kube import Manifest
from tests.unit.stories import engine_story, pod, state
from tests.unit.test_compatibility import (
    AUTO,
    BY_FILE,
    FILES,
    HICACHE,
    IN_PROCESS,
    LMCACHE,
    MOONCAKE,
    MOVING,
    OBJECTS,
    attached,
    engine,
)

GIB, MIB = 1024**3, 1024**2


# --- the rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pod_gib", "tensor_parallel", "engine_gib", "cache"),
    [
        # AIBrix's manual: P / tensor-parallel-size - E; its maintainers' example: 120 is too little for 80, 200 is not.
        (120, 1, 20, 100),
        (200, 2, 20, 80),
        (120, 2, 20, 40),
        (400, 8, 20, 30),
        (80, 4, 20, 0),
        (40, 4, 20, -10),
        (120, 1, 40, 80),
    ],
)
def test_a_rank_may_hold_p_over_tensor_parallel_size_less_e(
    pod_gib: int, tensor_parallel: int, engine_gib: int, cache: int
) -> None:
    assert sizing.rank_memory(pod_gib, tensor_parallel, engine_gib) == cache
    assert sizing.pod_memory(cache, tensor_parallel, engine_gib) == pod_gib


@given(cache=st.integers(0, 4096), ranks=st.integers(1, 64))
def test_both_directions_agree(cache: int, ranks: int) -> None:
    of_pod = sizing.pod_memory(cache, ranks, sizing.ENGINE_GIB_PER_RANK)
    assert sizing.rank_memory(of_pod, ranks, sizing.ENGINE_GIB_PER_RANK) == cache


# --- what a pod holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "args", "kind", "held"),
    [
        (LMCACHE, ["-tp", "8"], "vLLM", 0),
        (AUTO, ["-tp", "8"], "vLLM", 0),
        # It cannot speak to an agent, and stages.
        (AUTO, ["-tp", "8", "--block-size=96"], "vLLM", 8 * 2 * GIB),
        (IN_PROCESS, [], "vLLM", 8 * GIB),
        (IN_PROCESS, ["-tp", "2", "-pp", "2", "-dp", "2"], "vLLM", 64 * GIB),
        (MOONCAKE, ["-tp", "2", "-pp", "2"], "vLLM", 4 * 128 * MIB),
        (MOONCAKE, ["-tp", "16", "--nnodes=2"], "vLLM", 8 * 128 * MIB),
        (FILES, [], "vLLM", 8 * GIB),
        (FILES, ["-tp", "2", "-dp", "3"], "vLLM", 6 * 8 * GIB),
        (OBJECTS, ["-tp", "8"], "vLLM", 64 * GIB),
        # No more than the node's number for each replica.
        (FILES, ["-tp", "16"], "vLLM", 64 * GIB),
        (MOVING, ["-tp", "8"], "vLLM", 0),
        (HICACHE, ["--tp=2", "--dp=2"], "SGLang", 4 * 26 * 10**9),
        (HICACHE, ["--tp=2", "--dp=2", "--enable-dp-attention"], "SGLang", 2 * 26 * 10**9),
        (HICACHE, ["--tp=16", "--nnodes=2"], "SGLang", 8 * 26 * 10**9),
        (BY_FILE, ["--tp=2"], "SGLang", 2 * 26 * 10**9),
        (FILES, ["--tp=2"], "SGLang", 2 * 8 * 10**9),
        # Twice its cache in GPU memory, which nobody knows here.
        (MOONCAKE, ["--tp=2"], "SGLang", 0),
        (
            {
                **HICACHE,
                **MOONCAKE,
                "backend": "HiCache",
                "hicache": {**HICACHE["hicache"], "l3": {"backend": "Mooncake"}},
            },
            ["--tp=2"],
            "SGLang",
            2 * (26 * 10**9 + 16 * MIB),
        ),
    ],
)
def test_a_patch_says_what_it_makes_a_pod_hold(spec: Manifest, args: list[str], kind: str, held: int) -> None:
    patch = attached(spec, engine(*args, kind=kind))
    assert patch.memory == held
    assert EnginePatch.from_json(patch.to_json()).memory == held


# --- what the container asks for ----------------------------------------------------------------------------------


def patch(gib: float) -> EnginePatch:
    """Write a patch that makes a pod hold so much."""
    return EnginePatch(tier="a/b", connector="c", memory=int(gib * GIB))


def resources(of: Manifest | None, gib: float) -> Any:
    """Attach a container with these resources, and give what becomes of them."""
    container = {"name": "engine", **({"resources": of} if of is not None else {})}
    template, _ = attach.apply({"spec": {"containers": [container]}}, patch(gib), "engine")
    return template["spec"]["containers"][0].get("resources")


@pytest.mark.parametrize(
    ("users", "becomes"),
    [
        (None, {"requests": {"memory": "65536Mi"}}),
        ({"limits": {"nvidia.com/gpu": "8"}}, {"requests": {"memory": "65536Mi"}, "limits": {"nvidia.com/gpu": "8"}}),
        ({"requests": {"cpu": "8"}}, {"requests": {"memory": "65536Mi", "cpu": "8"}}),
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1Gi"}}),
        # Its request is its limit, and must not be more.
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1Gi"}}),
        ({"limits": {"memory": "1e12"}}, {"limits": {"memory": "1e12"}}),
        ({"requests": {"memory": 1000}}, {"requests": {"memory": 1000}}),
    ],
)
def test_a_container_that_says_nothing_of_memory_asks_for_what_it_holds(users: Manifest | None, becomes: Any) -> None:
    assert resources(users, 64) == becomes


def test_a_pod_that_has_memory_for_all_its_containers_is_left_alone() -> None:
    pod_spec = {"containers": [{"name": "engine"}], "resources": {"limits": {"memory": "32Gi"}}}
    template, _ = attach.apply({"spec": pod_spec}, patch(64), "engine")
    assert template["spec"] == pod_spec


def test_it_asks_for_whole_mebibytes_rounded_up() -> None:
    assert resources(None, 1 / 1024**2) == {"requests": {"memory": "1Mi"}}
    assert resources(None, 1.5 + 1 / 2048) == {"requests": {"memory": "1537Mi"}}


def test_where_nothing_is_held_nothing_is_asked_for() -> None:
    assert resources(None, 0) is None


def test_an_attached_container_is_not_attached_again() -> None:
    once = resources(None, 64)
    assert resources(once, 128) == once


# --- whether that is enough ---------------------------------------------------------------------------------------


def short(asks: Manifest | None, gib: float, which: Engine) -> Any:
    """Look at a container with these resources."""
    return memory.short({"name": "engine", "resources": asks} if asks else {"name": "engine"}, patch(gib), which)


EIGHT = engine("-tp", "8")


@pytest.mark.parametrize(
    ("asks", "gib"),
    [
        (None, 64),
        ({"limits": {"nvidia.com/gpu": "8"}}, 64),
        ({"requests": {"memory": "1Gi"}}, 0),
        ({"requests": {"memory": "224Gi"}}, 64),
        ({"limits": {"memory": "224Gi"}}, 64),
        # The scheduler goes by the request.
        ({"requests": {"memory": "224Gi"}, "limits": {"memory": "1Ti"}}, 64),
        ({"requests": {"memory": "1e12"}}, 64),
        # Under 1 GiB a rank are a client's buffers: of what the engine itself needs nobody has said anything.
        ({"requests": {"memory": "8Gi"}}, 7.9),
    ],
)
def test_enough_or_unknown_is_nothing_to_say(asks: Manifest | None, gib: float) -> None:
    assert short(asks, gib, EIGHT) is None


@pytest.mark.parametrize(("asks", "gib"), [("8Gi", 8), ("4Gi", 7.9)])
def test_a_rank_that_holds_cache_or_less_than_its_buffers_is_said(asks: str, gib: float) -> None:
    assert short({"requests": {"memory": asks}}, gib, EIGHT).status == "True"


def test_too_little_for_the_engine_itself_is_said_with_numbers() -> None:
    found = short({"requests": {"memory": "200Gi"}, "limits": {"memory": "1Ti"}}, 64, EIGHT)
    assert (found.status, found.reason, found.warn) == ("True", "LittleLeft", True)
    assert found.message == (
        "the engine's container asks for 200 GiB of memory (resources.requests.memory); the tier makes it hold 64 GiB, "
        "which leaves 136 GiB for the engine itself, 24 GiB less than 20 GiB for each of 8 rank(s); set it to 224 GiB "
        "or more, or let the tier take at most 5 GiB for each rank"
    )


def test_less_than_the_tier_alone_is_said_more_plainly() -> None:
    found = short({"limits": {"memory": "32Gi"}}, 64, EIGHT)
    assert (found.status, found.reason, found.warn) == ("True", "LessThanTheTier", True)
    assert found.message == (
        "the engine's container asks for 32 GiB of memory (resources.limits.memory), and the tier makes it hold "
        "64 GiB: that alone is 32 GiB more, and nothing is left for the engine itself; set it to 224 GiB or more"
    )


@pytest.mark.parametrize(
    ("version", "asks", "starts"),
    [
        ("0.5.23", {"limits": {"memory": "57Gi"}}, False),
        ("0.5.23", {"limits": {"memory": "58Gi"}}, True),
        ("0.5.23", {"limits": {"memory": "40Gi"}}, False),
        ("0.5.23", {"requests": {"memory": "40Gi"}}, True),
        # It looks at the node's memory alone.
        ("0.5.20", {"limits": {"memory": "40Gi"}}, True),
    ],
)
def test_sglang_that_would_not_start_within_its_limit_is_said(version: str, asks: Manifest, starts: bool) -> None:
    found = short(asks, 48, engine("--tp=2", kind="SGLang", version=version))
    assert ("It does not start: SGLang leaves 10 GiB of its limit alone" in found.message) is not starts


# --- an engine's life ---------------------------------------------------------------------------------------------


def test_an_engine_that_asks_for_too_little_runs_with_a_warning_that_goes_when_it_asks_for_enough() -> None:
    def little(composite: Manifest) -> None:
        composite["spec"]["engine"]["resources"] = {"requests": {"memory": "16Gi"}, "limits": {"nvidia.com/gpu": "1"}}

    story = engine_story(little)
    rendered = story.settle()
    assert pod(rendered)["spec"]["containers"][0]["resources"] == {
        "requests": {"memory": "16Gi"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "Attached")
    assert state(rendered, attachment.MEMORY_SHORT) == ("True", "LittleLeft")
    assert "leaves 14 GiB" in rendered.condition(attachment.MEMORY_SHORT)["message"]
    story.happen()
    story.composite["spec"]["engine"]["resources"]["requests"]["memory"] = "22Gi"
    assert state(story.render(), attachment.MEMORY_SHORT) == ("False", "Nothing")


def test_an_engine_that_says_nothing_of_memory_asks_for_what_the_tier_adds() -> None:
    rendered = engine_story().render()
    assert pod(rendered)["spec"]["containers"][0]["resources"]["requests"] == {"memory": "2048Mi"}
    assert state(rendered, attachment.MEMORY_SHORT) == ("False", "Nothing")
