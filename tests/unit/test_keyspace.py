"""What engines have to agree on to read each other's pages, beyond their identity."""

import pytest

from function import api
from function.api.deployment import Engine as EngineSpec
from function.engines import Engine, pod


def engine(*args: str, name: str = "vLLM", image: str = "vllm/vllm-openai:v0.33.0", **env: str) -> Engine:
    """Read an engine with these args and variables."""
    flag = "--model-path" if name == "SGLang" else "--model"
    spec = {
        "name": name,
        "image": image,
        "args": [f"{flag}=Qwen/Qwen3-32B", *args],
        "env": [{"name": key, "value": value} for key, value in env.items()],
    }
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


@pytest.mark.parametrize(
    "other",
    [
        engine(VLLM_KV_CACHE_LAYOUT="HND"),
        engine(VLLM_MLA_DISABLE="1"),
        engine(VLLM_PP_LAYER_PARTITION="20,44"),
        engine(VLLM_SOMETHING_NEW="1"),
        engine("--tensor-parallel-size=2"),
        engine("--quantization=fp8"),
        engine(image="vllm/vllm-openai:v0.32.0"),
    ],
    ids=lambda e: str(e.settings or e.line.words[1:] or e.version),
)
def test_what_may_lay_pages_out_anew_makes_another_keyspace(other: Engine) -> None:
    assert other.keyspace != engine().keyspace


@pytest.mark.parametrize(
    "same",
    [
        engine("--port=9000", VLLM_LOGGING_LEVEL="DEBUG", VLLM_API_KEY="secret", HF_TOKEN="secret", TZ="UTC"),
        engine(image="registry.example/vllm-openai:v0.33.0"),
    ],
)
def test_what_lays_out_nothing_does_not(same: Engine) -> None:
    assert same.keyspace == engine().keyspace


def test_the_order_of_variables_does_not_matter() -> None:
    one = engine(VLLM_A="1", VLLM_B="2")
    other = engine(VLLM_B="2", VLLM_A="1")
    assert one.keyspace == other.keyspace


def test_an_sglang_heeds_its_own_variables_and_not_a_vllms() -> None:
    sglang = {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23"}
    assert engine(**sglang, VLLM_KV_CACHE_LAYOUT="HND").keyspace == engine(**sglang).keyspace
    assert engine(**sglang, SGLANG_NEW_LAYOUT="1").keyspace != engine(**sglang).keyspace
