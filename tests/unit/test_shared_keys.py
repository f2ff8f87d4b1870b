"""The property on every backend: two engines that compute different KV never read or write the same keys."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function import api, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import EnginePatch, Refusal, Site, Tier
from function.engines import pod
from function.kube import Manifest, compact

FOLDER: Manifest = {"hostPath": {"path": "/mnt/nvme"}, "sizePerNode": "1Ti"}
STORAGE: Manifest = {"cpuTierGiBPerNode": 64, "fs": FOLDER}
BUCKET: Manifest = {"cpuTierGiBPerNode": 64, "obj": {"bucket": "kv-cache", "region": "eu-west-1"}}
POOL: Manifest = {"segmentGiBPerNode": 64, "protocol": "TCP"}
CLAIM: Manifest = {"claimName": "kv", "sizePerRank": "100Gi"}
NICS: Manifest = {"extendedResource": {"name": "rdma/nics"}, "agents": {"count": 1}, "engines": {"count": 1}}
FILES: Manifest = {"offloading": {"cpuTierGiBPerNode": 64, "l2": {"shfs": FOLDER}}}
TIERS: dict[str, tuple[str, Manifest]] = {
    "LMCache with agents": ("vLLM", {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}}),
    "LMCache in process": ("vLLM", {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64, "mode": "InProcess"}}),
    "Mooncake": ("vLLM", {"backend": "Mooncake", "mooncake": POOL}),
    "Nixl in files": ("vLLM", {"backend": "Nixl", "nixl": {"storage": STORAGE}}),
    "Nixl in a bucket": ("vLLM", {"backend": "Nixl", "nixl": {"storage": BUCKET}}),
    "AIBrix in files": ("vLLM", {"backend": "AIBrix", "aibrix": FILES}),
    "AIBrix in InfiniStore": (
        "vLLM",
        {"backend": "AIBrix", "aibrix": {"distributed": {"infinistore": {"memoryGiBPerReplica": 64}}}, "rdma": NICS},
    ),
    "AIBrix behind SGLang": (
        "SGLang",
        {"backend": "HiCache", "hicache": {"ratio": 2, "l3": {"backend": "AIBrix"}}, "aibrix": FILES},
    ),
    "Mooncake behind SGLang": ("SGLang", {"backend": "Mooncake", "mooncake": POOL}),
    "Nixl in files behind SGLang": ("SGLang", {"backend": "Nixl", "nixl": {"storage": STORAGE}}),
    "Nixl in a bucket behind SGLang": ("SGLang", {"backend": "Nixl", "nixl": {"storage": BUCKET}}),
    "files behind SGLang": (
        "SGLang",
        {"backend": "HiCache", "hicache": {"ratio": 2, "l3": {"backend": "File", "file": CLAIM}}},
    ),
}


class Meaning(NamedTuple):
    """What decides an engine's KV and how it lies, beside the model string."""

    options: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, str], ...]
    ranks: int
    owner: str
    image: str

    def same_kv(self, other: "Meaning", *, hub: bool) -> bool:
        """Whether two engines of one model string may share: whose they are tells nothing of a hub's model."""
        return self == other or (hub and self[:3] == other[:3])


OPTIONS = st.dictionaries(
    st.sampled_from(["--quantization", "--dtype", "--kv-cache-dtype", "--revision"]), st.sampled_from(["a", "b"])
)
MEANINGS = st.builds(
    Meaning,
    options=OPTIONS.map(lambda o: tuple(sorted(o.items()))),
    variables=st.dictionaries(st.just("HF_ENDPOINT"), st.sampled_from(["x", "y"])).map(lambda v: tuple(v.items())),
    ranks=st.sampled_from([1, 2]),
    owner=st.sampled_from(["chat", "search"]),
    image=st.sampled_from(["team-a", "team-b"]),
)


def attach(name: str, meaning: Meaning, model: str) -> EnginePatch | Refusal:
    kind, block = TIERS[name]
    spec = api.parse(TierSpec, {"inferenceClusterRef": {"name": "eu-h100"}, **block})
    tier = Tier("modelplane-system", "shared", spec, releases.NEWEST)
    sglang = kind == "SGLang"
    # Of which nobody knows what libraries they hold.
    version = "sglang:v0.5.23" if sglang else "vllm:v0.21.0" if spec.backend == "AIBrix" else "vllm:v0.33.0"
    image = f"registry.example/{meaning.image}/{version}"
    args = [
        f"--model{'-path' if sglang else ''}={model}",
        f"--tp={meaning.ranks}" if sglang else f"-tp={meaning.ranks}",
    ]
    written = {
        "name": kind,
        "image": image,
        "args": [*args, *(f"{option}={value}" for option, value in meaning.options)],
        "env": [{"name": variable, "value": value} for variable, value in meaning.variables],
    }
    engine = pod.read(api.parse(EngineSpec, written), namespace="ml", name=meaning.owner)
    return of(spec).attach(tier, Site(gpus_per_node=8), engine)


def keys(patch: EnginePatch) -> str:
    """Whatever of a patch goes into the keys, or says where they are: all but what is the same for a whole tier."""
    names = ("PYTHONHASHSEED", "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", "AIBRIX_KV_CACHE_OL_L2_CACHE_NAMESPACE")
    seeds = {e["name"]: e for e in patch.env if e["name"] in names}
    extra = [a for a in patch.args if a.startswith("--hicache-storage-backend-extra-config")]
    folders = [m.get("subPath") for m in patch.mounts]
    return compact([seeds, extra, folders, dict(patch.kv_transfer)])


@pytest.mark.parametrize("name", TIERS)
@given(a=MEANINGS, b=MEANINGS, model=st.sampled_from(["Qwen/Qwen3-32B", "/mnt/models"]))
@settings(max_examples=60, deadline=None)
def test_two_meanings_of_one_model_string_never_share_keys(name: str, a: Meaning, b: Meaning, model: str) -> None:
    first, second = (attach(name, meaning, model) for meaning in (a, b))
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        # Where nothing could keep them apart.
        return
    agents = {first.connector, second.connector} == {"LMCacheMPConnector"}
    layout = first.connector.startswith("LMCache")
    if layout:
        # LMCache's keys hold the ranks themselves.
        a, b = a._replace(ranks=1), b._replace(ranks=1)
    if not a.same_kv(b, hub=model != "/mnt/models"):
        assert not agents
        assert keys(first) != keys(second)


@pytest.mark.parametrize("name", [name for name in TIERS if name != "Nixl in a bucket behind SGLang"])
@given(meaning=MEANINGS)
@settings(max_examples=20, deadline=None)
def test_engines_of_one_hub_model_share_whoever_they_are(name: str, meaning: Meaning) -> None:
    """Lest they are kept apart by being refused, or by chance."""
    other = meaning._replace(owner="batch", image="team-c")
    patches = [attach(name, m, "Qwen/Qwen3-32B") for m in (meaning, other)]
    assert all(isinstance(p, EnginePatch) for p in patches), patches
    assert len({keys(p) for p in patches if isinstance(p, EnginePatch)}) == 1
