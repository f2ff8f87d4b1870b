"""What a user wired by --kv-transfer-config is read as vLLM reads it, and a tier's connector goes beside it, or not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function.engines import kv_transfer
from function.engines.args import CommandLine
from function.engines.kv_transfer import FLAG, Own
from tests.conformance.spellings import CONFIG, JSON, REFUSED, SPELLINGS

CACHE = {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
NEW = (0, 33, 0)
PREFILL = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}


@pytest.mark.parametrize(("words", "config"), SPELLINGS)
def test_every_spelling_is_read_as_vllm_reads_it(words: list[str], config: dict[str, Any] | None) -> None:
    own = kv_transfer.read(words)
    assert (own and own.config) == config
    assert not own or not own.problem


@pytest.mark.parametrize("words", [words for words, _ in SPELLINGS])
@pytest.mark.parametrize("where", ["args", "command"])
def test_whatever_the_spelling_there_is_one_flag_in_the_end(words: list[str], where: str) -> None:
    around = ["--model=Q/Q", *words, "--enforce-eager"]
    command, args = (around, ["--port=1"]) if where == "command" else (["vllm", "serve"], around)
    command, args = kv_transfer.write(command, args, CACHE)
    written = [*command, *args]
    assert kv_transfer.read(written) == Own(CACHE)
    assert written.count(FLAG) == 1
    assert [word for word in written if word in {"--model=Q/Q", "--enforce-eager"}] == [
        "--model=Q/Q",
        "--enforce-eager",
    ]


@pytest.mark.parametrize(
    "words",
    [
        [FLAG],
        [FLAG, "--enforce-eager"],
        [f"{FLAG}.kv_role"],
        [FLAG, "null"],
        [FLAG, "[]"],
        [FLAG, "{'kv_role':'kv_both'}"],
        [FLAG, '{"kv_connector":"NixlConnector"}'],
        [f"{FLAG}.kv_connector", "NixlConnector"],
        [f"{FLAG}.kv_role", "kv_both", "--kv-t.kv_connector", "NixlConnector"],
    ],
)
def test_with_what_vllm_would_not_start_nothing_is_put_beside(words: list[str]) -> None:
    assert words in REFUSED
    assert kv_transfer.conflict(kv_transfer.read(words), CACHE, NEW)


@pytest.mark.parametrize(
    ("args", "env", "problem"),
    [
        (["$(OWN)"], {"OWN": f"{FLAG}={json.dumps(PREFILL)}"}, True),
        (["$(OWN)", json.dumps(PREFILL)], {"OWN": FLAG}, True),
        ([FLAG, "$(OWN)"], {"OWN": json.dumps(PREFILL)}, True),
        ([FLAG, json.dumps({**PREFILL, "engine_id": "$(OWN)"})], {"OWN": "a"}, False),
        (["--port=$(OWN)", f"{FLAG}={json.dumps(PREFILL)}"], {"OWN": "1"}, False),
    ],
)
def test_one_that_stands_in_a_variable_is_seen_and_nothing_goes_beside_it(
    args: list[str], env: dict[str, str | None], problem: bool
) -> None:
    own = kv_transfer.of(CommandLine(["vllm", "serve"], args, env))
    assert own
    assert bool(kv_transfer.conflict(own, CACHE, NEW)) is problem


def test_without_a_users_own_the_tiers_stands_alone() -> None:
    assert kv_transfer.conflict(None, CACHE, NEW) == ""
    assert kv_transfer.beside(None, CACHE) == CACHE


def test_a_transport_comes_first_and_each_child_keeps_its_role() -> None:
    own = Own({**PREFILL, "kv_connector_extra_config": {"kv_lease_duration": 60}})
    assert kv_transfer.conflict(own, CACHE, NEW) == ""
    assert kv_transfer.beside(own, CACHE) == {
        "kv_connector": "MultiConnector",
        # The scheduler goes by the outer role when it keeps blocks that may still be loaded.
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [own.config, CACHE]},
    }


def test_a_failure_policy_that_the_user_gave_is_the_engines() -> None:
    own = Own({**PREFILL, "kv_load_failure_policy": "fail"})
    assert kv_transfer.beside(own, CACHE)["kv_load_failure_policy"] == "fail"


def test_an_engine_id_goes_to_the_outer_one_since_a_child_must_have_none() -> None:
    combined = kv_transfer.beside(Own({**PREFILL, "engine_id": "e1"}), CACHE)
    assert combined["engine_id"] == "e1"
    assert all("engine_id" not in child for child in combined["kv_connector_extra_config"]["connectors"])


def test_a_users_own_multi_connector_gets_one_more() -> None:
    extra = {"connectors": [PREFILL], "other": 1}
    own = Own({"kv_connector": "MultiConnector", "kv_role": "kv_producer", "kv_connector_extra_config": extra})
    assert kv_transfer.conflict(own, CACHE, NEW) == ""
    combined = kv_transfer.beside(own, CACHE)
    assert combined["kv_connector_extra_config"] == {"connectors": [PREFILL, CACHE], "other": 1}
    assert kv_transfer.conflict(Own(combined), CACHE, NEW) == ""
    assert kv_transfer.beside(Own(combined), CACHE) == combined
    assert extra == {"connectors": [PREFILL], "other": 1}


@pytest.mark.parametrize(
    ("connector", "version", "sound"),
    [
        ("LMCacheMPConnector", (0, 25, 0), False),
        ("LMCacheMPConnector", (0, 26, 0), True),
        ("OffloadingConnector", (0, 21, 0), False),
        ("OffloadingConnector", (0, 22, 0), True),
        ("MooncakeStoreConnector", (0, 22, 0), True),
        ("LMCacheConnectorV1", (0, 33, 0), False),
        ("NixlConnector", (0, 33, 0), False),
    ],
)
def test_pairs_are_combined_from_the_version_on_that_makes_them_sound(
    connector: str, version: tuple[int, int, int], sound: bool
) -> None:
    ours = {"kv_connector": connector, "kv_role": "kv_both"}
    why = kv_transfer.conflict(Own(PREFILL), ours, version)
    assert (why == "") == sound
    assert sound or connector in why


@pytest.mark.parametrize(
    "own",
    [
        {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"},
        {"kv_connector": "MyConnector", "kv_role": "kv_both", "kv_connector_module_path": "mine"},
        {"kv_connector": "MultiConnector", "kv_role": "kv_both"},
        {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": "x"}},
        {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"connectors": [PREFILL, {"kv_connector": "FlexKVConnectorV1"}]},
        },
        {"kv_connector": "NixlConnector"},
        {},
    ],
)
def test_what_is_no_transport_is_left_alone_even_before_the_tier_is_known(own: dict[str, Any]) -> None:
    assert kv_transfer.conflict(Own(own))
    assert kv_transfer.conflict(Own(own), CACHE, NEW)


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["--a", "-x", "v", "--kv-t", FLAG, f"{FLAG}.kv_role", f"{FLAG}={JSON}", JSON, "1", "--", ""]),
        st.text(max_size=6),
    ),
    max_size=8,
)


@given(WORDS, WORDS)
def test_writing_keeps_every_other_word_and_is_done_once(command: list[str], args: list[str]) -> None:
    once = kv_transfer.write(list(command), list(args), CACHE)
    assert kv_transfer.write(list(once[0]), list(once[1]), CACHE) == once
    assert [w for w in once[1] if w == FLAG][-1:] == [FLAG]
    assert json.loads(once[1][-1]) == CACHE
    kept = [word for word in [*once[0], *once[1][:-2]] if word.startswith("--a")]
    said = [*command, *args]
    # What follows a dotted one is its value, whatever it looks like.
    assert kept == [word for word in said if word.startswith("--a")] or f"{FLAG}.kv_role" in said


def test_a_flag_and_its_value_may_stand_on_both_sides_of_where_the_args_begin() -> None:
    command, args = kv_transfer.write(["vllm", "serve", "Q/Q", FLAG], [JSON, "--port=1"], CACHE)
    assert command == ["vllm", "serve", "Q/Q"]
    assert args[:-1] == ["--port=1", FLAG]


def test_config_is_what_the_table_says() -> None:
    assert json.loads(JSON) == CONFIG
