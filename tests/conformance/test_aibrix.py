"""AIBrix's own package, as it is released: the variables that engines get, and what its connectors want of vLLM."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from function.backends.aibrix import l2 as l2_stores
from function.backends.base import EnginePatch
from function.engines import table
from tests.unit import builders
from tests.unit.test_aibrix import OWN, PATCHED, engine, tier
from tests.unit.test_aibrix_stores import STORES
from tests.unit.test_aibrix_stores import tier as store_tier

PACKAGE = Path(sys.prefix) / "aibrix-0.8.0" / "aibrix_kvcache"
CONNECTORS = PACKAGE / "integration" / "vllm" / "kv_connector"
PREFIX = "AIBRIX_KV_CACHE_OL_"
L1 = {"L1_CACHE_ENABLED": True, "L1_CACHE_CAPACITY_GB": 10.0, "L1_CACHE_EVICTION_POLICY": "S3FIFO"}
# What is written, with what the package takes where nobody says.
DEFAULTS: dict[str, object] = {
    **L1,
    "L2_CACHE_BACKEND": "",
    "L2_CACHE_NAMESPACE": "aibrix",
    "L2_CACHE_INGESTION_TYPE": "HOT",
    "L2_CACHE_OP_BATCH": 32,
    "INFINISTORE_HOST_ADDR": "127.0.0.1",
    "INFINISTORE_SERVICE_PORT": 12345,
    "INFINISTORE_CONNECTION_TYPE": "RDMA",
    "INFINISTORE_LINK_TYPE": "Ethernet",
    "INFINISTORE_VISIBLE_DEV_LIST": [],
    "META_SERVICE_BACKEND": "",
    "META_SERVICE_CLUSTER_META_KEY": "",
    "META_SERVICE_URL": "",
    "HPKV_REMOTE_ADDR": "127.0.0.1",
    "HPKV_REMOTE_PORT": 12346,
    "HPKV_LOCAL_ADDR": "127.0.0.1",
    "PRISKV_REMOTE_ADDR": "127.0.0.1",
    "PRISKV_REMOTE_PORT": 6379,
    "PRISKV_PASSWORD": "",
    "EIC_CONFIG_FILE": "",
    "SHFS_ROOT": str(Path.home() / ".kv_cache_ol" / "shfs"),
    "ROCKSDB_ROOT": str(Path.home() / ".kv_cache_ol" / "rocksdb"),
    "ROCKSDB_TTL_S": 600,
}


def envs() -> Any:
    """Load the package's table of variables, alone; it reads the environment when it is asked."""
    spec = importlib.util.spec_from_file_location("aibrix_envs", PACKAGE / "envs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patch(image: str, **offloading: Any) -> EnginePatch:
    return builders.attach(tier(**offloading), engine("-tp=2", image=image))


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_variable_has_the_name_and_the_default_that_we_know(name: str) -> None:
    assert getattr(envs(), f"{PREFIX}{name}") == DEFAULTS[name]


@pytest.mark.parametrize("image", [PATCHED, OWN])
def test_it_reads_what_an_engine_gets(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {e["name"]: e["value"] for e in patch(image, evictionPolicy="LRU").env if e["name"].startswith(PREFIX)}
    assert {name.removeprefix(PREFIX) for name in written} == L1.keys()
    for name, value in written.items():
        monkeypatch.setenv(name, value)
    read = {name: getattr(envs(), f"{PREFIX}{name}") for name in L1}
    assert read == {"L1_CACHE_ENABLED": True, "L1_CACHE_CAPACITY_GB": 40.0, "L1_CACHE_EVICTION_POLICY": "LRU"}


@pytest.mark.parametrize("case", STORES)
def test_it_reads_what_an_engine_is_told_of_its_store(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    l2, fields, _ = STORES[case]
    written = builders.attach(store_tier(l2, **fields), engine(image=OWN)).env
    # What is read from a Secret or from the pod is what its name says, here.
    told = {e["name"]: e.get("value", e["name"]) for e in written if e["name"].startswith(PREFIX)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert {name.removeprefix(PREFIX) for name in told} <= DEFAULTS.keys()
    for name, value in told.items():
        read, default = getattr(envs(), name), DEFAULTS[name.removeprefix(PREFIX)]
        assert type(read) is type(default)
        shown = ",".join(read) if isinstance(read, list) else str(int(read) if isinstance(read, bool) else read)
        assert shown.removesuffix(".0") == value


def test_every_variable_that_is_known_here_is_written_somewhere() -> None:
    tiers = [store_tier(l2, **fields) for l2, fields, _ in STORES.values()]
    written = {e["name"].removeprefix(PREFIX) for to in tiers for e in builders.attach(to, engine(image=OWN)).env}
    assert written & DEFAULTS.keys() == DEFAULTS.keys()


def test_it_has_every_store_that_a_tier_may_name_and_imports_its_client() -> None:
    """Where this fails for a new store, a tier may learn to name it."""
    source = (PACKAGE / "l2" / "connectors" / "connector.py").read_text()
    known = {
        name for line in re.findall(r"backend_name (?:==|in) (.*):", source) for name in re.findall(r'"(\w+)"', line)
    }
    assert known == {"ROCKSDB", "INFINISTORE", "HPKV", "PRISKV", "PRIS", "MOCK", "EIC", "SHFS"}
    for name, client in l2_stores._CLIENTS.items():
        (file,) = (PACKAGE / "l2" / "connectors").rglob(f"{name.lower()}.py")
        assert re.search(rf"^import {client}\b", file.read_text(), re.MULTILINE)


def test_keys_begin_with_the_namespace_and_know_no_model() -> None:
    connectors, cache = ((PACKAGE / "l2" / name).read_text() for name in ("connectors/connector.py", "l2_cache.py"))
    assert 'conn_id = f"{namespace}_{partition_id}"' in connectors
    assert 'partition_id = f"h{cat_head_ids}_l{cat_layer_ids}"' in cache
    assert "model_name" not in connectors + cache


def test_what_goes_to_a_store_is_one_of_three() -> None:
    manager = (PACKAGE / "cache_manager.py").read_text()
    # Whatever is neither of these is what memory has no room for.
    assert re.findall(r'ingestion_type == "(\w+)"', manager) == ["HOT", "ALL"]


def test_a_list_of_members_that_is_absent_is_no_error_that_it_knows() -> None:
    """Where this fails, a Valkey with members may be ready before there are any: see aibrix/metadata.py."""
    source = (PACKAGE / "meta_service" / "redis_meta_service.py").read_text()
    assert "except (redis.RedisError, UnicodeDecodeError)" in source
    assert 'Status.ok(json_str.decode("utf-8"))' in source


@pytest.mark.parametrize("version", ["0.5.5", "0.5.23"])
def test_sglang_finds_aibrix_by_the_name_that_it_is_told(version: str) -> None:
    root = Path(sys.prefix) / f"sglang-{version}" / "sglang" / "srt" / "mem_cache" / "storage"
    assert f'    "{l2_stores.BACKEND}",' in (root / "backend_factory.py").read_text()
    tree = ast.parse((root / "aibrix_kvcache" / "aibrix_kvcache_storage.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "aibrix_kvcache"]
    names = {alias.name for node in imports for alias in node.names}
    package = (PACKAGE / "__init__.py").read_text()
    assert "from .spec import *" in package
    everything = package + (PACKAGE / "spec.py").read_text()
    assert names and all(re.search(rf'"{name}"|^class {name}\b', everything, re.MULTILINE) for name in names)


def test_a_gb_is_a_gib_and_the_system_gives_whole_ones() -> None:
    manager, allocator = ((PACKAGE / name).read_text() for name in ("cache_manager.py", "memory/allocator.py"))
    assert re.search(r"L1_CACHE_CAPACITY_GB \* 1024\*\*3", manager)
    assert re.search(r"SLAB_MAX_NBYTES = 1 \* 1024\*\*3\b", allocator)


@pytest.mark.parametrize("policy", ["S3FIFO", "LRU", "FIFO"])
def test_it_has_every_eviction_policy_that_a_tier_may_ask_for(policy: str) -> None:
    policies = (PACKAGE / "l1" / "eviction_policy" / "base_eviction_policy.py").read_text()
    assert f'"{policy}"' in policies


def test_the_connector_is_where_vllm_is_told_to_look() -> None:
    config = patch(OWN).kv_transfer
    module = PACKAGE.parent.joinpath(*config["kv_connector_module_path"].split(".")).with_suffix(".py")
    classes = {node.name for node in ast.parse(module.read_text()).body if isinstance(node, ast.ClassDef)}
    assert config["kv_connector"] in classes
    assert "FlashAttentionBackend.get_name()" in module.read_text()


def test_it_still_wraps_the_model_runner_that_newer_vllms_leave_alone() -> None:
    """Where this fails, AIBrix may go with newer ones: see engine/table.py's VLLM_RUNNER_V2 and _UNCORRECTED."""
    wrapper = (CONNECTORS / "__init__.py").read_text()
    assert re.findall(r'"(vllm\.v1\.worker\.[\w.]+)"', wrapper) == ["vllm.v1.worker.gpu_model_runner"]
    assert re.search(r"^        _orig_update_states\(self, scheduler_output\)$", wrapper, re.MULTILINE)


@pytest.mark.parametrize("version", ["0.11.0", "0.33.0"])
def test_what_it_imports_of_vllm_is_there_as_the_table_says(version: str) -> None:
    root = Path(sys.prefix) / f"vllm-{version}"
    files = [CONNECTORS / "aibrix_offloading_connector_type1.py", CONNECTORS.parent / "vllm_compat.py"]
    modules = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm.")
    }
    paths = [root.joinpath(*module.split(".")) for module in modules]
    there = all(path.with_suffix(".py").exists() or (path / "__init__.py").exists() for path in paths)
    assert there == table.VLLM_AIBRIX.holds(tuple(int(part) for part in version.split(".")))  # type: ignore[arg-type]
