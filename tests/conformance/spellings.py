"""How --kv-transfer-config may be written, and what vLLM's own parser makes of each spelling.

test_engine_arguments.py holds every line against the released parsers; what reads command lines is held against it too.
"""

from typing import Any

Spelling = tuple[list[str], dict[str, Any] | None]

FLAG = "--kv-transfer-config"
CONFIG = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
JSON = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
OTHER = {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_consumer", "kv_connector_extra_config": {"a": 1}}
OTHER_JSON = '{"kv_connector":"LMCacheMPConnector","kv_role":"kv_consumer","kv_connector_extra_config":{"a":1}}'
DOTTED = [f"{FLAG}.kv_connector=NixlConnector", f"{FLAG}.kv_role=kv_both"]
EXTRA = f"{FLAG}.kv_connector_extra_config"


def _extra(**values: Any) -> dict[str, Any]:
    return {**CONFIG, "kv_connector_extra_config": values}


# What vLLM 0.33.0 ends up with: the keys that are not at their defaults, None for no config at all.
SPELLINGS: list[Spelling] = [
    ([], None),
    # Whole: dashes and underscores are the same up to the first dot, and any prefix will do that no other flag shares.
    ([FLAG, JSON], CONFIG),
    ([f"{FLAG}={JSON}"], CONFIG),
    (["--kv_transfer_config", JSON], CONFIG),
    ([f"--kv_transfer_config={JSON}"], CONFIG),
    (["--kv-transfer_config", JSON], CONFIG),
    (["--kv-transfer-conf", JSON], CONFIG),
    (["--kv-t", JSON], CONFIG),
    ([f"--kv_t={JSON}"], CONFIG),
    ([FLAG, f" {JSON}\n"], CONFIG),
    (
        [FLAG, '{"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_role": "kv_producer"}'],
        {**CONFIG, "kv_role": "kv_producer"},
    ),
    (
        [
            FLAG,
            '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_connector_extra_config":{"a":"1.5","b":"--c"}}',
        ],
        _extra(a="1.5", b="--c"),
    ),
    # Any name is taken for a connector's; an empty object is a config without one.
    ([FLAG, '{"kv_connector":"NoSuchConnector","kv_role":"kv_both"}'], {**CONFIG, "kv_connector": "NoSuchConnector"}),
    ([FLAG, '{"kv_role":"kv_both"}'], {"kv_role": "kv_both"}),
    ([FLAG, "{}"], {}),
    # No config.
    ([FLAG, ""], None),
    ([f"{FLAG}="], None),
    ([FLAG, "None"], None),
    # Twice: the last one counts, whole, and nothing is said.
    ([FLAG, JSON, FLAG, OTHER_JSON], OTHER),
    ([FLAG, OTHER_JSON, FLAG, JSON], CONFIG),
    ([FLAG, JSON, "--kv_transfer_config", OTHER_JSON], OTHER),
    ([FLAG, JSON, "--kv-t", OTHER_JSON], OTHER),
    ([FLAG, JSON, FLAG, "None"], None),
    ([FLAG, JSON, FLAG, ""], None),
    # Dotted: dashes stay dashes behind the first dot.
    (DOTTED, CONFIG),
    ([f"{FLAG}.kv_connector", "NixlConnector", f"{FLAG}.kv_role", "kv_both"], CONFIG),
    (["--kv_transfer_config.kv_connector=NixlConnector", "--kv-transfer-config.kv_role=kv_both"], CONFIG),
    (["--kv-t.kv_connector", "NixlConnector", "--kv-t.kv_role", "kv_both"], CONFIG),
    ([f"{FLAG}.kv_role", "kv_both"], {"kv_role": "kv_both"}),
    ([*DOTTED, f"{FLAG}.kv_role=kv_producer"], {**CONFIG, "kv_role": "kv_producer"}),
    ([*DOTTED, f"{FLAG}.kv_load_failure_policy=recompute"], {**CONFIG, "kv_load_failure_policy": "recompute"}),
    ([*DOTTED, f"{FLAG}.kv_port", "5600"], {**CONFIG, "kv_port": 5600}),
    # Dotted ones become one JSON behind all other words, so they replace a whole one, wherever that stands.
    ([FLAG, JSON, f"{FLAG}.kv_role", "kv_producer"], {"kv_role": "kv_producer"}),
    ([f"{FLAG}.kv_role", "kv_producer", FLAG, JSON], {"kv_role": "kv_producer"}),
    ([FLAG, JSON, f"{EXTRA}.a", "1"], {"kv_connector_extra_config": {"a": 1}}),
    ([FLAG, JSON, "--kv-t.kv_role", "kv_producer"], {"kv_role": "kv_producer"}),
    ([FLAG, "None", f"{FLAG}.kv_role", "kv_both"], {"kv_role": "kv_both"}),
    # One JSON for each name as it is written, in the order in which they first stand there; the last one counts, whole.
    (
        [f"{FLAG}.kv_connector=NixlConnector", "--kv-t.kv_role=kv_both", f"{FLAG}.kv_role=kv_producer"],
        {"kv_role": "kv_both"},
    ),
    # Values are JSON where they can be read as such.
    ([*DOTTED, f"{EXTRA}.a", "b"], _extra(a="b")),
    ([*DOTTED, f"{EXTRA}.a=b=c.d"], _extra(a="b=c.d")),
    ([*DOTTED, f"{EXTRA}.a", "1"], _extra(a=1)),
    ([*DOTTED, f"{EXTRA}.a", '"1"'], _extra(a="1")),
    ([*DOTTED, f"{EXTRA}.a", "-1"], _extra(a=-1)),
    ([*DOTTED, f"{EXTRA}.a", "1e3"], _extra(a=1000.0)),
    ([*DOTTED, f"{EXTRA}.a", "true"], _extra(a=True)),
    ([*DOTTED, f"{EXTRA}.a", "True"], _extra(a="True")),
    ([*DOTTED, f"{EXTRA}.a", "null"], _extra(a=None)),
    ([*DOTTED, f"{EXTRA}.a", '{"b":[1]}'], _extra(a={"b": [1]})),
    # Numbers as people write them, where JSON has none: thousands in small letters, powers of two in capitals.
    ([*DOTTED, f"{EXTRA}.a", "1k"], _extra(a=1000)),
    ([*DOTTED, f"{EXTRA}.a", "1K"], _extra(a=1024)),
    ([*DOTTED, f"{EXTRA}.a", "1.5k"], _extra(a=1500)),
    ([*DOTTED, f"{EXTRA}.a", "1.5K"], _extra(a="1.5K")),
    ([*DOTTED, f"{EXTRA}.a", " 80g "], _extra(a=80_000_000_000)),
    ([*DOTTED, f"{EXTRA}.a", "1_000"], _extra(a=1000)),
    ([*DOTTED, f"{EXTRA}.a", "007"], _extra(a=7)),
    ([*DOTTED, f"{EXTRA}.a", "+5"], _extra(a=5)),
    ([*DOTTED, f"{FLAG}.kv_port=1k"], {**CONFIG, "kv_port": 1000}),
    # Objects are merged, lists are joined, all else is replaced.
    ([*DOTTED, EXTRA, '{"a":1}', f"{EXTRA}.b", "2"], _extra(a=1, b=2)),
    ([*DOTTED, f"{EXTRA}.a.b", "2", EXTRA, '{"a":{"c":1}}'], _extra(a={"b": 2, "c": 1})),
    ([*DOTTED, f"{EXTRA}.a.b", "2", EXTRA, '{"a":1}'], _extra(a=1)),
    ([*DOTTED, f"{EXTRA}.a", "1", f"{EXTRA}.a.b", "2"], _extra(a={"b": 2})),
    ([*DOTTED, f"{EXTRA}.a", '["x"]', f"{EXTRA}.a", '["y"]'], _extra(a=["x", "y"])),
    # A plus makes a list of strings, so no list of connectors can be written like this.
    ([*DOTTED, f"{EXTRA}.a+", "x,y", f"{EXTRA}.a+=z"], _extra(a=["x", "y", "z"])),
    (
        [*DOTTED, f"{EXTRA}.connectors+", '{"kv_connector":"NixlConnector"}'],
        _extra(connectors=['{"kv_connector":"NixlConnector"}']),
    ),
]

# With what vLLM 0.33.0 does not start.
REFUSED: list[list[str]] = [
    ["--kv", JSON],
    ["-kv-transfer-config", JSON],
    ["--KV-transfer-config", JSON],
    ["--kv-transfer-configs", JSON],
    ["--no-kv-transfer-config"],
    ["--no-such-flag", FLAG, JSON],
    [FLAG],
    [FLAG, "--enforce-eager"],
    [f"{FLAG}.kv_role"],
    ["--", FLAG, JSON],
    [FLAG, "null"],
    [FLAG, "[]"],
    [FLAG, "{'kv_role':'kv_both'}"],
    # A connector without a role, which is also what is left of two names' halves.
    [FLAG, '{"kv_connector":"NixlConnector"}'],
    [f"{FLAG}.kv_connector", "NixlConnector"],
    [f"{FLAG}.kv_role", "kv_both", "--kv-t.kv_connector", "NixlConnector"],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"both"}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_connector_extra_config":null}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_connector_extra_config":"a"}'],
    # Keys and values that 0.11.0 takes, or does not look at.
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_rank":0}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_ip":"127.0.0.2","kv_parallel_size":2}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_size":1000}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_load_failure_policy":"retry"}'],
    [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","made_up":1}'],
    [f"{FLAG}.kv-role", "kv_both"],
]

# Where 0.11.0 differs: it starts with any key, of which it drops those it does not know, and knows no written numbers.
OLDEST: list[Spelling] = [
    ([*DOTTED, f"{FLAG}.kv_load_failure_policy=recompute"], CONFIG),
    *(([*DOTTED, f"{EXTRA}.a", text], _extra(a=text)) for text in ("1k", "1K", "1.5k", " 80g ", "1_000", "007", "+5")),
    ([FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_rank":0}'], {**CONFIG, "kv_rank": 0}),
    (
        [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_ip":"127.0.0.2","kv_parallel_size":2}'],
        {**CONFIG, "kv_ip": "127.0.0.2", "kv_parallel_size": 2},
    ),
    (
        [FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_size":1000}'],
        {**CONFIG, "kv_buffer_size": 1000.0},
    ),
    ([FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_load_failure_policy":"retry"}'], CONFIG),
    ([FLAG, '{"kv_connector":"NixlConnector","kv_role":"kv_both","made_up":1}'], CONFIG),
    ([f"{FLAG}.kv-role", "kv_both"], {}),
]
OLDEST_REFUSED: list[list[str]] = [
    [*DOTTED, f"{FLAG}.kv_port=1k"],
]
