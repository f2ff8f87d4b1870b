"""SGLang's command line, read as its own parser reads it: option names are those of the wheels 0.5.5 to 0.5.23."""

from typing import Any

import pytest

from function import api
from function.api.deployment import Engine as EngineSpec
from function.engines import Engine, pod, sglang
from function.engines.args import CommandLine
from function.kube import Manifest

MODEL = "--model-path=Qwen/Qwen3-32B"


def read(*args: str, image: str = "lmsysorg/sglang:v0.5.23", **fields: Any) -> Engine:
    spec = {"name": "SGLang", "image": image, "args": [MODEL, *args], **fields}
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


def template(*args: str, **fields: Any) -> Manifest:
    spec = api.parse(
        EngineSpec, {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23", "args": [MODEL, *args], **fields}
    )
    line = pod.read(spec, namespace="ml", name="chat").line
    container: Manifest = pod.pod_template(spec, line, {})["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    ("args", "gpus"),
    [
        ((), 1),
        (("--tp", "8"), 8),
        (("--tp=8",), 8),
        (("--tp-size=8",), 8),
        (("--tensor-parallel-size", "8"), 8),
        (("--tensor-p=8",), 8),
        (("--tp=4", "--pp-size=2"), 8),
        (("--tp=4", "--pipeline-parallel-size", "2"), 8),
        (("--tp=4", "--dp=2"), 8),
        (("--tp=4", "--data-parallel-size=2"), 8),
        # Attention's replicas are within the TP group.
        (("--tp=8", "--dp-size=8", "--enable-dp-attention"), 8),
        (("--tp=8", "--attn-dp-size=8"), 8),
        (("--tp=2", "--tp=4"), 4),
        (("--pp-max-micro-batch-size=4",), 1),
    ],
)
def test_gpus_are_what_the_ranks_take(args: tuple[str, ...], gpus: int) -> None:
    assert read(*args).ranks == gpus
    assert template(*args)["resources"] == {"limits": {"nvidia.com/gpu": str(gpus)}}


def test_it_listens_where_others_can_reach_it() -> None:
    assert template()["command"] == ["python3", "-m", "sglang.launch_server"]
    assert template()["args"] == [MODEL, "--host=0.0.0.0"]
    assert template()["ports"] == [{"name": "http", "containerPort": 30000}]
    assert template("--host", "::")["args"] == [MODEL, "--host", "::"]
    assert template("--port=8000")["ports"] == [{"name": "http", "containerPort": 8000}]
    assert template()["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}


@pytest.mark.parametrize(
    ("image", "version", "known"),
    [
        ("lmsysorg/sglang:v0.5.23", None, (0, 5, 23)),
        ("lmsysorg/sglang:v0.5.9-cu130", None, (0, 5, 9)),
        ("lmsysorg/sglang:v0.5.5.post1", None, (0, 5, 5)),
        ("registry:5000/ai/sglang:0.5.12@sha256:" + "0" * 64, None, (0, 5, 12)),
        ("lmsysorg/sglang:latest", None, None),
        ("lmsysorg/sglang:v0.5.23rc1", None, None),
        ("acme/engine:1.4", "0.5.23", (0, 5, 23)),
        ("vllm/vllm-openai:v0.33.0", None, None),
    ],
)
def test_the_version_is_the_tags_or_the_users(image: str, version: str | None, known: tuple[int, ...] | None) -> None:
    assert read(image=image, version=version).version == known


# Options of the wheels that change KV, each as it is and as short as argparse takes it in 0.5.23.
CHANGES_KV = [
    "--dtype=half",
    "--quantization=fp8",
    "--quantization-p=/scales.json",
    "--kv-cache-dtype=fp8_e4m3",
    "--kv-cache-d=fp8_e4m3",
    "--revision=v1",
    "--rev=v1",
    "--json-model-override-args={}",
    "--j={}",
    "--context-length=131072",
    "--context=131072",
    "--load-format=dummy",
    "--model-impl=transformers",
    "--speculative-algorithm=EAGLE",
    "--enable-lora",
    "--lora-p=a=/a",
    "--attention-backend=triton",
    "--tokenizer-path=other/tokenizer",
]


@pytest.mark.parametrize("option", CHANGES_KV)
def test_no_spelling_hides_an_option_that_changes_kv(option: str) -> None:
    assert read(option).identity.digest != read().identity.digest
    assert not read(option).identity.plain


@pytest.mark.parametrize("option", sorted(sglang.HARMLESS - {"--model", "--model-path"}))
def test_what_changes_no_kv_is_no_part_of_the_identity(option: str) -> None:
    assert read(f"{option}=2").identity.digest == read().identity.digest
    assert read(f"{option}=2").identity.plain


@pytest.mark.parametrize("args", [("--enable-lora",), ("--lora-paths", "a=/a"), ("--lora-p", "a=/a")])
def test_adapters_are_seen(args: tuple[str, ...]) -> None:
    assert read(*args).identity.lora
    assert not read("--lora-backend=triton").identity.lora


@pytest.mark.parametrize("model", [("--model", "a/b"), ("--model-path", "a/b"), ("--model=a/b",), ("--model-pa=a/b",)])
def test_the_model_is_found_under_all_its_names(model: tuple[str, ...]) -> None:
    line = CommandLine((), model)
    assert line.value(*sglang.KIND.model) == "a/b"


def test_the_model_may_follow_serve() -> None:
    line = CommandLine(("sglang", "serve", "a/b"), ("--tp=2",))
    assert line.positional == "a/b"
    assert sglang.ranks(line) == 2


@pytest.mark.parametrize(
    "option",
    [
        "--enable-hierarchical-cache",
        "--enable-hicache",
        "--enable-hier",
        "--hicache-size=3",
        "--hicache-si=3",
        "--hicache-mem-layout=layer_first",
        "--hicache-storage-backend-extra-config={}",
        "--enable-lmcache",
        "--enable-lm",
        "--lmcache-config-file=/c.yaml",
        "--enable-flexkv",
        "--radix-cache-backend=x",
    ],
)
def test_a_cache_wired_by_hand_is_seen_in_any_spelling(option: str) -> None:
    assert read().line.flags(*sglang.OWN_WIRING) == []
    assert read(option).line.flags(*sglang.OWN_WIRING)


@pytest.mark.parametrize(
    ("args", "same"),
    [
        (("--tp=2",), False),
        (("--pp-size=2",), False),
        (("--dp-size=2",), True),
        (("--dp-size=2", "--tp=1"), True),
        (("--port=1234",), True),
    ],
)
def test_a_keyspace_is_of_one_split(args: tuple[str, ...], same: bool) -> None:
    assert (read(*args).keyspace == read().keyspace) is same


def test_a_keyspace_is_of_one_version() -> None:
    assert read(image="lmsysorg/sglang:v0.5.22").keyspace != read().keyspace
    assert read(image="acme/sglang:v0.5.23").keyspace == read().keyspace


def test_replicas_of_attention_split_kv_and_replicas_of_the_model_do_not() -> None:
    two, four = (read("--tp=4", f"--dp-size={n}", "--enable-dp-attention") for n in (2, 4))
    assert two.keyspace != four.keyspace
    assert read("--tp=4", "--dp-size=2").keyspace == read("--tp=4", "--dp-size=4").keyspace


def test_a_key_from_the_environment_hides_nothing() -> None:
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    for option in ("--api-key", "--admin-api-key"):
        given = read(option, "$(KEY)", env=env)
        assert not given.line.hidden
        assert given.identity.digest == read().identity.digest
