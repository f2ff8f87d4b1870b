"""Engines' arguments: whole lines as rendered, read by the oldest and the newest supported engines' own parsers."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from function.render import EXAMPLES, load, render
from tests import examples
from tests.conformance import cases, runner, spellings
from tests.conformance.pods import Manifest, process

Line = Sequence[str]
Found = dict[str, Any]
Read = Callable[[str, Line], Found]
Change = Callable[[Manifest, Manifest], None]

_SCRIPT = Path(__file__).parent / "in_engine.py"
VLLM_OLDEST, VLLM = "vllm-0.11.0", "vllm-0.33.0"
SGLANG_OLDEST, SGLANG = "sglang-0.5.5", "sglang-0.5.23"
PARTS = ("tier", "deployment", "required")
# Which parser stands for an image.
IMAGES = {
    "vllm/vllm-openai:v0.11.0": VLLM_OLDEST,
    "vllm/vllm-openai:v0.33.0": VLLM,
    "lmsysorg/sglang:v0.5.5": SGLANG_OLDEST,
    "lmsysorg/sglang:v0.5.23": SGLANG,
}


def over_tcp(tier: Manifest, _: Manifest) -> None:
    cases.pool()(tier)


def in_files(tier: Manifest, _: Manifest) -> None:
    del tier["spec"]["nixl"]["storage"]["obj"]
    tier["spec"]["nixl"]["storage"]["fs"] = {"hostPath": {"path": "/mnt/nvme"}, "sizePerNode": "1Ti"}


def behind_hicache(l3: Manifest | None, **block: Any) -> Change:
    """A change: HiCache alone, with a ratio, or with something else behind it than Mooncake."""

    def change(tier: Manifest, _: Manifest) -> None:
        spec = tier["spec"]
        del spec["mooncake"]
        spec["hicache"] = {"l3": l3, "hostMemoryGiBPerNode": 800} if l3 else {"ratio": 2, "writePolicy": "WriteBack"}
        spec |= block

    return change


def role(name: str | None) -> Change:
    return lambda _, deployment: deployment["spec"]["engine"]["kvCache"].update(role=name)


def wired(change: Change | None, *words: str) -> Change:
    """A change: the engine's user has wired a connector that moves KV."""

    def both(tier: Manifest, deployment: Manifest) -> None:
        if change:
            change(tier, deployment)
        deployment["spec"]["engine"].setdefault("args", []).extend(words)

    return both


# The distributed one's engines have the same line; what differs are variables.
AIBRIX = "aibrix-offloading"
BEHIND_SGLANG = "HiCache and AIBrix"
# Its vLLMs are between the oldest and the newest: of what is here, the nearest reads what each is told.
AIBRIX_IMAGES = {"aibrix/vllm-openai-aibrix-kvcache:v0.10.2": VLLM_OLDEST, "team/vllm-openai:v0.21.0": VLLM}
CLAIM = {"backend": "File", "file": {"claimName": "kv", "sizePerRank": "100Gi"}}
FILES = {"hostPath": {"path": "/mnt/nvme"}, "sizePerNode": "1Ti"}
NIXL = {"storage": {"cpuTierGiBPerNode": 64, "fs": FILES}}
# What a tier may be beside the examples, and what an engine may be in it: the example, and what is changed of both.
VARIATIONS: dict[str, tuple[str, Change | None]] = {
    **{name: (name, None) for name in examples.names() if not name.startswith("aibrix")},
    "Mooncake over TCP": ("mooncake", over_tcp),
    "Mooncake behind SGLang over TCP": ("sglang-mooncake", over_tcp),
    "Nixl in files": ("nixl-storage", in_files),
    "HiCache alone": ("hicache-mooncake", behind_hicache(None)),
    "HiCache and a claim": ("hicache-mooncake", behind_hicache(CLAIM)),
    "HiCache and Nixl": ("hicache-mooncake", behind_hicache({"backend": "Nixl"}, nixl=NIXL)),
    "Nixl decode": ("nixl-p2p", role("Decode")),
}

