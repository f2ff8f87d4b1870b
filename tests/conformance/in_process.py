"""The engine's side of in-process LMCache, of the version that is first on the path, as far as it goes without a GPU.

A script for a process of its own: PYTHONHASHSEED counts only at start, and what it logs is seen as an operator sees it.
Reads its task as JSON from stdin, writes what it found as JSON to the file that is its only argument. LMCache's own
code reads configuration, URLs and tokens; vLLM is stood in for by one function.
"""

import asyncio
import json
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import torch
from lmcache.integration.vllm.utils import lmcache_get_or_create_config
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.remote_backend import RemoteBackend
from lmcache.v1.token_database import ChunkedTokenDatabase

try:
    from lmcache.usage_telemetry import InitializeUsageContext
    from lmcache.v1.memory_allocators.ad_hoc_memory_allocator import AdHocMemoryAllocator
    from lmcache.v1.metadata import LMCacheMetadata

    OLD = False
except ImportError:  # 0.3
    from lmcache.config import LMCacheEngineMetadata
    from lmcache.usage_context import InitializeUsageContext
    from lmcache.v1.memory_management import AdHocMemoryAllocator

    OLD = True

# Modelplane gives every cached model this name, so it is what tells no two of them apart.
MODEL = "/mnt/models"
TOKENS = list(range(1024))
NONE_HASH = 0xFCA86420


def stand_in_for_vllm() -> None:
    """What LMCache takes from vLLM to hash tokens: the first link of every chain, as vLLM 0.11.0 to 0.33.0 makes it.

    The same lines in all of them (v1/core/kv_cache_utils.py, where PYTHONHASHSEED is set).
    """
    utils: Any = types.ModuleType("vllm.v1.core.kv_cache_utils")

    def init_none_hash(hash_fn: Any) -> None:
        utils.NONE_HASH = hash_fn(os.environ["PYTHONHASHSEED"])

    utils.init_none_hash = init_none_hash
    core: Any = types.ModuleType("vllm.v1.core")
    core.kv_cache_utils = utils
    sys.modules |= {name: types.ModuleType(name) for name in ("vllm", "vllm.v1")}
    sys.modules |= {core.__name__: core, utils.__name__: utils}


def hash_as_python_3_12(value: Any) -> int:
    """LMCache 0.3 hashes a None, which before Python 3.12 hashes by its address; vLLM's images have 3.12."""
    return hash(tuple(NONE_HASH if item is None else item for item in value))


def metadata() -> Any:
    shape = (32, 2, 256, 8, 128)
    if OLD:
        return LMCacheEngineMetadata(MODEL, 1, 0, "vllm", torch.bfloat16, shape)
    return LMCacheMetadata(MODEL, 1, 1, 0, 0, torch.bfloat16, shape)


def remote(config: Any, loop: asyncio.AbstractEventLoop) -> RemoteBackend:
    """LMCache's client of the remote store."""
    local = types.SimpleNamespace(config=config, metadata=metadata())
    return RemoteBackend(config, metadata(), loop, local, dst_device="cpu")


def connected_as(backend: RemoteBackend) -> dict[str, Any]:
    """What LMCache understood of its URL."""
    pool = backend.connection._connector.pool
    kwargs = pool.connection_kwargs
    found = {key: kwargs.get(key) for key in ("host", "port", "username", "password")}
    return found | {"tls": "SSL" in pool.connection_class.__name__}


def keys(config: Any) -> list[Any]:
    """LMCache's keys of some tokens."""
    database = ChunkedTokenDatabase(config, metadata())
    assert database.hash_func is hash
    if sys.version_info < (3, 12):
        database.hash_func = hash_as_python_3_12
    return [key for _, _, key in database.process_tokens(TOKENS)]


def main(task: dict[str, Any]) -> dict[str, Any]:
    config = lmcache_get_or_create_config()
    values = config.to_dict()
    usage = InitializeUsageContext(config.to_original_config() if OLD else config, metadata())
    without_vllm = keys(config)
    stand_in_for_vllm()
    with_vllm = keys(config)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    found = {
        "config": {key: values[key] for key in task.get("config", ())},
        "reports_usage": usage is not None,
        "keys": [key.to_string() for key in with_vllm],
        "keys_without_vllm": [key.to_string() for key in without_vllm],
    }
    if "remote" in task:
        backend = remote(config, loop)
        found["seen"] = [backend.contains(key) for key in with_vllm]
        if task["remote"] == "store":
            memory = AdHocMemoryAllocator(device="cpu")
            for key in with_vllm:
                chunk = memory.allocate(torch.Size((2, 1, 256, 8)), torch.bfloat16, MemoryFormat.KV_2LTD)
                asyncio.run_coroutine_threadsafe(backend.connection.put(key, chunk), loop).result(10)
    urls = []
    for config.remote_url in task.get("urls", ()):
        urls.append(connected_as(remote(config, loop)))
    return found | {"urls": urls}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(json.load(sys.stdin))))
    sys.stdout.flush()
    os._exit(0)  # LMCache's threads do not end by themselves
