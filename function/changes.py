"""What a change of a tier costs: which pods of it restart, whether engines do, and whether a cache is lost.

Nothing is looked up in a table: the tier is planned as it was and as it will be, and engines are attached to both.
"""

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from function import api, backends, kube
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends.base import Credential, EnginePatch, Invalid, Part, Site, Tier
from function.engines import Engine, pod

_WORKLOADS = frozenset({"DaemonSet", "Deployment", "StatefulSet"})
# What AIBrix's controller makes servers of, which hold what they store in memory.
_SERVERS = "KVCache"

# One engine for each way in which a tier attaches some: by agents, in process with an old library and with a newer one,
# with a role, SGLang's own, and what AIBrix's images and package speak.
_ENGINES: Sequence[tuple[str, str, kube.Manifest]] = (
    ("vLLM", "vllm/vllm-openai:v0.33.0", {}),
    ("vLLM", "vllm/vllm-openai:v0.33.0", {"role": "Prefill"}),
    ("vLLM", "vllm/vllm-openai:v0.11.0", {}),
    ("vLLM", "vllm/vllm-openai:v0.20.2", {}),
    ("SGLang", "lmsysorg/sglang:v0.5.23", {}),
    ("vLLM", "aibrix/vllm-openai-aibrix-kvcache:v0.10.2", {}),
    ("vLLM", "images.example/vllm-openai:v0.18.1", {}),
    ("SGLang", "images.example/sglang:v0.5.23", {}),
    ("vLLM", "aibrix/vllm-openai:v0.6.1", {}),
)


@dataclass(frozen=True)
class Change:
    """What a change does: `restarts` are parts whose pods restart.

    `cold`: KV that was stored is lost, on a node or everywhere. `engines`: attached engines roll.
    """

    restarts: Sequence[str] = ()
    cold: bool = False
    engines: bool = False

    def __str__(self) -> str:
        """Show it as annotations and messages do."""
        return ", ".join(filter(None, ["cold cache" if self.cold else "", "engine roll" if self.engines else ""])) or (
            "none"
        )

    @classmethod
    def read(cls, text: str) -> "Change":
        """Read what `str` has written, but for the parts."""
        return cls(cold="cold cache" in text, engines="engine roll" in text)

    def after(self, other: "Change") -> "Change":
        """Add a change that came before, and of which nobody has seen the end."""
        return Change(self.restarts, self.cold or other.cold, self.engines or other.engines)


NONE = Change()


def between(old: Tier, new: Tier, site: Site) -> Change:
    """Say what it costs to change a tier.

    Args:
        old: The tier as it is.
        new: The same as it will be.
        site: What is known of its cluster.

    Returns:
        What any engine would see of it; the worst, where it cannot be planned on what is known of the cluster.
    """
    try:
        before, after = _running(old, site), _running(new, site)
    except Invalid:
        return Change(cold=True, engines=True)
    restarts = [name for name, pods in before.pods.items() if after.pods.get(name) != pods]
    engines = any(o and n and o != n for o, n in zip(before.patches, after.patches, strict=True))
    # Without anything that holds KV beside them, engines hold it themselves.
    own = engines and not after.losing
    return Change(tuple(restarts), cold=own or not before.losing.isdisjoint(restarts), engines=engines)


class _Anything(dict[str, str]):
    """Stands in for the data of a Secret that nobody reads for this: each key is there, and holds what may be anywhere.

    What a Secret holds restarts nothing; which one it is, and by which keys, may.
    """

    def __missing__(self, key: str) -> str:
        return _TEXT

    def get(self, key: str, default: object = None) -> str:  # noqa: ARG002
        """Give what every key holds."""
        return _TEXT


_TEXT = base64.b64encode(b"-----BEGIN CERTIFICATE-----\n" + 64 * b"x").decode()


@dataclass(frozen=True)
class _Running:
    """Pod templates by part, the parts of which lose KV by a restart, and patches by engine."""

    pods: Mapping[str, kube.Manifest]
    losing: frozenset[str]
    patches: Sequence[str | None]


def _running(tier: Tier, site: Site) -> _Running:
    site = replace(site, l3=_behind(tier)) if tier.spec.l3_ref else site
    backend = backends.of(tier.spec)
    secrets = {part: Credential(_Anything(), name) for part, name in backend.secrets(tier).items()}
    parts = [part for part in backend.plan(tier, site, secrets).parts if not part.maker]
    patches = [backend.attach(tier, site, engine) for engine in _engines()]
    return _Running(
        {part.name: pods for part in parts if (pods := _pods(part))},
        frozenset(part.name for part in parts if part.loses or part.manifest["kind"] == _SERVERS),
        [
            replace(patch, notices=(), release=()).to_json() if isinstance(patch, EnginePatch) else None
            for patch in patches
        ],
    )


def _pods(part: Part) -> kube.Manifest | None:
    kind, spec = part.manifest["kind"], part.manifest.get("spec", {})
    found: kube.Manifest | None = spec if kind == _SERVERS else spec["template"] if kind in _WORKLOADS else None
    return found


def _behind(tier: Tier) -> Tier:
    """Stand in for the tier behind another one, whose own change is its own."""
    spec = {
        "inferenceClusterRef": {"name": tier.spec.inference_cluster_ref.name},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 1, "protocol": "TCP"},
        "targetNamespace": tier.spec.target_namespace,
    }
    return replace(tier, name=tier.spec.l3_ref or "", spec=api.parse(TierSpec, spec))


@functools.cache
def _engines() -> Sequence[Engine]:
    return [
        pod.read(
            api.parse(
                EngineSpec,
                {
                    "name": name,
                    "image": image,
                    "args": [f"{pod.KINDS[name].model[0]}=Qwen/Qwen3-32B"],
                    "resources": {"limits": {"memory": "200Gi", "nvidia.com/gpu": "1"}},
                    "kvCache": {"tierRef": {"name": "-"}, **fields},
                },
            ),
            namespace="-",
            name="-",
        )
        for name, image, fields in _ENGINES
    ]
