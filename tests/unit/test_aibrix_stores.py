"""AIBrix's L2: what an engine is told of each store, what its pod gets for it, and what stands behind SGLang."""

import base64
from typing import Any

import pytest

from function import api, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import of
from function.backends.aibrix import AIBrix
from function.backends.base import CREDENTIALS, DRAWN, CredentialError, EnginePatch, Refusal, Site, Tier
from function.engines import Engine, pod
from function.kube import Manifest
from tests.unit import builders, stories
from tests.unit.builders import EIGHT_GPUS, credential, part, plan
from tests.unit.test_aibrix import OWN, PATCHED
from tests.unit.test_aibrix import engine as vllm

PREFIX = "AIBRIX_KV_CACHE_OL_"
# sha256("kvtier/modelplane-system/l2") begins with 97931.
INSTANCE = "kvtier-modelplane-system-l2-97931"
NICS: Manifest = {"extendedResource": {"name": "rdma/nics"}, "agents": {"count": 0}, "engines": {"count": 2}}
BY_NICS: Manifest = {"rdma": NICS}
FOLDER: Manifest = {"hostPath": {"path": "/mnt/nvme"}, "sizePerNode": "1Ti"}
MEMBERS: Manifest = {"redis": {"host": "redis.kv", "secretRef": {"name": "redis"}}}


def tier(l2: Manifest, **fields: Any) -> Tier:
    spec: Manifest = {
        "inferenceClusterRef": {"name": "x"},
        "backend": "AIBrix",
        "aibrix": {"offloading": {"l2": l2}},
        **fields,
    }
    return Tier("modelplane-system", "l2", api.parse(TierSpec, spec), releases.NEWEST)


def told(patch: EnginePatch) -> dict[str, Any]:
    """The variables of AIBrix's that are L2's, without their prefix."""
    found = {e["name"]: e.get("value", e.get("valueFrom")) for e in patch.env}
    return {
        name.removeprefix(PREFIX): value
        for name, value in found.items()
        if name.startswith(PREFIX) and "L1" not in name
    }


def secret_key(key: str) -> Manifest:
    return {"secretKeyRef": {"name": INSTANCE, "key": key}}


# --- what engines are told ----------------------------------------------------------------------------------------

