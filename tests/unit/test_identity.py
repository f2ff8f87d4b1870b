"""Two engines share KV only where they mean the same model: never another model's KV."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function.backends.base import EnginePatch
from function.engines.identity import is_hub_id
from tests.unit.builders import MODEL, NEW, OLD, attach, derive, engine, env, tier, vouched

# --- plain: the model string alone says everything ----------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [f"--model={MODEL}"],
        ["--model", MODEL],
        [MODEL],
        ["serve", MODEL],
        [f"--model={MODEL}", "-tp", "2", "-pp=2", "--gpu-memory-utilization=0.9", "--enforce-eager"],
        [f"--model={MODEL}", "--max-num-seqs", "-1", "--served-model-name=chat", "--port", "9000", "--seed=1"],
        ["--model=other/model", f"--model={MODEL}"],
    ],
    ids=" ".join,
)
def test_a_hub_id_without_options_that_change_kv_is_plain_and_one_identity(args: list[str]) -> None:
    identity = derive(*args, env={"HF_TOKEN": "x", "VLLM_LOGGING_LEVEL": "DEBUG"})
    assert identity.plain
    assert not identity.vouched
    assert not identity.lora
    assert identity == derive(f"--model={MODEL}", image=OLD, owner=("other", "deployment"))


HUB_IDS = {
    "Qwen/Qwen3-32B": True,
    "meta-llama/Llama-3.3-70B-Instruct": True,
    "/mnt/models": False,
    "/models/qwen": False,
    "/models": False,
    "./qwen": False,
    "../models": False,
    "~/qwen": False,
    "models/": False,
    "models/qwen/v1": False,
    "s3://bucket/qwen": False,
    "gs://bucket": False,
    "qwen": False,
    "": False,
}


@pytest.mark.parametrize("model", HUB_IDS)
def test_a_hub_id_is_an_owner_and_a_name(model: str) -> None:
    assert is_hub_id(model) == HUB_IDS[model]
    assert derive("--model", model).plain == HUB_IDS[model]


OPTIONS = {
    "--revision": "main",
    "--code-revision": "main",
    "--tokenizer": "a/b",
    "--tokenizer-revision": "main",
    "--quantization": "fp8",
    "--dtype": "bfloat16",
    "--kv-cache-dtype": "fp8",
    "--calculate-kv-scales": "true",
    "--hf-overrides": '{"a":1}',
    "--hf-config-path": "a/b",
    "--rope-scaling": '{"a":1}',
    "--rope-theta": "10000",
    "--model-impl": "transformers",
    "--load-format": "dummy",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_that_changes_kv_makes_another_identity_that_is_not_plain(option: str) -> None:
    value = OPTIONS[option]
    plain = derive(f"--model={MODEL}")
    identity = derive(f"--model={MODEL}", option, value)
    assert not identity.plain
    assert identity.value != plain.value
    assert identity.seed != plain.seed
    assert identity.value != derive(f"--model={MODEL}", option, f"{value}2").value
    assert identity.value != derive("--model=Qwen/Qwen3-8B", option, value).value


@pytest.mark.parametrize(
    "words",
    [
        ["-q", "fp8"],
        ["-q=fp8"],
        ["-qfp8"],
        ["--q", "fp8"],
        ["--quant", "fp8"],
        ["--kv_cache_dtype=fp8"],
        ["--kv-cache-d", "fp8"],
        ["--calculate-kv-scales"],
        ["--calculate_kv_scales"],
        ["--hf-overrides.architectures", "X"],
        ["--hf_overrides.rope_scaling.factor=4"],
        ["--rope-s", "{}"],
        ["--dt", "half"],
        ["--dtype"],
    ],
    ids=" ".join,
)
def test_an_option_counts_in_every_spelling(words: list[str]) -> None:
    assert not derive(f"--model={MODEL}", *words).plain
    assert not derive(*words, f"--model={MODEL}").plain
    assert not derive(command=["vllm", "serve", MODEL, *words]).plain


@pytest.mark.parametrize(
    "option",
    [
        "--quantization-config",
        "--kv-cache-dtype-skip-layers",
        "--mamba-cache-dtype",
        "--speculative-config",
        "-sc",
        "--attention-config",
        # Models with LongRoPE rotate keys by it.
        "--max-model-len",
        "--convert",
        "--config",
        "--an-option-of-next-year",
    ],
)
def test_an_option_that_is_not_known_to_change_nothing_may_change_kv(option: str) -> None:
    identity = derive(f"--model={MODEL}", option, "a")
    assert not identity.plain
    assert identity.seed != derive(f"--model={MODEL}", option, "b").seed
    assert not derive(f"--model={MODEL}", option).plain


def test_the_last_value_of_an_option_is_the_one_that_counts() -> None:
    half, bfloat16 = ("--dtype=half", "--dtype=bfloat16")
    assert derive(f"--model={MODEL}", half, bfloat16) == derive(f"--model={MODEL}", bfloat16)
    assert derive(f"--model={MODEL}", half, bfloat16).seed != derive(f"--model={MODEL}", bfloat16, half).seed
    assert (
        derive(f"--model={MODEL}", half, "--dt=bfloat16").seed != derive(f"--model={MODEL}", "--dt=bfloat16", half).seed
    )
    fp8, awq = ["-q", "fp8"], ["--quantization=awq"]
    assert derive(f"--model={MODEL}", *fp8, *awq).seed != derive(f"--model={MODEL}", *awq, *fp8).seed
    assert derive(f"--model={MODEL}", "--calculate-kv-scales", "--calculate-kv-scales=true") == derive(
        f"--model={MODEL}", "--calculate-kv-scales=true"
    )


def test_an_option_by_a_variable_is_that_option() -> None:
    plain, fp8 = derive(f"--model={MODEL}"), derive(f"--model={MODEL}", "--quantization=fp8")
    assert derive(f"--model={MODEL}", "$(EXTRA)", env={"EXTRA": "--quantization=fp8"}) == fp8
    assert derive("--model=$(OWNER)/Qwen3-32B", env={"OWNER": "Qwen"}) == plain
    half = derive(f"--model={MODEL}", "--dtype=$(D)", env={"D": "half"})
    assert half.seed != derive(f"--model={MODEL}", "--dtype=$(D)", env={"D": "bfloat16"}).seed


def test_a_variable_may_hold_another_that_stands_before_it() -> None:
    def seed(value: str) -> object:
        variables = [{"name": "A", "value": value}, {"name": "B", "value": "--dtype=$(A)"}]
        return env(attach(tier(), engine("$(B)", env=variables)))["PYTHONHASHSEED"]

    assert seed("half") == derive(f"--model={MODEL}", "--dtype=half").seed
    assert seed("bfloat16") == derive(f"--model={MODEL}", "--dtype=bfloat16").seed


@pytest.mark.parametrize("name", ["VLLM_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "HF_ENDPOINT", "HF_HUB_OFFLINE"])
def test_another_hub_makes_another_identity_that_is_not_plain(name: str) -> None:
    identity = derive(f"--model={MODEL}", env={name: "1"})
    assert not identity.plain
    assert identity.seed != derive(f"--model={MODEL}").seed
    assert identity.seed != derive(f"--model={MODEL}", env={name: "2"}).seed


def test_the_order_of_flags_does_not_matter() -> None:
    a = derive(f"--model={MODEL}", "--quantization=fp8", "--dtype", "half", "--hf-overrides.b=1", "--hf-overrides.a=2")
    b = derive("--hf-overrides.a=2", "--dtype=half", f"--model={MODEL}", "--hf-overrides.b", "1", "--quantization=fp8")
    assert a == b
    assert a.seed == b.seed


def test_a_flag_that_does_not_change_kv_does_not_split_a_cache() -> None:
    assert derive(f"--model={MODEL}", "--dtype=half", "-tp", "2") == derive(
        f"--model={MODEL}", "--dtype=half", "--enforce-eager", image=OLD, owner=("other", "deployment")
    )


HARMLESS = (
    *("--served-model-name chat", "--trust-remote-code", "--download-dir /tmp", "--tokenizer-mode auto", "--seed 1"),
    *("--host 0.0.0.0", "--port 9000", "--root-path /v1", "--api-key k", "--uvicorn-log-level info"),
    *("--ssl-keyfile k", "--ssl-certfile c", "--ssl-ca-certs c", "--allowed-origins *", "--allowed-methods *"),
    *("--allowed-headers *", "--allow-credentials", "--disable-log-requests", "--disable-log-stats"),
    *("--enable-log-requests", "--disable-uvicorn-access-log", "--max-log-len 9", "--otlp-traces-endpoint http://o"),
    *("--tensor-parallel-size 2", "-tp 2", "--pipeline-parallel-size 2", "-pp 2", "--data-parallel-size 2", "-dp 2"),
    *("--distributed-executor-backend mp", "--gpu-memory-utilization 0.9", "--max-num-seqs 8", "--swap-space 4"),
    *("--max-num-batched-tokens 8192", "--enforce-eager", "--async-scheduling", "--scheduling-policy fcfs"),
    *("--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill", "--response-role a"),
    *("--no-enable-chunked-prefill", "--chat-template t", "--chat-template-content-format auto", "--max-logprobs 5"),
    *("--enable-auto-tool-choice", "--tool-call-parser p", "--reasoning-parser p", "--generation-config vllm"),
    *("--override-generation-config {}", "--limit-mm-per-prompt {}", "--enable-server-load-tracking"),
    *("-n 2", "-r 1", "-dpr 1", "-dpn 1", "-dpa a", "-dpp 1", "-dpb ray", "-dph", "-dpe", "-asc 4", "--headless"),
    *("--data-parallel-rank 1", "--data-parallel-backend ray", "--data-parallel-hybrid-lb", "--api-server-count 4"),
)


@pytest.mark.parametrize("flag", HARMLESS)
def test_a_flag_that_changes_no_kv_leaves_an_engine_plain(flag: str) -> None:
    assert derive(f"--model={MODEL}", *flag.split()) == derive(f"--model={MODEL}")
    name, *value = flag.split()
    underscored = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
    assert derive(f"--model={MODEL}", "=".join([underscored, *value])).plain


# --- private: nobody else can know what it means ------------------------------------------------------------------

PRIVATE: dict[str, dict[str, Any]] = {
    "a path": {"args": ["--model=/mnt/models"]},
    "a path by position": {"args": ["/mnt/models", "--dtype=half"]},
    "no model": {"args": ["-tp", "2"]},
    "a model of a ConfigMap": {"args": ["--model=$(MODEL)"], "env": {"MODEL": None}},
    "a model's owner of a ConfigMap": {"args": ["--model=$(OWNER)/Qwen3-32B"], "env": {"OWNER": None}},
    "an option of a ConfigMap": {"args": [f"--model={MODEL}", "--dtype=$(DTYPE)"], "env": {"DTYPE": None}},
    "an option of nobody": {"args": [f"--model={MODEL}", "--dtype", "$(DTYPE)"]},
    "an option's name of a ConfigMap": {"args": [f"--model={MODEL}", "--$(OPTION)=fp8"], "env": {"OPTION": None}},
    "a file of options": {"args": [f"--model={MODEL}", "--config", "/etc/vllm.yaml"]},
    "a file of options, with an equals sign": {"args": [f"--model={MODEL}", "--config=/etc/vllm.yaml"]},
    "a file of options, shortened": {"args": [f"--model={MODEL}", "--conf=/etc/vllm.yaml"]},
    "a shell": {"args": [f"--model={MODEL}"], "command": ["bash", "start.sh"]},
    "a hub of a ConfigMap": {"args": [f"--model={MODEL}"], "env": {"HF_ENDPOINT": None}},
}


@pytest.mark.parametrize("case", PRIVATE)
def test_what_only_a_deployment_can_know_is_private_to_it_and_its_image(case: str) -> None:
    args = PRIVATE[case]["args"]
    given: dict[str, Any] = {k: v for k, v in PRIVATE[case].items() if k != "args"}
    identity = derive(*args, **given)
    assert not identity.plain
    assert identity == derive(*args, **given)
    others = [
        derive(*args, **given, owner=("ml", "other")),
        derive(*args, **given, owner=("other", "chat")),
        derive(*args, **given, image=OLD),
        derive(*args, "--enforce-eager", **given),
        derive(f"--model={MODEL}"),
    ]
    assert len({identity.seed, *(o.seed for o in others)}) == 6


def test_owners_are_told_apart_by_namespace_and_name() -> None:
    assert (
        derive("--model=/mnt/models", owner=("a", "b-c")).seed != derive("--model=/mnt/models", owner=("a-b", "c")).seed
    )
    assert (
        derive("--model=/mnt/models", owner=("a", "b/c")).seed != derive("--model=/mnt/models", owner=("a/b", "c")).seed
    )


# --- vouched, LoRA ------------------------------------------------------------------------------------------------


def test_a_user_may_vouch_for_what_cannot_be_known() -> None:
    identity = derive("--model=/mnt/models", "--dtype=half", vouched="llama-70b-fp16")
    assert identity.vouched
    assert not identity.plain
    same = derive("--model=/mnt/models", vouched="llama-70b-fp16", image=OLD, owner=("other", "deployment"))
    assert identity == same
    assert identity.seed != derive("--model=/mnt/models", "--dtype=half", vouched="llama-70b-bf16").seed


def test_nobody_can_vouch_oneself_into_a_derived_identity() -> None:
    derived = derive(f"--model={MODEL}")
    assert derive(f"--model={MODEL}", vouched=MODEL).seed != derived.seed
    assert derive(f"--model={MODEL}", vouched=derived.value).seed != derived.seed


@pytest.mark.parametrize(
    "words", [["--enable-lora"], ["--enable_lora"], ["--lora-modules", "a=b/c"], ["--lora_modules=a=b/c"]], ids=" ".join
)
@pytest.mark.parametrize("by", [None, "vouched"])
def test_an_engine_with_adapters_is_known_by_its_flags_vouched_or_not(words: list[str], by: str | None) -> None:
    assert derive(f"--model={MODEL}", *words, vouched=by).lora


def test_an_engine_that_turns_adapters_off_has_none() -> None:
    assert not derive(f"--model={MODEL}", "--no-enable-lora").lora


def test_a_digest_changes_with_the_identity_and_with_adapters() -> None:
    digests = [
        derive(f"--model={MODEL}").digest,
        derive(f"--model={MODEL}", "--dtype=half").digest,
        derive(f"--model={MODEL}", vouched="a").digest,
        derive(f"--model={MODEL}", "--enable-lora", vouched="a").digest,
        derive("--model=/mnt/models").digest,
    ]
    assert len(set(digests)) == 5
    assert derive(f"--model={MODEL}", "-tp", "2", image=OLD).digest == digests[0]


# --- the seed -----------------------------------------------------------------------------------------------------


@given(st.text(max_size=32), st.text(min_size=1, max_size=32) | st.none())
@settings(deadline=None)
def test_a_seed_is_a_decimal_that_python_takes(model: str, by: str | None) -> None:
    seed = derive("--model", model, vouched=by).seed
    assert seed == str(int(seed))
    assert 0 <= int(seed) < 4294967296


# The first 8 bytes of a value's sha256, modulo 2**32.
SEEDS = {
    '{"model":"Qwen/Qwen3-32B","options":{},"source":{}}': "3545267068",
    '{"identity":"qwen"}': "508676380",
    '{"model":"Qwen/Qwen3-32B","options":{},"source":{"HF_ENDPOINT":"x"}}': "3227541404",
    '{"model":"Qwen/Qwen3-32B","options":{"--dtype":"half","-q":"fp8"},'
    '"ordered":[["-q","fp8"],["--dtype","half"]],"source":{}}': "3087337913",
    '{"image":"vllm/vllm-openai:v0.33.0","model":"/mnt/models","options":{},"owner":["ml","chat"],"source":{},'
    '"words":["--model=/mnt/models"]}': "1558734173",
}


def test_a_seed_never_changes_since_that_would_empty_every_cache() -> None:
    identities = [
        derive(f"--model={MODEL}"),
        derive(f"--model={MODEL}", vouched="qwen"),
        derive(f"--model={MODEL}", env={"HF_ENDPOINT": "x"}),
        derive(f"--model={MODEL}", "-q", "fp8", "--dtype=half"),
        derive("--model=/mnt/models"),
    ]
    assert {i.value: i.seed for i in identities} == SEEDS


# --- the property: two meanings behind one model string never share keys ------------------------------------------


class Meaning(NamedTuple):
    """What decides an engine's KV, beside the model string."""

    options: Mapping[str, str]
    source: Mapping[str, str]
    config: bool
    owner: str
    image: str

    def same_kv(self, other: "Meaning", *, hub: bool) -> bool:
        """Whether two engines of one model string may share."""
        if hub and not self.config and not other.config:
            return (self.options, self.source) == (other.options, other.source)
        return self == other


