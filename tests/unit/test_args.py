"""A command line is read as vLLM's parser reads it, in every spelling that it takes."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function.engines import pod, vllm
from function.engines.args import CommandLine, Flag, names

KV = "--kv-transfer-config"
CONFIG = '{"kv_connector":"X","kv_role":"kv_both"}'

# How a user may write a flag, and what is read of it.
SPELLINGS: dict[str, tuple[list[str], list[tuple[str, str | None]]]] = {
    "with an equals sign": ([f"{KV}={CONFIG}"], [(KV, CONFIG)]),
    "with its value in the next word": ([KV, CONFIG], [(KV, CONFIG)]),
    "with underscores": ([f"--kv_transfer_config={CONFIG}"], [(KV, CONFIG)]),
    "with underscores and its value in the next word": (["--kv_transfer_config", CONFIG], [(KV, CONFIG)]),
    "with dashes and underscores mixed": (["--kv-transfer_config", CONFIG], [(KV, CONFIG)]),
    "dotted": (["--kv-transfer-config.kv_role", "kv_both"], [("--kv-transfer-config.kv-role", "kv_both")]),
    "dotted with an equals sign": (["--kv_transfer_config.kv_role=x"], [("--kv-transfer-config.kv-role", "x")]),
    "dotted and deep": (["--kv-transfer-config.a.b", "1"], [("--kv-transfer-config.a.b", "1")]),
    "shortened as argparse allows": (["--kv-tr", CONFIG], [("--kv-tr", CONFIG)]),
    "shortened with an equals sign": ([f"--kv-transfer={CONFIG}"], [("--kv-transfer", CONFIG)]),
    "shortened and dotted": (["--kv_tr.kv_role", "x"], [("--kv-tr.kv-role", "x")]),
    "with an equals sign in its value": ([f"{KV}=a=b=c"], [(KV, "a=b=c")]),
    "with an empty value": ([f"{KV}="], [(KV, "")]),
    "without any value": ([KV], [(KV, None)]),
    "without a value, before another flag": ([KV, "--enforce-eager"], [(KV, None)]),
    "twice": ([f"{KV}=a", KV, "b"], [(KV, "a"), (KV, "b")]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("where", ["args", "command"])
def test_the_kv_transfer_config_is_found_however_it_is_spelled(spelling: str, where: str) -> None:
    words, found = SPELLINGS[spelling]
    around = ["--model=Q/Q", *words, "--enforce-eager"]
    line = CommandLine((), around) if where == "args" else CommandLine(["vllm", "serve", *around], ())
    assert line.flags(KV) == [Flag(name, value) for name, value in found]


@pytest.mark.parametrize(
    "word",
    [
        "--kv-offloading-size",
        "--kv_offloading_size=8",
        "--kv-off",
        "--kv-offloading-backend=lmcache",
    ],
)
def test_what_a_user_wires_by_hand_is_seen(word: str) -> None:
    assert CommandLine((), [word, "8"]).flags(*vllm.OWN_WIRING)


@pytest.mark.parametrize(
    "words",
    [
        ["--kv-cache-dtype=fp8"],
        ["--kv-events-config", "{}"],
        ["--kv-transfer-config-file=x"],
        ["--my-kv-transfer-config=x"],
        ["-kv-transfer-config"],
        ["--served-model-name", "kv-transfer-config"],
        ["--chat-template=--kv-transfer-config"],
    ],
    ids=" ".join,
)
def test_another_flag_is_no_wiring(words: list[str]) -> None:
    assert CommandLine((), words).flags(*vllm.OWN_WIRING) == []


VALUES = {
    "the last one wins": (["--port=1", "--port", "2"], "--port", "2"),
    "the last one wins in another spelling": (["--kv-cache-dtype=a", "--kv_cache_dtype", "b"], "--kv-cache-dtype", "b"),
    "an empty one is no missing one": (["--port=1", "--port="], "--port", ""),
    "a negative number is a value": (["--max-num-seqs", "-1"], "--max-num-seqs", "-1"),
    "a negative fraction is a value": (["--top", "-0.5"], "--top", "-0.5"),
    "a negative fraction without a zero is a value": (["--top", "-.5"], "--top", "-.5"),
    "what has two points is no number": (["--top", "-1.2.3", "4"], "--top", None),
    "four characters may be a flag": (["--po=9"], "--port", "9"),
    "a flag is no value": (["--port", "-tp", "2"], "--port", None),
    "JSON is a value": (["--hf-overrides", '{"a": -1}'], "--hf-overrides", '{"a": -1}'),
    "a missing flag has none": (["--port=1"], "--host", None),
    "a short flag is not shortened further": (["-t", "2"], "-tp", None),
    "a long flag of one letter is nothing": (["--m", "x"], "--model", None),
    "--model is not the beginning of --model-impl": (["--model=Q/Q"], "--model-impl", None),
    "--model-impl is no --model": (["--model-impl=vllm"], "--model", None),
    "a shortened --model-impl is one": (["--model-i=vllm"], "--model-impl", "vllm"),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_flags_value(case: str) -> None:
    words, name, value = VALUES[case]
    assert CommandLine((), words).value(name) == value


def test_any_of_several_names_counts_and_the_last_wins() -> None:
    assert CommandLine((), ["-tp", "2", "--tensor-parallel-size=4"]).value("--tensor-parallel-size", "-tp") == "4"
    assert CommandLine((), ["--tensor-parallel-size=4", "-tp", "2"]).value("--tensor-parallel-size", "-tp") == "2"


# What stands before the flags, and the model by `--model` and by position.
PROGRAMS: dict[str, tuple[Sequence[str], Sequence[str], str | None, str | None]] = {
    "the image starts vllm serve": ((), ["Q/Q", "-tp", "2"], None, "Q/Q"),
    "the image starts vllm": ((), ["serve", "Q/Q", "-tp", "2"], None, "Q/Q"),
    "the image starts the API server": ((), ["--model", "Q/Q", "-tp=2"], "Q/Q", None),
    "vllm serve in the command": (["vllm", "serve", "Q/Q", "-tp", "2"], (), None, "Q/Q"),
    "vllm by its path": (["/opt/venv/bin/vllm", "serve", "Q/Q", "-tp=2"], (), None, "Q/Q"),
    "vllm serve in the command, the rest in args": (["vllm", "serve"], ["Q/Q", "-tp=2"], None, "Q/Q"),
    "vllm in the command, the rest in args": (["vllm"], ["serve", "Q/Q", "-tp=2"], None, "Q/Q"),
    "the model after a flag": (["vllm", "serve", "-tp", "2", "Q/Q"], (), None, "Q/Q"),
    "the model after a negative number": ((), ["--max-num-seqs", "-1", "Q/Q", "-tp=2"], None, "Q/Q"),
    "the model after a flag with its value": ((), ["-tp=2", "Q/Q"], None, "Q/Q"),
    "python -m": (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "Q/Q", "-tp=2"], (), "Q/Q", None),
    "python -m with args apart": (
        ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        ["--model=Q/Q", "-tp=2"],
        "Q/Q",
        None,
    ),
    "python -u -m": (
        ["python3", "-u", "-m", "vllm.entrypoints.openai.api_server"],
        ["--model=Q/Q", "-tp=2"],
        "Q/Q",
        None,
    ),
    "python -m vllm's own main": (
        ["python3", "-m", "vllm.entrypoints.cli.main", "serve", "Q/Q", "-tp=2"],
        (),
        None,
        "Q/Q",
    ),
    "env before it": (["/usr/bin/env", "A=b", "vllm", "serve", "Q/Q", "-tp=2"], (), None, "Q/Q"),
    # argparse knows that this flag takes no value; we do not, and a model that is not known is shared with nobody.
    "the model after a flag without a value": (["vllm", "serve", "--enforce-eager", "Q/Q", "-tp=2"], (), None, None),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_model_and_its_flags_are_found_behind_any_program(program: str) -> None:
    command, args, by_flag, by_position = PROGRAMS[program]
    line = CommandLine(command, args)
    assert (line.value("--model"), line.positional) == (by_flag, by_position)
    assert vllm.ranks(line) == 2
    assert not line.hidden


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/sh", "-c", "vllm serve Q/Q --quantization=fp8"],
        ["sh", "-c"],
        ["/bin/bash"],
        ["/usr/bin/env", "bash", "-lc", "vllm serve Q/Q"],
        ["busybox", "ash", "-c", "vllm serve Q/Q"],
        ["tini", "--", "/bin/dash", "-c", "vllm serve Q/Q"],
        ["zsh", "start.zsh"],
    ],
    ids=" ".join,
)
def test_a_shell_hides_what_it_runs(command: list[str]) -> None:
    assert CommandLine(command, ["Q/Q"]).hidden


@pytest.mark.parametrize("args", [["sh", "-c", "vllm serve Q/Q"], ["/bin/bash", "start.sh"]], ids=" ".join)
def test_a_shell_hides_what_it_runs_where_an_image_starts_nothing_itself(args: list[str]) -> None:
    assert CommandLine((), args).hidden


def test_a_value_that_is_called_like_a_shell_is_none() -> None:
    assert not CommandLine((), ["--served-model-name", "bash", "--model=Q/Q"]).hidden
    assert not CommandLine(["vllm", "serve"], ["Q/Q", "sh"]).hidden


@pytest.mark.parametrize("command", [[], ["vllm", "serve"], ["python3", "-m", "x.sh"], ["/opt/shell"]], ids=" ".join)
def test_no_shell_hides_nothing(command: list[str]) -> None:
    assert not CommandLine(command, ["--model=Q/Q"]).hidden


# --- variables, which the kubelet replaces ------------------------------------------------------------------------

ENV = {"MODEL": "Q/Q", "FLAG": "--quantization=fp8", "TP": "2", "EMPTY": "", "SECRET": None, "NESTED": "$(FLAG)"}

REFERENCES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "a whole word": (["--model", "$(MODEL)"], ("--model", "Q/Q")),
    "a part of a word": (["--model=$(MODEL)"], ("--model=Q/Q",)),
    "several in a word": (["--x=$(MODEL)-$(TP)$(TP)"], ("--x=Q/Q-22",)),
    "a flag": (["$(FLAG)"], ("--quantization=fp8",)),
    "an empty one": (["--x=$(EMPTY)."], ("--x=.",)),
    "a doubled dollar is one": (["--x=$$5"], ("--x=$5",)),
    "a doubled dollar keeps a reference": (["--x=$$(TP)"], ("--x=$(TP)",)),
    "two doubled dollars": (["--x=$$$$(TP)"], ("--x=$$(TP)",)),
    "three dollars": (["--x=$$$(TP)"], ("--x=$2",)),
    "one dollar is itself": (["--x=$TP"], ("--x=$TP",)),
    "a brace is itself": (["--x=${TP}"], ("--x=${TP}",)),
    "an unknown one stays": (["--x=$(NOBODY)"], ("--x=$(NOBODY)",)),
    "one whose value is elsewhere stays": (["--x=$(SECRET)"], ("--x=$(SECRET)",)),
}


@pytest.mark.parametrize("case", REFERENCES)
@pytest.mark.parametrize("where", ["args", "command"])
def test_a_reference_is_replaced_as_the_kubelet_does(case: str, where: str) -> None:
    words, expanded = REFERENCES[case]
    line = CommandLine((), words, ENV) if where == "args" else CommandLine(words, (), ENV)
    assert line.words == expanded


def test_what_a_variable_holds_is_read_like_any_other_word() -> None:
    line = CommandLine(["vllm", "serve"], ["$(MODEL)", "$(FLAG)", "-tp", "$(TP)"], ENV)
    assert (line.positional, line.value("--quantization"), vllm.ranks(line)) == ("Q/Q", "fp8", 2)
    assert not line.hidden


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (["--model=Q/Q", "$(SECRET)"], True),
        (["--model=Q/Q", "$(NOBODY)"], True),
        (["$(SECRET)"], True),
        (["--model=Q/Q", "--enforce-eager", "$(SECRET)"], True),
        # After one pass it is a reference still; whatever it is, it is not known.
        (["--model=Q/Q", "$(NESTED)"], True),
        # These are values, whatever they hold.
        (["--model=Q/Q", "--api-key", "$(SECRET)"], False),
        (["--model=Q/Q", "--api-key=$(SECRET)"], False),
        (["--model", "$(SECRET)"], False),
        (["--port", "$(SECRET)"], False),
        (["--host", "$(SECRET)"], False),
        (["--download-dir", "$(SECRET)"], False),
        (["--root-path", "$(SECRET)"], False),
        (["--served-model-name", "$(SECRET)"], False),
        (["--data-parallel-start-rank", "$(SECRET)", "--data-parallel-address", "$(SECRET)"], False),
    ],
    ids=str,
)
def test_a_word_that_only_the_kubelet_knows_may_be_any_flag(words: list[str], hidden: bool) -> None:
    assert CommandLine((), words, ENV).hidden == hidden


# --- what is read of it -------------------------------------------------------------------------------------------

RANKS = {
    "one by default": ([], 1),
    "TP in full": (["--tensor-parallel-size", "8"], 8),
    "TP with underscores": (["--tensor_parallel_size=8"], 8),
    "TP shortened": (["--tensor-p", "8"], 8),
    "TP": (["-tp", "4"], 4),
    "TP with an equals sign": (["-tp=4"], 4),
    "PP": (["-pp", "2"], 2),
    "DP": (["-dp", "2"], 2),
    "the product": (["-tp", "4", "-pp=2", "--data-parallel-size", "3"], 24),
    "the last TP": (["-tp", "4", "--tensor-parallel-size=2"], 2),
    "zero is no number of ranks": (["-tp", "0"], 1),
    "a word is no number of ranks": (["-tp", "auto"], 1),
    "a negative number is none": (["-tp", "-4"], 1),
    "without a value": (["-tp"], 1),
    "of DP those in this pod": (["-dp", "8", "--data-parallel-size-local=2"], 2),
    "of DP those in this pod, shortly": (["-dpl", "2", "-dp=8", "-tp", "2"], 4),
    "PCP": (["--prefill-context-parallel-size", "2", "-tp=4"], 8),
    "PCP, shortly": (["-pcp", "2"], 2),
}


@pytest.mark.parametrize("case", RANKS)
def test_ranks_are_the_processes_of_one_pod(case: str) -> None:
    words, ranks = RANKS[case]
    assert vllm.ranks(CommandLine((), words)) == ranks


@pytest.mark.parametrize(
    ("words", "port"),
    [
        ([], 8000),
        (["--port", "9000"], 9000),
        (["--port=9000"], 9000),
        (["--port=65535"], 65535),
        (["--port=65536"], 8000),
        (["--port=0"], 8000),
        (["--port=x"], 8000),
        (["--port"], 8000),
        (["--port=٨٠"], 8000),
    ],
)
def test_the_port_is_the_flags_or_vllms_own(words: list[str], port: int) -> None:
    assert pod.port(vllm.KIND, CommandLine((), words)) == port


def test_flags_are_shown_once_and_in_order() -> None:
    line = CommandLine((), ["--kv_offloading_size=a", "--kv-offloading-backend", "8", "--kv-offloading-size=b"])
    assert names(line.flags(*vllm.OWN_WIRING)) == "--kv-offloading-size, --kv-offloading-backend"


WORDS = st.lists(st.text(alphabet="-=._ abk1$/", max_size=8), max_size=8)


@given(command=WORDS, args=WORDS)
@settings(deadline=None)
def test_no_command_line_is_too_odd_to_read(command: list[str], args: list[str]) -> None:
    line = CommandLine(command, args)
    assert len(line.words) == len(command) + len(args)
    assert vllm.ranks(line) == 1
    assert pod.port(vllm.KIND, line) == 8000


@given(before=WORDS, after=WORDS)
@settings(deadline=None)
def test_a_kv_transfer_config_is_found_among_whatever_stands_around_it(before: list[str], after: list[str]) -> None:
    assert CommandLine((), [*before, f"{KV}={CONFIG}", *after]).value(KV) == CONFIG


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        (["--nnodes=2"], 2),
        (["--nnodes", "4"], 4),
        (["-n", "2"], 2),
        (["--nnodes=$(SIZE)"], 2),
        ([], 1),
        (["--node-rank=3"], 1),
    ],
)
def test_how_many_nodes_an_engine_runs_on_is_read(words: list[str], nodes: int) -> None:
    assert CommandLine((), words).nodes == nodes
