"""Cache identity: what must be equal for two engines to share KV.

Backends key by the model string alone, so everything else that changes KV has to be part of an identity, and two
identities must never share keys. See docs/cache-identity.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from function import kube
from function.engines.args import CommandLine

# Options that change the KV a model computes for the same tokens.
KV_OPTIONS = (
    "--revision",
    "--code-revision",
    "--tokenizer",
    "--tokenizer-revision",
    "--quantization",
    "-q",
    "--dtype",
    "--kv-cache-dtype",
    "--calculate-kv-scales",
    "--hf-overrides",
    "--hf-config-path",
    "--rope-scaling",
    "--rope-theta",
    "--model-impl",
    "--load-format",
)
LORA_OPTIONS = ("--enable-lora", "--lora-modules")
# A file of options hides all of the above.
CONFIG_FILE = "--config"
# Variables that change which hub a model id is looked up in.
SOURCE_ENV = ("VLLM_USE_MODELSCOPE", "HF_ENDPOINT")

_SEEDS = 2**32  # PYTHONHASHSEED is a decimal number below this, or Python does not start


@dataclass(frozen=True)
class Identity:
    """What an engine's KV may be shared under.

    `plain`: a hub id and nothing else that changes KV, so that the model string alone says everything.
    `vouched`: the user gave `kvCache.identity`.
    `lora`: the engine serves adapters, whose KV no LMCache version keys apart within one engine.
    """

    value: str
    plain: bool
    vouched: bool
    lora: bool

    @property
    def seed(self) -> str:
        """The PYTHONHASHSEED of this identity: it seeds the first hash of every prefix chain."""
        return str(int(kube.digest(self.value)[:16], 16) % _SEEDS)


def is_hub_id(model: str) -> bool:
    """Tell a hub's `owner/name` from a path, of which every image has its own."""
    return model.count("/") == 1 and not model.startswith(("/", ".", "~")) and not model.endswith("/")


def derive(
    line: CommandLine, env: dict[str, str], *, image: str, owner: Sequence[str], vouched: str | None
) -> Identity:
    """Derive an engine's identity.

    Args:
        line: The engine's command line.
        env: Its literal environment.
        image: Its image: part of the identity of a model that is read from a path.
        owner: Namespace and name of the deployment, for a model that only it can know.
        vouched: `kvCache.identity`, which stands for all of it.

    Returns:
        The identity; equal inputs give equal identities, in any order of flags.
    """
    lora = bool(line.flags(*LORA_OPTIONS))
    if vouched:
        return Identity(kube.compact({"identity": vouched}), plain=False, vouched=True, lora=lora)
    model = line.value("--model") or line.positional or ""
    options = sorted([f.name, f.value] for f in line.flags(*KV_OPTIONS))
    source = {name: env[name] for name in SOURCE_ENV if name in env}
    facts: dict[str, object] = {"model": model, "options": options, "source": source}
    hub = is_hub_id(model) and not line.flags(CONFIG_FILE) and not line.hidden
    if not hub:
        # Two deployments may mean two models by one path: nothing but this one's own pods may share.
        facts |= {"image": image, "owner": list(owner), "words": list(line.words)}
    return Identity(kube.compact(facts), plain=hub and not options and not source, vouched=False, lora=lora)