class Written(NamedTuple):
    """A meaning as one user wrote it."""

    meaning: Meaning
    args: list[str]


_SHORTER = {"--quantization": ("-q",), "--dtype": ("--dt",), "--kv-cache-dtype": ("--kv-cache-d", "--kv-c")}
_HARMLESS = ("--enforce-eager", "--gpu-memory-utilization=0.9", "-tp=2", "--port 9000", "--max-num-seqs -1")


@st.composite
def option(draw: st.DrawFn) -> tuple[str, str, str]:
    """Give an option, its value, and how both are written."""
    name = draw(st.sampled_from(["--quantization", "--dtype", "--kv-cache-dtype", "--revision", "--model-impl"]))
    value = draw(st.sampled_from(["a", "b"]))
    spelled = draw(st.sampled_from([name, "--" + name[2:].replace("-", "_"), *_SHORTER.get(name, ())]))
    return name, value, f"{spelled}{draw(st.sampled_from('= '))}{value}"


@st.composite
def written(draw: st.DrawFn) -> Written:
    options = draw(st.lists(option(), max_size=4))
    meaning = Meaning(
        options={name: value for name, value, _ in options},  # the last one wins
        source=draw(st.dictionaries(st.just("HF_ENDPOINT"), st.sampled_from(["x", "y"]), max_size=1)),
        config=draw(st.integers(0, 3)) == 0,
        owner=draw(st.sampled_from(["chat", "search"])),
        image=draw(st.sampled_from([NEW, OLD])),
    )
    flags = [flag for _, _, flag in options]
    flags += ["--config=/etc/vllm.yaml"] if meaning.config else []
    for flag in draw(st.lists(st.sampled_from(_HARMLESS), max_size=2, unique=True)):
        flags.insert(draw(st.integers(0, len(flags))), flag)
    return Written(meaning, [word for flag in flags for word in flag.split()])


