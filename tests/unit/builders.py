"""Tiers and engines by a few words, for tests that look at one module: read as the function reads them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from function import api, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import CREDENTIALS, Credential, EnginePatch, Part, Plan, Refusal, Site, Tier
from function.engines import Engine, identity, pod, vllm
from function.engines.args import CommandLine
from function.kube import Manifest

MODEL = "Qwen/Qwen3-32B"
# sha256("kvtier/modelplane-system/shared") begins with 5d78e.
INSTANCE = "kvtier-modelplane-system-shared-5d78e"
OLD = "vllm/vllm-openai:v0.11.0"  # speaks to no agent; its LMCache may be 0.3.7
MIDDLE = "vllm/vllm-openai:v0.20.2"  # speaks to no agent; its LMCache is 0.4.5 or newer
NEW = "vllm/vllm-openai:v0.33.0"  # speaks to agents; its LMCache is 0.5.6 or newer
UNSEEN = "team/vllm:v0.33.0"  # speaks to agents; nobody knows what it holds

EIGHT_GPUS = Site(gpus_per_node=8)


def tier_spec(lmcache: Mapping[str, Any] | None = None, **fields: Any) -> Manifest:
    """Write a tier's spec: 64 GiB per node, and what is given."""
    return {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64, **(lmcache or {})},
        **fields,
    }


def tier(lmcache: Mapping[str, Any] | None = None, **fields: Any) -> Tier:
    """Read the tier modelplane-system/shared with `tier_spec`'s spec."""
    spec = api.parse(TierSpec, tier_spec(lmcache, **fields))
    return Tier("modelplane-system", "shared", spec, releases.RELEASES["2026.11"])


def redis(**fields: Any) -> Manifest:
    """Write an lmcache block's `remote` with a Redis at kv.cache.svc:6379, and what is given."""
    return {"redis": {"host": "kv.cache.svc", **fields}}


def credential(**secret: str) -> Credential:
    """Give a resolved Secret with these values."""
    return Credential({key: base64.b64encode(value.encode()).decode() for key, value in secret.items()}, "uid-1")


def engine(*args: str, image: str = NEW, name: str = "chat", **fields: Any) -> Engine:
    """Read the engine of deployment ml/`name`: MODEL with these further args, and spec fields as they are written."""
    spec = {"name": "vLLM", "image": image, "args": [f"--model={MODEL}", *args], **fields}
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name=name)


def vouched(by: str = "qwen") -> Manifest:
    """Write a kvCache block that vouches for an identity."""
    return {"tierRef": {"name": "shared"}, "identity": by}


def derive(
    *args: str,
    command: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    image: str = NEW,
    owner: Sequence[str] = ("ml", "chat"),
    vouched: str | None = None,
) -> identity.Identity:
    """Derive an identity from a command line and its environment; None for a value that is not in the spec."""
    return identity.derive(
        vllm.KIND, CommandLine(command, args, env or {}), env or {}, image=image, owner=owner, vouched=vouched
    )


def plan(of_tier: Tier, site: Site = EIGHT_GPUS, secret: Credential | None = None) -> Plan:
    """Plan what a tier runs."""
    return of(of_tier.spec).plan(of_tier, site, {CREDENTIALS: secret} if secret else {})


def part(planned: Plan, name: str) -> Part:
    """Find a plan's part."""
    (found,) = [p for p in planned.parts if p.name == name]
    return found


def attach(to: Tier, which: Engine, site: Site = EIGHT_GPUS) -> EnginePatch:
    """Attach an engine that the tier takes."""
    patch = of(to.spec).attach(to, site, which)
    assert isinstance(patch, EnginePatch), patch
    return patch


def refuse(to: Tier, which: Engine, site: Site = EIGHT_GPUS) -> Refusal:
    """Attach an engine that the tier does not take."""
    refusal = of(to.spec).attach(to, site, which)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def env(patch: EnginePatch) -> dict[str, str | Manifest]:
    """Show a patch's environment by name: a literal as it is, a secretKeyRef as an object."""
    return {e["name"]: e["value"] if "value" in e else e["valueFrom"]["secretKeyRef"] for e in patch.env}
