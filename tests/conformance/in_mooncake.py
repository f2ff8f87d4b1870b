"""An engine's client of Mooncake, configured by what the engine is given and read by the engine's own code.

A script for a process of its own. Reads its task as JSON from stdin, writes what it found as JSON to the file that is
its only argument. The task has `address` (of its pod), `args` (of its container), and, done in this order: `put` (keys)
and `get` (keys), of values of `size` bytes that follow from their keys, within `seconds`. An engine that does not start
is `refused`.
"""

import hashlib
import importlib
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

SIZE = 4096
# With several masters a client takes half a minute to close.
KEPT: list[Any] = []


class Anything(type):
    """Stands for what SGLang imports and a client does not use."""

    def __getattr__(cls, name: str) -> type:
        return cls


class Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


def package(name: str, folder: Path) -> None:
    """Make a package known by its folder alone, without what its __init__ would import."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def vllm(address: str) -> Any:
    """Set up vLLM's client as a worker of its connector does."""
    package("vllm", Path(sys.prefix) / "vllm-0.33.0" / "vllm")
    package("vllm.distributed", Path(sys.prefix) / "vllm-0.33.0" / "vllm" / "distributed")
    shared = importlib.import_module("vllm.distributed.mooncake_store")
    store = importlib.import_module("mooncake.store").MooncakeDistributedStore()
    shared.setup_mooncake_store(store, shared.MooncakeStoreConfig.load_from_config(), address)
    return store, ""


def sglang(args: list[str]) -> Any:
    """Set up SGLang's own storage backend."""
    root = Path(sys.prefix) / "sglang-0.5.23" / "sglang"
    package("sglang", root)
    for name in ("hybrid_cache.linker_pool_assembler", "pool_host", "pool_host.mla"):
        sys.modules[f"sglang.srt.mem_cache.{name}"] = Stub(name)
    sys.modules["sglang.srt.observability.metrics_collector"] = Stub("metrics_collector")
    storage = importlib.import_module("sglang.srt.mem_cache.hicache_storage")
    backend = importlib.import_module("sglang.srt.mem_cache.storage.mooncake_store.mooncake_store")
    flags = dict(arg.split("=", 1) for arg in args if arg.startswith("--hicache-") and "=" in arg)
    assert flags["--hicache-storage-backend"] == "mooncake"
    config = storage.HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="model",
        extra_config=json.loads(flags["--hicache-storage-backend-extra-config"]),
    )
    found = backend.MooncakeStore(config, None)
    return found.store, found.config_prefix


def value(key: str, size: int) -> bytes:
    """What a key holds."""
    word = hashlib.sha256(key.encode()).digest()
    return word * (size // len(word))


def main(task: dict[str, Any]) -> dict[str, Any]:
    try:
        store, prefix = vllm(task["address"]) if "MOONCAKE_CONFIG_PATH" in os.environ else sglang(task["args"])
    except RuntimeError as e:
        return {"refused": str(e)}
    KEPT.append(store)
    size, end = task.get("size", SIZE), time.monotonic() + task.get("seconds", 0)
    left = list(task.get("put", ()))
    put: list[str] = []
    while left:
        if store.put(left[0], value(left[0], size)) == 0:
            put.append(left.pop(0))
        elif time.monotonic() > end:
            break
        else:
            time.sleep(0.1)
    got: set[str] = set()
    keys = task.get("get", ())
    while keys:
        got |= {key for key in keys if key not in got and store.get(key) == value(key, size)}
        if got.issuperset(keys) or time.monotonic() > end:
            break
        time.sleep(0.5)
    return {"put": put, "got": [key for key in keys if key in got], "prefix": prefix}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(json.load(sys.stdin))))
    sys.stdout.flush()
    os._exit(0)
