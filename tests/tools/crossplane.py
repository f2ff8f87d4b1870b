"""Calls to Crossplane's own programs, and a function server for them to call.

In come paths and plain data, out come parsed documents: a test states what Crossplane makes of the repository's files
and need not know the programs' flags.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.tools import build

_REPOSITORY = Path(__file__).parents[2]
_RUNTIME = "render.crossplane.io/runtime"
_TARGET = "render.crossplane.io/runtime-development-target"


class CrossplaneError(RuntimeError):
    """A program ended with an error; the message is what it wrote."""


class Server(NamedTuple):
    """A function's server: where it listens, and its process."""

    address: str
    pid: int


@contextlib.contextmanager
def function_server(
    module: str = "function",
    *options: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 30,
    poll: float = 0.05,
) -> Iterator[Server]:
    """Run `python -m module` on a free port of this machine, and yield it once it answers.

    It gets the options, or serves without TLS, and `env` instead of this environment. Its log is part of the error if
    it ends early or does not answer in time, which is looked for every `poll` seconds. It is ended with the context.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", module, f"--address={address}", *(options or ["--insecure"])]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, cwd=_REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + timeout
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise CrossplaneError(f"the function does not answer:\n{log.read()}")
                time.sleep(poll)
            yield Server(address, server.pid)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def functions_file(source: Path, address: str, folder: Path) -> Path:
    """Write a copy of a file of Functions into the folder, with each Development one served at the address."""
    functions = [f for f in yaml.safe_load_all(source.read_text()) if f]
    for function in functions:
        annotations = function["metadata"].get("annotations", {})
        if annotations.get(_RUNTIME) == "Development":
            annotations[_TARGET] = f"dns:///{address}"
    copy = folder / source.name
    copy.write_text(yaml.safe_dump_all(functions))
    return copy


def composition_render(
    xr: Path,
    composition: Path,
    functions: Path,
    *,
    required: Path | None = None,
    observed: Path | None = None,
    xrd: Path | None = None,
) -> list[dict[str, Any]]:
    """Render an XR as Crossplane core would reconcile it, and return the documents: the XR, composed ones, Results.

    required and observed are each a YAML file or a folder of them. With xrd its defaults reach the function, as they
    would on a cluster; nothing is validated. Raises CrossplaneError, also when a function's result is fatal.
    """
    args = [str(xr), str(composition), str(functions), f"--crossplane-binary={build.tool('core')}"]
    args += ["--include-function-results"]
    for flag, path in (("required-resources", required), ("observed-resources", observed), ("xrd", xrd)):
        if path is not None:
            args.append(f"--{flag}={path}")
    code, out, err = _run([str(build.tool("crossplane")), "composition", "render", *args])
    if code:
        raise CrossplaneError(err or out)
    return [document for document in yaml.safe_load_all(out) if document]


def resource_validate(extensions: list[Path], resources: Path) -> tuple[int, str]:
    """Check resources against XRDs and CRDs, without a registry, and return the exit code and what was written.

    Each path is a YAML file or a folder of them. Not enforced: rules about changes (oldSelf). A resource whose kind no
    extension defines is an error; Crossplane's own kinds are known.
    """
    args = [",".join(map(str, extensions)), str(resources), "--error-on-missing-schemas"]
    args += [f"--cache-dir={build.validate_cache()}", f"--crossplane-image={build.CORE_IMAGE}"]
    code, out, err = _run([str(build.tool("crossplane")), "resource", "validate", *args])
    return code, out + err


def check_xrd(xrd: Path, cases: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return what an API server makes of an XRD or CRD and of cases, each {"name", "old": object or None, "new"}.

    The answer is that of the program in xrd: "crd", "dropped", "rules", "totals", "limits", "crdErrors" and, for each
    case, "errors", "pruned" and "defaulted".
    """
    request = json.dumps({"xrd": str(xrd), "cases": cases or []})
    code, out, err = _run([str(build.tool("xrd"))], stdin=request)
    if code:
        raise CrossplaneError(err)
    answer: dict[str, Any] = json.loads(out)
    return answer


def _answers(port: int) -> bool:
    """Say whether something accepts connections on that port of this machine."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _run(command: list[str], stdin: str | None = None) -> tuple[int, str, str]:
    """Run a program and return its exit code, stdout and stderr."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr
