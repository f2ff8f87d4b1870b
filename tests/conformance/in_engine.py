"""An engine's own argument parser, of the version that is first on the path, as far as it goes without a GPU.

A script for a process of its own, since the import takes most of its time: reads its task as JSON from stdin, writes
what the parser made of each of its `lines` as JSON to the file that is its second argument. The first says which engine
it is. A line that the engine does not start with is `refused`. Parsers, configurations and connectors are the released
ones; only what holds kernels for a GPU is stood in for.
"""

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# A model's folder, for what looks at a model before it starts: SGLang's parser does.
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
SPECIFIC = ("engine_id", "kv_buffer_device")  # by default new at each start, and of the platform


class Kernels(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for SGLang's compiled kernels, which load only where CUDA is: modules of functions that do nothing."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        # Without scalar_type SGLang has a stand-in of its own.
        ours = name.split(".", 1)[0] == "sgl_kernel" and name != "sgl_kernel.scalar_type"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module: Any = types.ModuleType(spec.name)

        def missing(name: str) -> Callable[..., None]:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

        module.__getattr__ = missing
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it as it is."""


@contextlib.contextmanager
def errors() -> Iterator[io.StringIO]:
    """Catch what a parser says before it exits."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        yield said


def take(module: str, name: str) -> Any:
    """Import a name."""
    return getattr(importlib.import_module(module), name)


def parsed(parse: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Tell what came of a line."""
    with errors() as said:
        try:
            return parse()
        except SystemExit:
            return {"refused": said.getvalue()}
        except Exception as error:  # noqa: BLE001 (whatever keeps the engine from starting)
            return {"refused": f"{type(error).__name__}: {error}"}


def changed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Show the arguments that are not at their defaults."""
    return {name: str(value) for name, value in vars(args).items() if value != parser.get_default(name)}


def vllm(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Read lines as the OpenAI API server does, those that begin with `serve` as `vllm serve` does."""
    platforms: Any = importlib.import_module("vllm.platforms")
    platforms.current_platform = take("vllm.platforms.cpu", "CpuPlatform")()
    factory = take("vllm.distributed.kv_transfer.kv_connector.factory", "KVConnectorFactory")
    engine_args = take("vllm.engine.arg_utils", "AsyncEngineArgs")
    cli = importlib.import_module("vllm.entrypoints.cli.serve")
    server = cli.make_arg_parser(cli.FlexibleArgumentParser())
    commands = cli.FlexibleArgumentParser()
    serve = cli.ServeSubcommand().subparser_init(commands.add_subparsers(required=False, dest="subparser"))

    def connector(config: Any) -> str | None:
        try:
            found = factory.get_connector_class(config)
        except ValueError:  # not registered
            return None
        return f"{found.__module__}.{found.__qualname__}"

    def children(config: Any) -> list[str | None]:
        """Find the connectors of a MultiConnector as that does."""
        extra = config.kv_connector_extra_config if config.kv_connector == "MultiConnector" else {}
        return [connector(type(config)(**c, engine_id=config.engine_id)) for c in extra.get("connectors", [])]

    def read(line: Sequence[str]) -> dict[str, Any]:
        by_cli = line[:1] == ["serve"]
        args = (commands if by_cli else server).parse_args(list(line))
        cli.validate_parsed_serve_args(args)
        config = engine_args.from_cli_args(args).kv_transfer_config
        found: dict[str, Any] = {"args": changed(serve if by_cli else server, args), "config": None}
        if config is not None:
            defaults = vars(type(config)())
            found["config"] = {
                name: value
                for name, value in vars(config).items()
                if value != defaults.get(name) and name not in SPECIFIC and not name.startswith("__")
            }
            if config.kv_connector:
                found["connector"] = connector(config)
                found["children"] = children(config)
        return found

    return [parsed(lambda line=line: read(line)) for line in task["lines"]]


def sglang(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Read lines as SGLang's server does, for a GPU and a model that is there."""
    sys.meta_path.append(Kernels())
    server_args: Any = importlib.import_module("sglang.srt.server_args")
    try:
        controller = take("sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller", "HybridCacheController")
        extra = controller.parse_storage_backend_extra_config
    except ModuleNotFoundError:  # 0.5.5, where it is a method that uses nothing of its object
        extra = partial(
            take("sglang.srt.mem_cache.hiradix_cache", "HiRadixCache")._parse_storage_backend_extra_config, None
        )
    parser = argparse.ArgumentParser()
    server_args.ServerArgs.add_cli_args(parser)
    model = Path("model").absolute()
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))

    def read(line: Sequence[str]) -> dict[str, Any]:
        understood = changed(parser, parser.parse_args(list(line)))
        args = server_args.prepare_server_args([*line, f"--model-path={model}", "--device=cuda"])
        hicache = {name: getattr(args, name) for name in dir(args) if name.startswith("hicache_")}
        return {"args": understood, "hicache": hicache, "extra": extra(args.hicache_storage_backend_extra_config)}

    return [parsed(lambda line=line: read(line)) for line in task["lines"]]


if __name__ == "__main__":
    answer = {"vllm": vllm, "sglang": sglang}[sys.argv[1]](json.load(sys.stdin))
    Path(sys.argv[2]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # what was imported may have threads of its own