DOTTED = [f"--kv-transfer-config.{name}" for name in ("kv_connector=NixlConnector", "kv_role=kv_producer")]
CONSUMER = '{"kv_connector":"NixlConnector","kv_role":"kv_consumer","engine_id":"e1"}'
SEVERAL = (
    '{"kv_connector":"MultiConnector","kv_role":"kv_producer","kv_connector_extra_config":{"connectors":['
    '{"kv_connector":"MooncakeConnector","kv_role":"kv_producer"}]}}'
)
# Tiers beside what a user has wired, which only the newest version is attached with.
BESIDE: dict[str, tuple[str, Change | None]] = {
    "prefill beside an agent": ("lmcache-current", wired(None, *DOTTED)),
    "decode beside an agent": ("lmcache-current", wired(None, f"--kv_transfer_config={CONSUMER}")),
    "prefill beside Mooncake": ("mooncake", wired(over_tcp, *DOTTED)),
    "several beside Mooncake": ("mooncake", wired(over_tcp, "--kv-transfer-config", SEVERAL)),
    "prefill beside files": ("nixl-storage", wired(in_files, *DOTTED)),
}


def rendered(example: str, change: Change | None, image: str) -> list[str] | None:
    """The line of an engine of an image, beside a tier; None where the tier does not take it."""
    tiers, deployments, required = (load(EXAMPLES / example / f"{part}.yaml") for part in PARTS)
    if change:
        change(tiers[0], deployments[0])
    deployments[0]["spec"]["engine"]["image"] = image
    manifests = render(deployments[0], (), [*required, *tiers]).manifests
    if not manifests:
        return None
    words = process(manifests, "Deployment", "engine").argv
    return list(words[next(i for i, word in enumerate(words) if word.startswith("--")) :])


