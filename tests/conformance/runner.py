"""Runs rendered processes on this machine."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.pods import Process

CURRENT = "0.5.6"  # in this environment
OLDEST = "0.3.7"  # in a folder beside it: pip install --no-deps --target
_SCRIPT = Path(__file__).parent / "in_process.py"


@dataclass(frozen=True)
class Outcome:
    """What in_process.py found, and all that it printed."""

    found: dict[str, Any]
    log: str


def beside(version: str) -> Path:
    """Where `make conformance` puts an LMCache that is not this environment's own."""
    return Path(sys.prefix) / f"lmcache-{version}"


def in_process(version: str, engine: Process, task: Mapping[str, Any], folder: Path) -> Outcome:
    """Run an engine's side of LMCache with the environment and the files of its container."""
    engine = placed(engine, folder)
    env = {**base_env(folder), **engine.env}
    if version != CURRENT:
        assert beside(version).is_dir(), f"pip install --no-deps --target {beside(version)} lmcache=={version}"
        env["PYTHONPATH"] = str(beside(version))
    answer = folder / "answer.json"
    run = subprocess.run(
        [sys.executable, str(_SCRIPT), str(answer)],
        check=False,
        input=json.dumps(task),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    return Outcome(json.loads(answer.read_text()), run.stdout)


def placed(process: Process, folder: Path) -> Process:
    """Write a process's files below a folder, and point the process there."""
    places = {str(Path(path).parent): str(folder / Path(path).parent.name) for path in process.files}
    process = process.moved(places)
    for path, text in process.files.items():
        file = Path(places[str(Path(path).parent)]) / Path(path).name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return process


def base_env(folder: Path) -> dict[str, str]:
    """An environment with nothing of ours in it."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LMCACHE_DISABLE_BANNER": "1", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