def attached(by: Written, model: str) -> EnginePatch:
    variables = [{"name": name, "value": value} for name, value in by.meaning.source.items()]
    found = engine(f"--model={model}", *by.args, name=by.meaning.owner, image=by.meaning.image, env=variables)
    return attach(tier(), found)


@given(a=written(), b=written(), model=st.sampled_from([MODEL, "/mnt/models"]))
@settings(max_examples=200, deadline=None)
def test_two_meanings_behind_one_model_string_never_share_keys(a: Written, b: Written, model: str) -> None:
    patches = [attached(a, model), attached(b, model)]
    agents = [p for p in patches if p.connector == "LMCacheMPConnector"]
    seeds = [env(p)["PYTHONHASHSEED"] for p in patches if p.connector == "LMCacheConnectorV1"]
    assert len(agents) + len(seeds) == 2
    if not a.meaning.same_kv(b.meaning, hub=model == MODEL):
        assert len(agents) <= 1
        assert len(set(seeds)) == len(seeds)


@given(a=written(), order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_one_meaning_is_one_identity_however_it_is_ordered(a: Written, order: Any) -> None:
    flags = [f"{name}={value}" for name, value in a.meaning.options.items()]
    shuffled = list(flags)
    order.shuffle(shuffled)
    assert derive(f"--model={MODEL}", *flags) == derive(*shuffled, f"--model={MODEL}", image=OLD, owner=("x", "y"))


@pytest.mark.parametrize("image", [NEW, OLD])
def test_only_the_users_word_lets_a_path_share(image: str) -> None:
    mine = engine("--model=/mnt/models", image=image, name="mine")
    theirs = engine("--model=/mnt/models", image=image, name="theirs")
    assert env(attach(tier(), mine))["PYTHONHASHSEED"] != env(attach(tier(), theirs))["PYTHONHASHSEED"]
    told = [
        attach(tier(), engine("--model=/mnt/models", image=image, name=name, kvCache=vouched())).env
        for name in ("mine", "theirs")
    ]
    assert told[0] == told[1]