IB = {"protocol": "RDMA", "linkType": "InfiniBand"}
NAMED = {**NICS, "netDevices": ["mlx5_1", "mlx5_2"], "gidIndex": 7}
BY_REDIS = {
    "META_SERVICE_BACKEND": "REDIS",
    "META_SERVICE_CLUSTER_META_KEY": "kvcache_nodes",
    "META_SERVICE_URL": secret_key("redis-url"),
}
STORES: dict[str, tuple[Manifest, Manifest, Manifest]] = {
    "one InfiniStore": (
        {"infinistore": {"address": "10.0.0.1", **IB}},
        BY_NICS,
        {
            "L2_CACHE_BACKEND": "INFINISTORE",
            "INFINISTORE_HOST_ADDR": "10.0.0.1",
            "INFINISTORE_SERVICE_PORT": "12345",
            "INFINISTORE_CONNECTION_TYPE": "RDMA",
            "INFINISTORE_LINK_TYPE": "IB",
        },
    ),
    "one InfiniStore by TCP": (
        {"infinistore": {"address": "fd00::1", "port": 9, "protocol": "TCP"}},
        {},
        {
            "L2_CACHE_BACKEND": "INFINISTORE",
            "INFINISTORE_HOST_ADDR": "fd00::1",
            "INFINISTORE_SERVICE_PORT": "9",
            "INFINISTORE_CONNECTION_TYPE": "TCP",
            "INFINISTORE_LINK_TYPE": "Ethernet",
        },
    ),
    "several InfiniStores, and devices by name": (
        {"infinistore": {"metadata": MEMBERS}},
        {"rdma": NAMED},
        {
            "L2_CACHE_BACKEND": "INFINISTORE",
            "INFINISTORE_CONNECTION_TYPE": "RDMA",
            "INFINISTORE_LINK_TYPE": "Ethernet",
            "INFINISTORE_VISIBLE_DEV_LIST": "mlx5_1:7,mlx5_2:7",
            **BY_REDIS,
        },
    ),
    "a Redis without a password": (
        {"infinistore": {"metadata": {"redis": {"host": "redis.kv", "port": 6380}}, "protocol": "TCP"}},
        {},
        {
            "L2_CACHE_BACKEND": "INFINISTORE",
            "INFINISTORE_CONNECTION_TYPE": "TCP",
            "INFINISTORE_LINK_TYPE": "Ethernet",
            **BY_REDIS,
            "META_SERVICE_URL": "redis://redis.kv:6380",
        },
    ),
    "one HPKV": (
        {"hpkv": {"address": "10.0.0.1"}},
        BY_NICS,
        {
            "L2_CACHE_BACKEND": "HPKV",
            "HPKV_REMOTE_ADDR": "10.0.0.1",
            "HPKV_REMOTE_PORT": "18512",
            "HPKV_LOCAL_ADDR": {"fieldRef": {"fieldPath": "status.podIP"}},
        },
    ),
    "several HPKVs": (
        {"hpkv": {"metadata": MEMBERS}},
        BY_NICS,
        {
            "L2_CACHE_BACKEND": "HPKV",
            "HPKV_LOCAL_ADDR": {"fieldRef": {"fieldPath": "status.podIP"}},
            **BY_REDIS,
            "META_SERVICE_CLUSTER_META_KEY": "hpkv_cluster_metadata",
        },
    ),
    "PrisKV": (
        {"priskv": {"address": "10.0.0.1", "secretRef": {"name": "pris"}}},
        BY_NICS,
        {
            "L2_CACHE_BACKEND": "PRISKV",
            "PRISKV_REMOTE_ADDR": "10.0.0.1",
            "PRISKV_REMOTE_PORT": "6379",
            "PRISKV_PASSWORD": secret_key("password"),
        },
    ),
    "EIC": (
        {"eic": {"secretRef": {"name": "eic"}}},
        BY_NICS,
        {"L2_CACHE_BACKEND": "EIC", "EIC_CONFIG_FILE": "/etc/kv-offload-eic/eic.yaml"},
    ),
    "files": ({"shfs": FOLDER}, {}, {"L2_CACHE_BACKEND": "SHFS", "SHFS_ROOT": "/var/lib/kv-offload/aibrix"}),
    "RocksDB": (
        {"rocksdb": {"sizePerPod": "1Ti", "ttlSeconds": 60}, "ingestion": "Evicted"},
        {},
        {
            "L2_CACHE_BACKEND": "ROCKSDB",
            "L2_CACHE_INGESTION_TYPE": "EVICTED",
            "ROCKSDB_ROOT": "/var/lib/kv-offload-rocksdb",
            "ROCKSDB_TTL_S": "60",
        },
    ),
}


@pytest.mark.parametrize("case", STORES)
def test_an_engine_is_told_of_its_store_and_keeps_its_own_memory(case: str) -> None:
    l2, fields, expected = STORES[case]
    engine = vllm(image=OWN)
    patch = builders.attach(tier(l2, **fields), engine)
    common = {"L2_CACHE_NAMESPACE": engine.keyspace, "L2_CACHE_INGESTION_TYPE": "HOT"}
    if case in ("files", "EIC"):
        # Of a batch with a hole AIBrix takes what it has not read.
        common["L2_CACHE_OP_BATCH"] = "1"
    assert told(patch) == {**common, **expected}
    assert {"name": f"{PREFIX}L1_CACHE_ENABLED", "value": "1"} in patch.env
    assert patch.identity == engine.keyspace
    nics = bool(fields)
    assert (patch.resources, patch.capabilities) == (({"rdma/nics": "2"}, ("IPC_LOCK",)) if nics else ({}, ()))


def test_engines_of_one_keyspace_share_and_no_others() -> None:
    to = tier({"shfs": FOLDER})

    def namespace(*args: str, **fields: Any) -> str:
        return str(told(builders.attach(to, vllm(*args, image=OWN, **fields)))["L2_CACHE_NAMESPACE"])

    assert namespace() == namespace(env=[{"name": "HF_HOME", "value": "/models"}])
    others = {namespace(), namespace("--revision=abc"), namespace("--dtype=float16"), namespace("--model=other/model")}
    assert len(others) == 4
    # AIBrix makes it lower-case.
    assert namespace() == namespace().lower()


