"""Which connector of AIBrix's an engine has, and what its own flags and variables rule out with it.

It was written for one vLLM after another, patched or wrapped; docs/aibrix.md has what was read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from function import kube, placement, workloads
from function.backends import compatibility, libraries
from function.backends.base import EnginePatch, Notice, Refusal, Tier
from function.engines import Engine, table, versions
from function.engines.args import Flag, names

UNKNOWN = "AIBrixUnknown"

_MODULE = "aibrix_kvcache.integration.vllm.kv_connector.aibrix_offloading_connector_type1"
_OTHER_BACKEND = "or a tier of another backend"
_SPECULATIVE = ("--speculative-config", "-sc")
_STAGES = ("--pipeline-parallel-size", "-pp")
_CONTEXTS = (("--decode-context-parallel-size", "-dcp"), ("--prefill-context-parallel-size", "-pcp"))
# With the second one, embeddings pass the limits below.
_EMBEDS = ("--enable-prompt-embeds", "--enable-mm-embeds")
_ATTENTION = "--attention-backend"
_ATTENTION_ENV = "VLLM_ATTENTION_BACKEND"
# The one whose KV it reads as it lies: FLASHINFER lays it out by heads on newer GPUs (vLLM's
# get_required_kv_cache_layout), which AIBrix's copies take for tokens.
_READ = "FLASH_ATTN"
_ATTENTION_CONFIG = ("--attention-config", "-ac")
_LAYOUT_ENV = "VLLM_KV_CACHE_LAYOUT"
_LIMIT = "--limit-mm-per-prompt"
# Keys know a prompt by its tokens, and all images have the same.
_NONE = {"image": 0, "video": 0, "audio": 0, "vision_chunk": 0}


@dataclass(frozen=True)
class Connector:
    """A connector of AIBrix's, as an engine of some vLLM has it.

    `since` is that vLLM; `module` is where vLLM finds the connector, empty for one that is built in.
    """

    name: str
    since: versions.Version
    module: str = ""

    @property
    def config(self) -> dict[str, str]:
        """What it is in vLLM's --kv-transfer-config."""
        module = {"kv_connector_module_path": self.module} if self.module else {}
        return {"kv_connector": self.name, "kv_role": "kv_both", **module}


_PATCHED = Connector("AIBrixOffloadingConnectorV1Type3", table.VLLM_AIBRIX_PATCHED.since)
_OWN = Connector("AIBrixOffloadingConnector", table.VLLM_AIBRIX.since, _MODULE)
CONNECTORS = {connector.name: connector for connector in (_PATCHED, _OWN)}


def of(engine: Engine) -> Connector | Refusal:
    """Tell which connector a vLLM engine has, or why it has none that works."""
    assert engine.version
    shown = f"vLLM {versions.show(engine.version)}"
    patched, own, until = (versions.show(v) for v in (_PATCHED.since, _OWN.since, table.VLLM_RUNNER_V2.since))
    if table.VLLM_AIBRIX_PATCHED.holds(engine.version):
        found = _PATCHED
    elif not table.VLLM_AIBRIX.holds(engine.version):
        return Refusal(
            "EngineTooOld",
            f"{shown} is neither {patched}, which AIBrix's own images hold patched, nor {own} or newer, to which its "
            f"package can be added; take one of these, {_OTHER_BACKEND}",
            tuple(CONNECTORS),
        )
    elif table.VLLM_RUNNER_V2.holds(engine.version):
        return Refusal(
            "EngineTooNew",
            f"{shown} runs another model runner than the one that AIBrix's package wraps, and would load nothing; "
            f"take {own} to before {until}, {_OTHER_BACKEND}",
            tuple(CONNECTORS),
        )
    else:
        found = _OWN
    fix = "take one with `pip install aibrix-kvcache`" if found.module else "take AIBrix's own image of this version"
    return libraries.missing(engine, table.AIBRIX, f"{fix}, {_OTHER_BACKEND}") or found


def unfit(engine: Engine, connector: Connector) -> Refusal | None:
    """Say why an engine as it is written would fail with the connector, or answer wrongly."""
    return (
        _mixed_up(engine, connector)
        or _unaligned(engine, connector)
        or _unread(engine, connector)
        or compatibility.remapped(engine, connector.name, registers=False)
        or compatibility.hybrid(engine, connector.name)
    )


def arguments(engine: Engine, connector: Connector) -> list[str]:
    """Keep images, video and audio out, and choose an attention backend, unless the engine does it itself."""
    limit = [] if engine.line.flags(_LIMIT) else [f"{_LIMIT}={kube.compact(_NONE)}"]
    # Whatever the environment says, since newer vLLMs do not read it.
    chosen = engine.line.flags(_ATTENTION) or not connector.module
    return limit if chosen else [*limit, f"{_ATTENTION}={_READ}"]


