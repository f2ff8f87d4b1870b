"""AIBrix's offloading: which connector an engine has, how much each rank holds, and what does not go with it."""

import json
from typing import Any

import pytest

from function import api, attachment, releases, sizing
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.attachment import Consumer
from function.backends.base import EnginePatch, Invalid, Refusal, Tier
from function.engines import Engine, pod, table
from function.kube import Manifest
from tests.unit import builders, stories
from tests.unit.builders import EIGHT_GPUS, env, plan

PATCHED = "aibrix/vllm-openai-aibrix-kvcache:v0.10.2-20251022"
OWN = "registry.example.org/team/vllm-openai:v0.18.1"
L1 = "AIBRIX_KV_CACHE_OL_L1_CACHE"


def tier(**offloading: Any) -> Tier:
    spec: Manifest = {"inferenceClusterRef": {"name": "x"}, "backend": "AIBrix", "aibrix": {"offloading": offloading}}
    return Tier("modelplane-system", "l1", api.parse(TierSpec, spec), releases.NEWEST)


def engine(*args: str, image: str = PATCHED, memory: str = "120Gi", **fields: Any) -> Engine:
    limits = {"nvidia.com/gpu": "1", **({"memory": memory} if memory else {})}
    spec = {"name": "vLLM", "image": image, "args": ["--model=Qwen/Qwen3-8B", *args], "resources": {"limits": limits}}
    return pod.read(api.parse(EngineSpec, {**spec, **fields}), namespace="ml", name="chat")


def attach(to: Tier, *args: str, **fields: Any) -> EnginePatch:
    return builders.attach(to, engine(*args, **fields))


def refuse(to: Tier, *args: str, **fields: Any) -> Refusal:
    return builders.refuse(to, engine(*args, **fields))


# --- what runs ----------------------------------------------------------------------------------------------------


def test_nothing_runs_and_the_tier_is_ready_by_its_configuration() -> None:
    planned = plan(tier())
    assert (planned.parts, planned.memory) == ([], {})
    rendered = stories.tier_story(example="aibrix-offloading").settle()
    assert rendered.composite["status"]["agents"] == "n/a"
    assert [stories.state(rendered, c)[0] for c in ("Accepted", "AgentsReady", "RolledOut")] == ["True"] * 3
    assert not rendered.composed


# --- the connector ------------------------------------------------------------------------------------------------


def test_aibrixs_own_image_has_its_connector_built_in() -> None:
    patch = attach(tier())
    assert patch.kv_transfer == {"kv_connector": "AIBrixOffloadingConnectorV1Type3", "kv_role": "kv_both"}
    assert env(patch)["VLLM_USE_V1"] == "1"
    assert not patch.notices


def test_a_newer_vllm_finds_it_in_aibrixs_package() -> None:
    patch = attach(tier(), image=OWN)
    assert patch.kv_transfer == {
        "kv_connector": "AIBrixOffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "aibrix_kvcache.integration.vllm.kv_connector.aibrix_offloading_connector_type1",
    }
    assert "VLLM_USE_V1" not in env(patch)
    (notice,) = patch.notices
    assert (notice.type, notice.reason) == ("EngineImageUnverified", "AIBrixUnknown")
    assert "AIBrix's KV cache package 0.7.0 or newer" in notice.message


@pytest.mark.parametrize(
    ("version", "reason", "fix"),
    [
        ("0.9.1", "EngineVersionUnsupported", "older than 0.10.2"),
        ("0.11.0", "EngineTooOld", "neither 0.10.2, which AIBrix's own images hold patched, nor 0.14.0"),
        ("0.13.0", "EngineTooOld", "take one of these"),
        ("0.22.0", "EngineTooNew", "take 0.14.0 to before 0.22.0"),
        ("0.33.0", "EngineTooNew", "would load nothing"),
    ],
)
def test_a_vllm_that_has_no_connector_that_works_is_refused(version: str, reason: str, fix: str) -> None:
    refusal = refuse(tier(), image=f"team/vllm-openai:v{version}")
    assert refusal.reason == reason
    assert fix in refusal.message


@pytest.mark.parametrize("version", ["0.10.2", "0.14.0", "0.21.0"])
def test_vllms_own_image_does_not_hold_it(version: str) -> None:
    refusal = refuse(tier(), image=f"vllm/vllm-openai:v{version}")
    assert refusal.reason == "LibraryMissing"
    assert "does not hold AIBrix's KV cache package" in refusal.message