def test_a_pod_waits_for_whoever_knows_the_members_and_for_nobody_else() -> None:
    (wait,) = builders.attach(tier({"infinistore": {"metadata": {}}}, **BY_NICS), vllm()).init_containers
    assert wait["command"][-1] == f"{INSTANCE}-valkey.default.svc:6379"
    assert not builders.attach(tier({"infinistore": {"address": "10.0.0.1"}}, **BY_NICS), vllm()).init_containers


def test_files_are_a_folder_of_the_node_and_an_agent_bounds_them() -> None:
    to = tier({"shfs": FOLDER})
    patch = builders.attach(to, vllm(image=OWN))
    assert patch.mounts == [{"name": "kv-files", "mountPath": "/var/lib/kv-offload", "subPath": INSTANCE}]
    assert patch.volumes == [{"name": "kv-files", "hostPath": {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}}]
    assert {p.name for p in plan(to).parts} == {"service-account", "network-policy", "agents"}


def test_a_database_has_a_volume_that_goes_with_the_pod() -> None:
    patch = builders.attach(tier({"rocksdb": {"sizePerPod": "1Ti", "storageClassName": "nvme"}}), vllm())
    (volume,), (mount,) = patch.volumes, patch.mounts
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("nvme", "1Ti")
    assert (volume["name"], mount["mountPath"]) == (mount["name"], "/var/lib/kv-offload-rocksdb")


def test_a_configuration_file_is_mounted_and_nothing_else_of_its_secret() -> None:
    patch = builders.attach(tier({"eic": {"secretRef": {"name": "eic"}}}, **BY_NICS), vllm())
    (volume,) = patch.volumes
    assert volume["secret"] == {"secretName": INSTANCE, "items": [{"key": "eic.yaml", "path": "eic.yaml"}]}
    (mount,) = patch.mounts
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/kv-offload-eic", True)


@pytest.mark.parametrize(
    ("l2", "package"), [({"hpkv": {"address": "10.0.0.1"}}, "hpkv"), ({"eic": {"secretRef": {"name": "e"}}}, "eic")]
)
def test_nobody_knows_whether_an_image_holds_the_stores_client(l2: Manifest, package: str) -> None:
    (notice,) = builders.attach(tier(l2, **BY_NICS), vllm()).notices
    assert (notice.type, notice.reason) == ("StoreClientUnverified", "ClientUnknown")
    assert f"the Python package {package}" in notice.message


def test_aibrixs_own_image_holds_infinistores_client() -> None:
    to = tier({"infinistore": {"address": "10.0.0.1"}}, **BY_NICS)
    assert not builders.attach(to, vllm()).notices
    assert {n.type for n in builders.attach(to, vllm(image=OWN)).notices} == {
        "EngineImageUnverified",
        "StoreClientUnverified",
    }


@pytest.mark.parametrize("l2", [{"shfs": FOLDER}, {"priskv": {"address": "10.0.0.1"}}])
def test_aibrixs_own_image_is_older_than_some_stores(l2: Manifest) -> None:
    fields = BY_NICS if "priskv" in l2 else {}
    refusal = builders.refuse(tier(l2, **fields), vllm(image=PATCHED))
    assert refusal.reason == "EngineTooOld"
    assert "0.6.0" in refusal.message and "0.14.0" in refusal.message


def test_replicas_of_one_pod_would_open_one_database() -> None:
    to = tier({"rocksdb": {"sizePerPod": "1Ti"}})
    refusal = builders.refuse(to, vllm("--data-parallel-size=2", memory="400Gi"))
    assert refusal.reason == "EngineIncompatible"
    assert "data-parallel" in refusal.message