def variables(connector: Connector) -> dict[str, str]:
    """Say what AIBrix's images ask for, and choose an attention backend where there is no argument for it."""
    return {} if connector.module else {"VLLM_USE_V1": "1", _ATTENTION_ENV: _READ}


def notices(engine: Engine, connector: Connector) -> list[Notice]:
    """Say that nobody has looked into the engine's image; nothing where somebody has."""
    if engine.bundled(table.AIBRIX).holds:
        return []
    package = f"AIBrix's KV cache package {versions.show(table.AIBRIX_CONNECTORS.since)} or newer"
    needed = package if connector.module else "AIBrix's KV cache package and the vLLM that it patches"
    return [libraries.unverified(engine, table.AIBRIX, UNKNOWN, needed)]


def patch(tier: Tier, engine: Engine, connector: Connector) -> EnginePatch:
    """Begin an engine's patch: the connector, and what is the same however much it holds."""
    return EnginePatch(
        tier=tier.ref,
        connector=connector.name,
        identity=engine.identity.digest,
        since=connector.since,
        library=table.AIBRIX,
        kv_transfer=connector.config,
        args=arguments(engine, connector),
        labels=workloads.engines(tier),
        **placement.placed(tier.spec.placement),
        notices=notices(engine, connector),
    )


def _mixed_up(engine: Engine, connector: Connector) -> Refusal | None:
    """Say why an engine would read KV that is not its prompt's: keys hold tokens, and nothing else."""
    if engine.identity.lora:
        return Refusal(
            "LoRANotIsolated",
            "AIBrix keys KV by tokens alone, an adapter's as its base model's, so answers could be wrong; remove the "
            "adapters, or the tierRef",
            [connector.name],
        )
    if embeds := engine.line.flags(*_EMBEDS):
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.args set {names(embeds)}, and AIBrix keys KV by tokens, which embeddings have none of; remove it",
            [connector.name],
        )
    if (limits := engine.line.flags(_LIMIT)) and not _nothing_but_text(limits):
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.args set {_LIMIT} (to {limits[-1].value!r}), and AIBrix keys KV by tokens, which are the same for "
            "every image, so answers could be wrong; remove it to serve text alone, or remove the tierRef",
            [connector.name],
        )
    return None


def _nothing_but_text(limits: Sequence[Flag]) -> bool:
    """Whether the last of them is one that lets nothing in."""
    try:
        found = json.loads(limits[-1].value or "")
    except ValueError:
        return False
    return isinstance(found, dict) and found == {**found, **_NONE} and not any(found.values())


def _unaligned(engine: Engine, connector: Connector) -> Refusal | None:
    """Say why ranks would not load the same tokens, or another number than vLLM counts."""
    assert engine.version
    line = engine.line
    if (stages := line.integer(*_STAGES)) > 1:
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.args set {_STAGES[0]} {stages}, and each stage loads what it finds for itself, which need not be "
            "the same tokens; use tensor parallelism alone",
            [connector.name],
        )
    for context in _CONTEXTS:
        if (slices := line.integer(*context)) > 1:
            return Refusal(
                compatibility.INCOMPATIBLE,
                f"engine.args set {context[0]} {slices}, and AIBrix takes every rank to hold every token; remove it",
                [connector.name],
            )
    if connector.module and table.VLLM_AIBRIX_UNCORRECTED.holds(engine.version) and line.flags(*_SPECULATIVE):
        before = versions.show(table.VLLM_AIBRIX_UNCORRECTED.since)
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.args set {_SPECULATIVE[0]}, whose corrections AIBrix's wrapper drops from vLLM {before} on; take "
            "an older one, or remove it",
            [connector.name],
        )
    return None


def _unread(engine: Engine, connector: Connector) -> Refusal | None:
    """Say that an attention backend, or the engine itself, lays KV out as the connector does not know."""
    if configured := engine.line.flags(*_ATTENTION_CONFIG):
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.args set {names(configured)}, and {connector.name} reads KV of {_READ} alone; remove it, or set "
            f"{_ATTENTION} {_READ} instead",
            [connector.name],
        )
    if (layout := engine.env.get(_LAYOUT_ENV)) and layout.upper() != "NHD":
        return Refusal(
            compatibility.INCOMPATIBLE,
            f"engine.env sets {_LAYOUT_ENV}={layout}, and {connector.name} takes KV to lie by tokens, so answers could "
            "be wrong; remove it",
            [connector.name],
        )
    by_flag = engine.line.value(_ATTENTION)
    chosen = by_flag or engine.env.get(_ATTENTION_ENV)
    if not chosen or chosen.upper().removesuffix("_VLLM_V1") == _READ:
        return None
    where = f"engine.args set {_ATTENTION} {chosen}" if by_flag else f"engine.env sets {_ATTENTION_ENV}={chosen}"
    return Refusal(
        compatibility.INCOMPATIBLE,
        f"{where}, and {connector.name} reads KV of {_READ} alone, so answers could be wrong; set that, or remove it",
        [connector.name],
    )
