"""Builds the programs that the tests run, each once, into a cache outside the checkout.

The folders beside this file are Go modules that pin a version each. In comes the name of a program; out comes the path
of its binary, or of a folder with the CRDs that the pinned module carries. An entry of the cache is named after a hash
of its module's files and the Go version, so that a change makes a new one.

`python -m tests.tools.build` builds what `make test` needs and prints how long each took; with `e2e`, the rest too.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Tool = Literal[
    "aibrix",
    "core",
    "crossplane",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kvcache-watcher",
    "kwok",
    "promql",
    "provider",
    "registry",
    "xrd",
]


@dataclass(frozen=True)
class _Program:
    """A Go package of one of the modules. `stamp` sets the variables that hold its version, as its own releases do."""

    module: str
    package: str = "."
    stamp: str = ""


_MODULES = Path(__file__).parent
_VERSION = "k8s.io/component-base/version.git"
_KUBERNETES_STAMP = f"-X {_VERSION}Version=v1.36.2 -X {_VERSION}Major=1 -X {_VERSION}Minor=36"
# One module for each: they pin different k8s.io libraries.
_PROGRAMS: dict[Tool, _Program] = {
    "promql": _Program("promql"),
    "xrd": _Program("xrd"),
    "core": _Program(
        "core",
        "github.com/crossplane/crossplane/v2/cmd/crossplane",
        "-X github.com/crossplane/crossplane-runtime/v2/pkg/version.version=v2.3.4",
    ),
    "crossplane": _Program("crossplane", "github.com/crossplane/cli/v2/cmd/crossplane"),
    "registry": _Program("core", "github.com/google/go-containerregistry/cmd/registry"),
    "provider": _Program("provider", "github.com/crossplane-contrib/provider-kubernetes/cmd/provider"),
    "kwok": _Program("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "aibrix": _Program("aibrix"),
    "kvcache-watcher": _Program("aibrix", "github.com/vllm-project/aibrix/cmd/kvcache-watcher"),
    "etcd": _Program("kubernetes", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": _Program("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", _KUBERNETES_STAMP),
    "kube-controller-manager": _Program(
        "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", _KUBERNETES_STAMP
    ),
    "kube-scheduler": _Program("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", _KUBERNETES_STAMP),
    "kubectl": _Program("kubernetes", "k8s.io/kubernetes/cmd/kubectl", _KUBERNETES_STAMP),
}
_IN_TEST: tuple[Tool, ...] = ("core", "crossplane", "promql", "xrd")
# No C compiler (as for Crossplane's releases), no paths of this machine.
_FLAGS = ["-mod=readonly", "-trimpath", "-buildvcs=false"]
_ENV = {"CGO_ENABLED": "0"}
# `crossplane resource validate` looks for core's CRDs under this image's name, and would pull it if they were absent.
CORE_IMAGE = "example.org/crossplane:core"
_CORE_PACKAGE = Path("example.org/crossplane@core/package.yaml")


class GoMissing(RuntimeError):
    """Go is not on PATH, so nothing can be built. Tests skip on it; where none may be skipped, that is a failure."""


def tool(name: Tool) -> Path:
    """Return the binary of that name, built if the cache does not have it."""

    program = _PROGRAMS[name]
    module = _MODULES / program.module

    def fill(folder: Path) -> None:
        # -s -w: no debug information, which is quicker to link.
        flags = [*_FLAGS, f"-ldflags=-s -w {program.stamp}"]
        _go(["build", *flags, "-o", str(folder / name), program.package], module)

    return _cached(name, module, fill, str(program)) / name


def core_crds() -> Path:
    """Return a folder with the CRDs of Crossplane core, one YAML file each."""
    return _copied("core-crds", "core", "github.com/crossplane/crossplane/v2", "cluster/crds")


def core_webhooks() -> Path:
    """Return a folder with the webhook configurations of Crossplane core."""
    return _copied("core-webhooks", "core", "github.com/crossplane/crossplane/v2", "cluster/webhookconfigurations")


def provider_package() -> Path:
    """Return a folder with what provider-kubernetes' package is built from: crossplane.yaml, and its CRDs in crds/."""
    return _copied("provider-package", "provider", "github.com/crossplane-contrib/provider-kubernetes", "package")


def monitoring_crds() -> Path:
    """Return a folder with the CRDs of prometheus-operator, one YAML file each."""
    repository = "github.com/prometheus-operator/prometheus-operator"
    return _copied("prometheus-crds", "prometheus", repository, "example/prometheus-operator-crd")


def aibrix_crds() -> Path:
    """Return a folder with the CRDs of AIBrix's orchestration API, one YAML file each, and a kustomization.yaml."""
    return _copied("aibrix-crds", "aibrix", "github.com/vllm-project/aibrix", "config/crd/orchestration")


def validate_cache() -> Path:
    """Return a folder for `crossplane resource validate --cache-dir`, so that it has no need of a registry."""

    def fill(folder: Path) -> None:
        package = folder / _CORE_PACKAGE
        package.parent.mkdir(parents=True)
        package.write_text("\n---\n".join(crd.read_text() for crd in sorted(crds.glob("*.yaml"))))

    crds = core_crds()
    return _cached("core-package", _MODULES / "core", fill)


def _copied(name: str, module: str, repository: str, path: str) -> Path:
    """Return a folder with a copy of the YAML files beneath a pinned repository's: Go may drop its own at any time."""

    def fill(folder: Path) -> None:
        # `go mod download` may write go.sum, so it works on a copy.
        with tempfile.TemporaryDirectory() as copy:
            for file in ("go.mod", "go.sum"):
                shutil.copy(_MODULES / module / file, copy)
            source = Path(json.loads(_go(["mod", "download", "-json", repository], Path(copy)))["Dir"], path)
        for crd in source.rglob("*.yaml"):
            target = folder / crd.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(crd.read_bytes())

    return _cached(name, _MODULES / module, fill)


def folder(name: str, *sources: Path) -> Path:
    """Return a folder of the cache for what is made of some files and the Python that runs, for the caller to fill."""
    digest = hashlib.sha256(f"{sys.version}{[source.read_text() for source in sources]}".encode()).hexdigest()[:16]
    made = _root() / f"{name}-{digest}"
    made.mkdir(exist_ok=True)
    return made


def _cached(name: str, module: Path, fill: Callable[[Path], None], how: str = "") -> Path:
    """Return the cache's folder for a name and the state of a module; fill is called with a new folder if it is absent.

    `how` is what else decides what is in it.

    The folder appears by a rename, so it is whole or not there. One lock for all of them keeps two test runs from
    building the same thing, or from sharing the machine's few cores between two builds.
    """
    root = _root()
    folder = root / f"{name}-{_key(module, how)}"
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


def _key(module: Path, how: str) -> str:
    """Return a hash of the module's files and of what else decides what a build makes."""
    go = _go(["env", "GOVERSION", "GOOS", "GOARCH"], module)
    digest = hashlib.sha256(f"{go}{_FLAGS}{_ENV}{how}\n".encode())
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


def _main(what: Sequence[str]) -> int:
    """Build what the tests need, or what is named, with a line of progress for each. Returns the exit code."""
    makers: dict[str, Callable[[], Path]] = {name: functools.partial(tool, name) for name in _IN_TEST}
    for copied in (core_crds, provider_package, monitoring_crds, aibrix_crds, validate_cache):
        makers[copied.__name__] = copied
    if "e2e" in what:
        makers |= {name: functools.partial(tool, name) for name in _PROGRAMS} | {"core_webhooks": core_webhooks}
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
    sys.exit(_main(sys.argv[1:]))