@pytest.mark.parametrize(
    ("l2", "name"),
    [
        ({"shfs": FOLDER}, "L2_CACHE_OP_BATCH"),
        ({"eic": {"secretRef": {"name": "eic"}}}, "L2_CACHE_OP_BATCH"),
        ({"priskv": {"address": "10.0.0.1"}}, "PRISKV_USE_MPUT_MGET"),
    ],
)
def test_an_engine_that_asks_for_several_blocks_at_once_is_refused_and_not_left_attached(
    l2: Manifest, name: str
) -> None:
    to = tier(l2, **({} if "shfs" in l2 else BY_NICS))
    patch = builders.attach(to, vllm(image=OWN))
    sets = vllm(image=OWN, env=[{"name": f"{PREFIX}{name}", "value": "32"}])
    refusal = builders.refuse(to, sets)
    assert f"engine.env sets {PREFIX}{name}" in refusal.message
    assert patch.connector in refusal.rules_out
    assert not patch.holds(sets)


# --- Secrets, and what runs ---------------------------------------------------------------------------------------

SECRETS: dict[str, tuple[Manifest, str | None]] = {
    "PrisKV's password": ({"priskv": {"address": "10.0.0.1", "secretRef": {"name": "pris"}}}, "pris"),
    "PrisKV without one": ({"priskv": {"address": "10.0.0.1"}}, None),
    "EIC's file": ({"eic": {"secretRef": {"name": "eic"}}}, "eic"),
    "a Redis' password": ({"hpkv": {"metadata": MEMBERS}}, "redis"),
    "a Redis without one": ({"hpkv": {"metadata": {"redis": {"host": "redis.kv"}}}}, None),
    "a Valkey of the tier's": ({"hpkv": {"metadata": {}}}, DRAWN),
    "one server": ({"hpkv": {"address": "10.0.0.1"}}, None),
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_secret_is_read_where_there_is_one(case: str) -> None:
    l2, name = SECRETS[case]
    to = tier(l2, **BY_NICS)
    wanted = {} if name is None else {CREDENTIALS: name}
    assert of(to.spec).secrets(to) == wanted
    assert set(of(to.spec).plan(to, EIGHT_GPUS, {}).held) >= set(wanted)


def copied(to: Tier, **secret: str) -> dict[str, str]:
    data = part(plan(to, secret=credential(**secret)), "credentials").manifest["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_what_is_copied_is_what_is_used() -> None:
    pris = tier({"priskv": {"address": "10.0.0.1", "secretRef": {"name": "pris", "key": "pw"}}}, **BY_NICS)
    assert copied(pris, pw="a", other="b") == {"password": "a"}
    eic = tier({"eic": {"secretRef": {"name": "eic"}}}, **BY_NICS)
    assert copied(eic, **{"eic.yaml": "remote_url: eic://x"}) == {"eic.yaml": "remote_url: eic://x"}
    redis = tier({"hpkv": {"metadata": MEMBERS}}, **BY_NICS)
    assert copied(redis, password="p@/w") == {"password": "p@/w", "redis-url": "redis://:p%40%2Fw@redis.kv:6379"}


@pytest.mark.parametrize("case", ["PrisKV's password", "EIC's file", "a Redis' password"])
def test_a_secret_without_its_key_is_named(case: str) -> None:
    to = tier(SECRETS[case][0], **BY_NICS)
    with pytest.raises(CredentialError, match="has no key"):
        plan(to, secret=credential(wrong="x"))


def test_nothing_runs_for_a_store_that_is_there() -> None:
    assert plan(tier({"infinistore": {"address": "10.0.0.1"}}, **BY_NICS)).parts == []


def test_a_node_s_share_and_its_nics_are_said_with_the_tier() -> None:
    to = tier(
        {"hpkv": {"address": "10.0.0.1"}},
        rdma={"dra": {"deviceClassName": "nics"}, **{k: NICS[k] for k in ("agents", "engines")}},
    )
    (notice,) = plan(to, Site(8, pools={"a": {"nics": 1}})).notices
    assert notice.type == "InsufficientNICs"


# --- behind SGLang ------------------------------------------------------------------------------------------------

SGLANG = "team/sglang-aibrix:v0.5.23"


def sglang(*args: str, image: str = SGLANG, **fields: Any) -> Engine:
    spec = {"name": "SGLang", "image": image, "args": ["--model-path=Qwen/Qwen3-32B", *args], **fields}
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


def hicache(aibrix: Manifest, **fields: Any) -> Tier:
    l3 = {"hicache": {"hostMemoryGiBPerNode": 640, "l3": {"backend": "AIBrix"}}, "backend": "HiCache"}
    spec: Manifest = {"inferenceClusterRef": {"name": "x"}, **l3, "aibrix": aibrix, **fields}
    return Tier("modelplane-system", "l2", api.parse(TierSpec, spec), releases.NEWEST)


FILES: Manifest = {"offloading": {"l2": {"shfs": FOLDER}}}


def test_sglang_holds_memory_itself_and_aibrix_what_is_behind() -> None:
    engine = sglang()
    patch = builders.attach(hicache(FILES), engine)
    assert "--hicache-storage-backend=aibrix" in patch.args
    assert told(patch) == {
        "L2_CACHE_BACKEND": "SHFS",
        "L2_CACHE_NAMESPACE": engine.keyspace,
        "L2_CACHE_INGESTION_TYPE": "HOT",
        "L2_CACHE_OP_BATCH": "1",
        "SHFS_ROOT": "/var/lib/kv-offload/aibrix",
    }
    assert {"name": f"{PREFIX}L1_CACHE_ENABLED", "value": "0"} in patch.env
    assert {n.type for n in patch.notices} == {"EngineImageUnverified"}
    # 640 GiB among 8 GPUs, in decimal GB.
    assert "--hicache-size=85" in patch.args


def test_what_stands_behind_is_run_by_the_same_tier() -> None:
    assert {p.name for p in plan(hicache(FILES)).parts} == {"service-account", "network-policy", "agents"}
    assert set(plan(hicache(FILES)).memory) == {"hostMemoryGiB", "gpusPerNode", "perRankGB"}


def test_sglangs_own_image_does_not_hold_aibrix() -> None:
    refusal = builders.refuse(hicache(FILES), sglang(image="lmsysorg/sglang:v0.5.23"))
    assert refusal.reason == "LibraryMissing"


@pytest.mark.parametrize("args", [["--dp-size=2"], ["--tp-size=2", "--dp=2", "--enable-dp-attention"]])
def test_sglangs_replicas_of_one_pod_would_open_one_database_too(args: list[str]) -> None:
    to = hicache({"offloading": {"l2": {"rocksdb": {"sizePerPod": "1Ti"}}}})
    assert builders.refuse(to, sglang(*args)).reason == "EngineIncompatible"
    builders.attach(to, sglang("--tp-size=2"))


def test_stages_are_told_apart_and_slices_are_not() -> None:
    builders.attach(hicache(FILES), sglang("--pp-size=2"))
    refusal = builders.refuse(hicache(FILES), sglang("--attention-context-parallel-size=2", "--tp-size=4"))
    assert refusal.reason == "RanksNotIsolated"


def test_an_aibrix_tier_without_a_store_stands_behind_nobody() -> None:
    story = stories.tier_story(example="hicache-mooncake")
    spec = story.composite["spec"]
    spec.pop("mooncake"), spec.pop("rdma", None)
    spec["hicache"]["l3"] = {"tierRef": {"name": "l1"}}
    behind = stories.tier_story(example="aibrix-offloading").composite
    behind["spec"]["inferenceClusterRef"] = spec["inferenceClusterRef"]
    story.required["KVOffloadTier"] = behind
    rendered = story.settle()
    assert stories.state(rendered, "ControlPlaneReady") == ("False", "L3NotSupported")
    assert "aibrix.offloading without l2" in rendered.condition("ControlPlaneReady")["message"]
    behind["spec"]["aibrix"]["offloading"]["l2"] = {"shfs": FOLDER}
    assert stories.state(story.settle(), "ControlPlaneReady")[1] != "L3NotSupported"


def test_it_stores_nothing_where_it_has_no_store() -> None:
    plain = Tier(
        "modelplane-system",
        "l2",
        api.parse(TierSpec, {"inferenceClusterRef": {"name": "x"}, "backend": "AIBrix", "aibrix": {"offloading": {}}}),
        releases.NEWEST,
    )
    refusal = AIBrix().store(plain, EIGHT_GPUS, sglang())
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "StoresNothing"