def lines() -> dict[tuple[str, str], list[str]]:
    """All lines that are rendered for an image whose parser is here, by variation and parser."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, (example, change) in VARIATIONS.items():
        for image, parser in IMAGES.items():
            same = parser.startswith("sglang") == (example in ("sglang-mooncake", "hicache-mooncake"))
            if same and (line := rendered(example, change, image)):
                found[name, parser] = line
    # SGLang's own images do not hold AIBrix.
    for parser in (SGLANG_OLDEST, SGLANG):
        image = f"team/{parser.replace('-', ':v')}"
        behind = behind_hicache({"backend": "AIBrix"}, aibrix={"offloading": {"l2": {"shfs": FILES}}})
        found[BEHIND_SGLANG, parser] = rendered("hicache-mooncake", behind, image) or []
    for name, (example, change) in BESIDE.items():
        line = rendered(example, change, "vllm/vllm-openai:v0.33.0")
        assert line, name
        found[name, VLLM] = line
    return found


LINES = lines()
AIBRIX_LINES = {parser: rendered(AIBRIX, None, image) or [] for image, parser in AIBRIX_IMAGES.items()}
MODEL = ["--model", "example/model"]
SERVE = ["serve", "example/model"]
NAMELESS = [*MODEL, "--kv-transfer-config", '{"kv_connector":"NoSuchConnector","kv_role":"kv_both"}']
VLLM_LINES: list[Line] = [[*MODEL, "--made-up"], [*MODEL, "--made-up=1"], [*SERVE, "--made-up"]]
HICACHE = ["--model-path", "example/model", "--enable-hierarchical-cache"]
EXTRA = "--hicache-storage-backend-extra-config"
SGLANG_LINES: list[Line] = [
    [*HICACHE, "--hicache-made-up=1"],
    [*HICACHE, "--hicache-size=1", "--hicache-size=2"],
    [*HICACHE, "--hicache-size=many"],
    [*HICACHE, "--hicache-storage-backend=made-up"],
    [*HICACHE, "--hicache-storage-backend=mooncake", f"{EXTRA}=made-up"],
    [*HICACHE, "--hicache-storage-backend=mooncake", f'{EXTRA}={{"prefetch_threshold":"1"}}'],
]


def asked(parser: str) -> list[Line]:
    """Every line that this parser is to read; one process reads them all, since its start takes so long."""
    own: list[Line] = [line for (_, name), line in LINES.items() if name == parser]
    own += [line for name, line in AIBRIX_LINES.items() if name == parser]
    if parser.startswith("sglang"):
        return own + SGLANG_LINES
    spelled = [args for args, _ in [*spellings.SPELLINGS, *spellings.OLDEST]]
    spelled += [*spellings.REFUSED, *spellings.OLDEST_REFUSED]
    return own + [[*start, *args] for args in spelled for start in (MODEL, SERVE)] + VLLM_LINES + [NAMELESS]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """What a parser makes of a line, all four having read theirs side by side."""

    def run(parser: str) -> dict[tuple[str, ...], Found]:
        path, folder = Path(sys.prefix) / parser, tmp_path_factory.mktemp(parser)
        assert path.is_dir(), f"{path} is not there: `make conformance` makes it"
        wanted = asked(parser)
        answer = folder / "answer.json"
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), parser.partition("-")[0], str(answer)],
            check=False,
            cwd=folder,
            input=json.dumps({"lines": wanted}),
            env={**runner.base_env(folder), "PYTHONPATH": str(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        return {tuple(line): found for line, found in zip(wanted, json.loads(answer.read_text()), strict=True)}

    parsers = list(IMAGES.values())
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = dict(zip(parsers, pool.map(run, parsers), strict=True))
    return lambda parser, line: answers[parser][tuple(line)]


def written(line: Line) -> dict[str, str]:
    """A rendered line's flags, `--a=b` and `--a b` alike, by the names that a parser gives them."""
    found: dict[str, str] = {}
    for word, after in zip(line, [*line[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if equals else after
    return found


def test_each_parser_reads_renders() -> None:
    """Lest an image that is no longer attached leaves its parser without a line."""
    assert {parser for _, parser in LINES} == set(IMAGES.values())
    assert {name for name, _ in LINES} == {*VARIATIONS, *BESIDE, BEHIND_SGLANG}


@pytest.mark.parametrize(("name", "parser"), [key for key in LINES if key[1].startswith("vllm")])
def test_vllm_understands_what_is_rendered(read: Read, name: str, parser: str) -> None:
    line = LINES[name, parser]
    found = read(parser, line)
    assert "refused" not in found, found
    flags = written(line)
    config = json.loads(flags.pop("kv_transfer_config"))
    understood = {name: value for name, value in found["args"].items() if name != "kv_transfer_config"}
    assert understood.items() <= flags.items(), "taken for something else"
    # Which the driver does not show, as it is drawn where nobody gives it.
    config.pop("engine_id", None)
    assert found["config"] == config
    module, _, connector = found["connector"].rpartition(".")
    if "kv_connector_module_path" in config:
        assert module == config["kv_connector_module_path"]
    else:
        assert module.startswith("vllm.distributed.kv_transfer.kv_connector.")
    assert named(connector) == config["kv_connector"]
    several = config.get("kv_connector_extra_config", {}).get("connectors", [])
    assert [named(str(c).rpartition(".")[2]) for c in found["children"]] == [c["kv_connector"] for c in several]
    assert bool(several) == (name in BESIDE)


def test_vllm_looks_for_aibrixs_connector_in_its_package(read: Read) -> None:
    """It is not here, for it wants its own compiled code: all that comes before its import is understood."""
    assert read(VLLM, AIBRIX_LINES[VLLM]) == {"refused": "ModuleNotFoundError: No module named 'aibrix_kvcache'"}


def test_vllm_understands_what_engines_of_aibrixs_image_are_told(read: Read) -> None:
    line = AIBRIX_LINES[VLLM_OLDEST]
    found = read(VLLM_OLDEST, line)
    assert "refused" not in found, found
    flags = written(line)
    assert found["config"] == json.loads(flags["kv_transfer_config"])
    limits = found["args"]["limit_mm_per_prompt"]
    assert limits == str(dict.fromkeys(json.loads(flags["limit_mm_per_prompt"]), 0))


def named(connector: str) -> str:
    """The registry's name of a class: NixlConnector is another name of NixlPullConnector in newer versions."""
    return connector.replace("NixlPull", "Nixl")


@pytest.mark.parametrize(("name", "parser"), [key for key in LINES if key[1].startswith("sglang")])
def test_sglang_understands_what_is_rendered(read: Read, name: str, parser: str) -> None:
    """After all that SGLang makes of its arguments before it starts, each is what was written."""
    line = LINES[name, parser]
    found = read(parser, line)
    assert "refused" not in found, found
    hicache = {name: value for name, value in written(line).items() if name.startswith("hicache_")}
    assert {name: str(found["hicache"][name]) for name in hicache} == hicache
    assert found["args"]["enable_hierarchical_cache"] == "True"
    extra, *prefetch = found["extra"]
    assert extra == json.loads(hicache.get("hicache_storage_backend_extra_config", "{}"))
    assert prefetch == [256, 1.0, 0.25, False]


def of(read: Read, parser: str, args: Line) -> list[Any]:
    """What vLLM makes of --kv-transfer-config, as the API server and as `vllm serve`."""
    both = [read(parser, [*start, *args]) for start in (MODEL, SERVE)]
    return ["refused" if "refused" in found else found["config"] for found in both]


def expected(parser: str) -> Mapping[tuple[str, ...], Any]:
    """The table of spellings, for one version."""
    table: dict[tuple[str, ...], Any] = {tuple(args): config for args, config in spellings.SPELLINGS}
    table |= {tuple(args): "refused" for args in spellings.REFUSED}
    if parser == VLLM_OLDEST:
        table |= {tuple(args): config for args, config in spellings.OLDEST}
        table |= {tuple(args): "refused" for args in spellings.OLDEST_REFUSED}
    return table


@pytest.mark.parametrize("parser", [VLLM_OLDEST, VLLM])
def test_vllm_reads_each_spelling_as_we_say(read: Read, parser: str) -> None:
    table = expected(parser)
    assert {args: of(read, parser, args) for args in table} == {args: [config] * 2 for args, config in table.items()}


@pytest.mark.parametrize("parser", [VLLM_OLDEST, VLLM])
def test_vllm_refuses_what_nobody_knows(read: Read, parser: str) -> None:
    for line in VLLM_LINES:
        assert f"unrecognized arguments: {line[-1]}" in read(parser, line)["refused"]


@pytest.mark.parametrize("parser", [VLLM_OLDEST, VLLM])
def test_a_connector_that_is_not_registered_is_found_out(read: Read, parser: str) -> None:
    """By the registry: the parser takes any name."""
    found = read(parser, NAMELESS)
    assert found["config"]["kv_connector"] == "NoSuchConnector"
    assert found["connector"] is None


@pytest.mark.parametrize("parser", [SGLANG_OLDEST, SGLANG])
def test_sglang_refuses_what_nobody_knows(read: Read, parser: str) -> None:
    unknown, doubled, number, backend, text, threshold = (read(parser, line) for line in SGLANG_LINES)
    assert "unrecognized arguments: --hicache-made-up=1" in unknown["refused"]
    assert doubled["hicache"]["hicache_size"] == 2, "the last one counts"
    assert "invalid int value: 'many'" in number["refused"]
    assert "invalid choice: 'made-up'" in backend["refused"]
    assert "refused" in text
    assert "prefetch_threshold must be int" in threshold["refused"]
