"""Builds the programs that the tests run, each once, into a cache outside the checkout.

The folders beside this file are Go modules that pin a version each. In comes the name of a program; out comes the path
of its binary, or of a folder with the CRDs that the pinned module carries. An entry of the cache is named after a hash
of its module's files and the Go version, so that a change makes a new one.

`python -m tests.tools.build` builds everything and prints how long each took.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

Tool = Literal["core", "crossplane", "promql", "xrd"]

_MODULES = Path(__file__).parent
_PACKAGES: dict[Tool, str] = {
    "core": "github.com/crossplane/crossplane/v2/cmd/crossplane",
    "crossplane": "github.com/crossplane/cli/v2/cmd/crossplane",
    "promql": ".",
    "xrd": ".",
}
# No C compiler (as for Crossplane's releases), no paths of this machine, no debug information (quicker to link).
_FLAGS = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
_ENV = {"CGO_ENABLED": "0"}
# `crossplane resource validate` looks for core's CRDs under this image's name, and would pull it if they were absent.
CORE_IMAGE = "example.org/crossplane:core"
_CORE_PACKAGE = Path("example.org/crossplane@core/package.yaml")


class GoMissing(RuntimeError):
    """Go is not on PATH, so nothing can be built. Tests skip on it; where none may be skipped, that is a failure."""


def tool(name: Tool) -> Path:
    """Return the binary of that name, built if the cache does not have it."""

    def fill(folder: Path) -> None:
        _go(["build", *_FLAGS, "-o", str(folder / name), _PACKAGES[name]], _MODULES / name)

    return _cached(name, _MODULES / name, fill) / name


def core_crds() -> Path:
    """Return a folder with the CRDs of Crossplane core, one YAML file each."""
    return _crds("core", "github.com/crossplane/crossplane/v2", "cluster/crds")


def provider_crds() -> Path:
    """Return a folder with the CRDs of provider-kubernetes, one YAML file each."""
    return _crds("provider", "github.com/crossplane-contrib/provider-kubernetes", "package/crds")


def monitoring_crds() -> Path:
    """Return a folder with the CRDs of prometheus-operator, one YAML file each."""
    return _crds("prometheus", "github.com/prometheus-operator/prometheus-operator", "example/prometheus-operator-crd")


def validate_cache() -> Path:
    """Return a folder for `crossplane resource validate --cache-dir`, so that it has no need of a registry."""

    def fill(folder: Path) -> None:
        package = folder / _CORE_PACKAGE
        package.parent.mkdir(parents=True)
        package.write_text("\n---\n".join(crd.read_text() for crd in sorted(crds.glob("*.yaml"))))

    crds = core_crds()
    return _cached("core-package", _MODULES / "core", fill)


def _crds(name: str, module: str, path: str) -> Path:
    """Return a folder with a copy of the YAML files in a module's folder: Go may drop its own copy at any time."""

    def fill(folder: Path) -> None:
        # `go mod download` may write go.sum, so it works on a copy.
        with tempfile.TemporaryDirectory() as copy:
            for file in ("go.mod", "go.sum"):
                shutil.copy(_MODULES / name / file, copy)
            source = json.loads(_go(["mod", "download", "-json", module], Path(copy)))["Dir"]
        for crd in Path(source, path).glob("*.yaml"):
            (folder / crd.name).write_bytes(crd.read_bytes())

    return _cached(f"{name}-crds", _MODULES / name, fill)


def _cached(name: str, module: Path, fill: Callable[[Path], None]) -> Path:
    """Return the cache's folder for a name and the state of a module; fill is called with a new folder if it is absent.

    The folder appears by a rename, so it is whole or not there. One lock for all of them keeps two test runs from
    building the same thing, or from sharing the machine's few cores between two builds.
    """
    root = _root()
    folder = root / f"{name}-{_key(module)}"
    if folder.is_dir():
        return folder
    with _lock(root / "lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as work:
                made = Path(work, name)
                made.mkdir()
                fill(made)
                made.rename(folder)
    return folder


def _root() -> Path:
    """Return the cache's folder, made if need be: $KV_OFFLOAD_CACHE, or one in the user's own cache folder."""
    given = os.environ.get("KV_OFFLOAD_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(given) if given else Path(user, "function-kv-offload")
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


def _key(module: Path) -> str:
    """Return a hash of the module's files and of what else decides what a build makes."""
    go = _go(["env", "GOVERSION", "GOOS", "GOARCH"], module)
    digest = hashlib.sha256(f"{go}{_FLAGS}{_ENV}\n".encode())
    for file in sorted(f for f in module.iterdir() if f.is_file()):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock on a file. The system frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(args: list[str], cwd: Path) -> str:
    """Run go in a folder and return its output. Raises GoMissing, or RuntimeError with what go had to say."""
    go = shutil.which("go")
    if go is None:
        raise GoMissing("go is not on PATH")
    done = subprocess.run([go, *args], cwd=cwd, env=os.environ | _ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"go {' '.join(args)} in {cwd.name}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _main() -> int:
    """Build everything, with a line of progress for each. Returns the exit code."""
    makers: dict[str, Callable[[], Path]] = {name: functools.partial(tool, name) for name in _PACKAGES}
    makers |= {"core_crds": core_crds, "provider_crds": provider_crds, "monitoring_crds": monitoring_crds}
    makers |= {"validate_cache": validate_cache}
    for name, maker in makers.items():
        print(f"{name}: ", end="", flush=True)
        start = time.monotonic()
        try:
            path = maker()
        except GoMissing as err:
            print(err)
            return 1
        print(f"{path} ({time.monotonic() - start:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
