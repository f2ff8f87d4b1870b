"""AIBrix's own package, as it is released: the variables that engines get, and what its connectors want of vLLM."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from function.backends.aibrix import connector
from function.backends.base import EnginePatch
from function.engines import table
from tests.unit import builders
from tests.unit.test_aibrix import OWN, PATCHED, engine, tier

PACKAGE = Path(sys.prefix) / "aibrix-0.8.0" / "aibrix_kvcache"
CONNECTORS = PACKAGE / "integration" / "vllm" / "kv_connector"
PREFIX = "AIBRIX_KV_CACHE_OL_"
# What is written, with what the package takes where nobody says.
DEFAULTS = {"L1_CACHE_ENABLED": True, "L1_CACHE_CAPACITY_GB": 10.0, "L1_CACHE_EVICTION_POLICY": "S3FIFO"}


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
    assert {name.removeprefix(PREFIX) for name in written} == DEFAULTS.keys()
    for name, value in written.items():
        monkeypatch.setenv(name, value)
    read = {name: getattr(envs(), f"{PREFIX}{name}") for name in DEFAULTS}
    assert read == {"L1_CACHE_ENABLED": True, "L1_CACHE_CAPACITY_GB": 40.0, "L1_CACHE_EVICTION_POLICY": "LRU"}


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
    assert all(f"{name}Backend.get_name()" in module.read_text() for name in ("FlashAttention", "FlashInfer"))
    assert connector.CONNECTORS["AIBrixOffloadingConnector"].attention == ("FLASH_ATTN", "FLASHINFER")


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