def test_sglang_is_told_what_to_take() -> None:
    spec = {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23", "args": ["--model-path=a/b"]}
    found = pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")
    assert "HiCache" in builders.refuse(tier(), found).message


# --- how much -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "ranks", "beside", "size"),
    [
        ("120Gi", 1, 20, 100),
        ("120G", 1, 20, 91),
        ("200Gi", 2, 20, 80),
        ("28Gi", 1, 20, 8),
        ("28Gi", 1, 10, 18),
        ("21Gi", 1, 20, 1),
    ],
)
def test_l1_is_what_the_pod_has_for_each_rank_less_the_engine(memory: str, ranks: int, beside: int, size: int) -> None:
    patch = attach(tier(engineGiBPerRank=beside), f"--tensor-parallel-size={ranks}", memory=memory)
    assert env(patch)[f"{L1}_CAPACITY_GB"] == str(size)
    assert patch.memory == ranks * size * sizing.GIB


def test_what_a_pod_asks_for_counts_before_what_it_may_have() -> None:
    resources = {"requests": {"memory": "60Gi"}, "limits": {"memory": "120Gi", "nvidia.com/gpu": "1"}}
    assert env(attach(tier(), resources=resources))[f"{L1}_CAPACITY_GB"] == "40"


def test_a_node_s_share_is_the_same_for_all_engines() -> None:
    patch = attach(tier(cpuTierGiBPerNode=645), "--tensor-parallel-size=2", memory="")
    assert env(patch)[f"{L1}_CAPACITY_GB"] == "80"
    assert plan(tier(cpuTierGiBPerNode=645)).memory == {"cacheGiB": 645, "gpusPerNode": 8}


def test_a_share_below_a_gib_is_no_tier() -> None:
    with pytest.raises(
        Invalid, match=r"cpuTierGiBPerNode \(is 7\) is less than 1 GiB for each of 8 GPUs; set at least 8"
    ):
        plan(tier(cpuTierGiBPerNode=7))


@pytest.mark.parametrize(
    ("offloading", "memory", "ranks", "says"),
    [
        ({}, "20Gi", 1, "asks for 20 GiB of memory, and 1 rank(s) of 1 GiB of KV and 20 GiB beside that"),
        ({}, "41Gi", 2, "need 42 GiB"),
        ({"cpuTierGiBPerNode": 640}, "120Gi", 2, "2 rank(s) of 80 GiB of KV and 20 GiB beside that"),
        ({"cpuTierGiBPerNode": 640}, "120Gi", 2, "need 200 GiB"),
        ({"cpuTierGiBPerNode": 640}, "120Gi", 2, "or aibrix.offloading.cpuTierGiBPerNode of the tier to less"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(offloading: Any, memory: str, ranks: int, says: str) -> None:
    refusal = refuse(tier(**offloading), f"-tp={ranks}", memory=memory)
    assert refusal.reason == "EngineMemoryShort"
    assert says in refusal.message


def test_an_engine_that_gets_less_memory_than_it_holds_is_not_rolled_to_be_killed() -> None:
    story = stories.engine_story(example="aibrix-offloading")
    before = stories.pod(story.settle())
    for kind in ("requests", "limits"):
        story.composite["spec"]["engine"]["resources"][kind]["memory"] = "40Gi"
    rendered = story.settle()
    assert stories.pod(rendered) == before
    assert stories.state(rendered, "TierAttached") == ("True", "EngineMemoryShort")
    assert stories.state(rendered, "RolledOut") == ("False", "Held")


def test_without_any_number_nobody_can_tell() -> None:
    refusal = refuse(tier(), memory="")
    assert refusal.reason == "EngineMemoryUnknown"
    assert "engine.resources.limits.memory" in refusal.message


def test_what_fits_by_the_tiers_own_reckoning_is_warned_of_by_no_other() -> None:
    patch = attach(tier(engineGiBPerRank=5), memory="28Gi")
    template: Manifest = {
        "metadata": {},
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "28Gi"}}}]},
    }
    _, warnings = attachment.apply(template, patch, engine(memory="28Gi"), "engine")
    assert not warnings


def test_another_memory_is_another_l1() -> None:
    one, other = (
        attachment.decide(Consumer(engine(memory=m), "Wait"), tier(), EIGHT_GPUS, None) for m in ("60Gi", "80Gi")
    )
    assert one.patch
    assert other.patch
    assert one.patch.basis != other.patch.basis


# --- what does not go with it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "args", "reason", "says"),
    [
        (PATCHED, ["--enable-lora"], "LoRANotIsolated", "by tokens alone"),
        (PATCHED, ['--limit-mm-per-prompt={"image":4}'], "EngineIncompatible", "(to '{\"image\":4}')"),
        (PATCHED, ["--limit-mm-per-prompt.image=0"], "EngineIncompatible", "--limit-mm-per-prompt"),
        (PATCHED, ["--enable-prompt-embeds"], "EngineIncompatible", "--enable-prompt-embeds"),
        (OWN, ["--enable-mm-embeds"], "EngineIncompatible", "--enable-mm-embeds"),
        (PATCHED, ["-pp=2"], "EngineIncompatible", "--pipeline-parallel-size 2"),
        (OWN, ["-dcp=2"], "EngineIncompatible", "--decode-context-parallel-size 2"),
        (OWN, ["--attention-backend=TRITON_ATTN"], "EngineIncompatible", "--attention-backend TRITON_ATTN"),
        (OWN, ["--attention-backend=FLASHINFER"], "EngineIncompatible", "answers could be wrong"),
        (OWN, ["--attention-config.backend=FLASHINFER"], "EngineIncompatible", "--attention-config.backend"),
        (OWN, ["-ac", '{"backend":"FLASHINFER"}'], "EngineIncompatible", "set -ac"),
        (PATCHED, ["--attention-backend=FLASHINFER"], "EngineIncompatible", "reads KV of FLASH_ATTN alone"),
        ("team/vllm:v0.19.0", ["--speculative-config={}"], "EngineIncompatible", "from vLLM 0.19.0 on"),
        (OWN, ["--no-disable-hybrid-kv-cache-manager"], "EngineIncompatible", "--no-disable-hybrid"),
    ],
)
def test_what_would_answer_wrongly_or_not_start_is_refused(image: str, args: list[str], reason: str, says: str) -> None:
    refusal = refuse(tier(), *args, image=image)
    assert refusal.reason == reason
    assert says in refusal.message
    # An engine that runs attached is not changed to this either.
    assert refusal.rules_out


@pytest.mark.parametrize(
    ("image", "args"),
    [
        (OWN, ["--attention-backend=FLASH_ATTN"]),
        (OWN, ["--speculative-config={}"]),
        (PATCHED, ["--disable-hybrid-kv-cache-manager"]),
        (PATCHED, ["-tp=2", "-dp=2"]),
    ],
)
def test_what_goes_with_it_is_attached(image: str, args: list[str]) -> None:
    assert attach(tier(cpuTierGiBPerNode=64), *args, image=image, memory="400Gi").connector


def test_an_attention_backend_may_be_chosen_by_a_variable() -> None:
    chosen = [{"name": "VLLM_ATTENTION_BACKEND", "value": "TRITON_ATTN_VLLM_V1"}]
    assert "VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1" in refuse(tier(), env=chosen).message
    assert attach(tier(), env=[{"name": "VLLM_ATTENTION_BACKEND", "value": "FLASH_ATTN_VLLM_V1"}])


def test_an_engine_that_chooses_no_attention_backend_gets_the_one_that_is_read() -> None:
    variable = {"name": "VLLM_ATTENTION_BACKEND", "value": "FLASH_ATTN"}
    assert variable in attach(tier()).env
    assert "--attention-backend=FLASH_ATTN" not in attach(tier()).args
    # vLLM reads the variable up to 0.14.
    for own in ([], [variable]):
        patch = attach(tier(), image=OWN, env=own)
        assert "--attention-backend=FLASH_ATTN" in patch.args
        assert variable not in patch.env
    assert "--attention-backend=FLASH_ATTN" not in attach(tier(), "--attention-backend=FLASH_ATTN", image=OWN).args


def test_kv_that_lies_by_heads_is_refused() -> None:
    assert attach(tier(), env=[{"name": "VLLM_KV_CACHE_LAYOUT", "value": "NHD"}])
    refusal = refuse(tier(), env=[{"name": "VLLM_KV_CACHE_LAYOUT", "value": "HND"}])
    assert "VLLM_KV_CACHE_LAYOUT=HND" in refusal.message
    assert refusal.rules_out


def test_images_are_kept_out_since_their_tokens_are_all_alike() -> None:
    (limit,) = attach(tier()).args
    none = json.loads(limit.removeprefix("--limit-mm-per-prompt="))
    assert none == {"image": 0, "video": 0, "audio": 0, "vision_chunk": 0}
    own = f"--limit-mm-per-prompt={json.dumps(none)}"
    assert not attach(tier(), own).args


def test_an_engine_that_moves_to_a_vllm_without_it_waits_instead_of_losing_it() -> None:
    story = stories.engine_story(example="aibrix-offloading")
    before = stories.pod(story.settle())
    story.composite["spec"]["engine"]["image"] = "team/vllm-openai:v0.33.0"
    rendered = story.settle()
    assert stories.pod(rendered) == before
    assert stories.state(rendered, "TierAttached") == ("True", "EngineTooNew")
    assert "waits; remove kvCache.tierRef" in rendered.condition("TierAttached")["message"]


def test_what_the_table_says_of_vllm_leaves_a_connector_for_what_is_attached() -> None:
    assert table.VLLM_AIBRIX_PATCHED.since < table.VLLM_AIBRIX.since < table.VLLM_RUNNER_V2.since
