"""The Function's runtime image without a Docker daemon: the layer of ours, and what the Dockerfile says to start.

The layer of its base, Python itself, is not in it: no registry of images is asked for anything. What runs here of an
installed package is its layer, by the Python that runs the tests.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = "packages"
_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def dockerfile() -> dict[str, Any]:
    """Return what the Dockerfile's last stage says of starting the image: Entrypoint, Env, User."""
    lines = (_REPOSITORY / "Dockerfile").read_text().splitlines()
    said = dict(line.split(" ", 1) for line in lines if line.startswith(("ENTRYPOINT", "ENV", "USER")))
    return {"Entrypoint": json.loads(said["ENTRYPOINT"]), "Env": said["ENV"].split(), "User": said["USER"]}


def function(checkout: Path = _REPOSITORY) -> dict[str, str]:
    """Return the files of function/, by path in the image."""
    return {str(p.relative_to(checkout)): p.read_text() for p in sorted((checkout / "function").rglob("*.py"))}


def build(target: Path, libraries: Path, files: Mapping[str, str], module: str = "function") -> Path:
    """Write an image as `docker save` would, and return its path.

    libraries: what the function needs, by install_libraries. files: Python files by path. module: which one it starts.
    """
    config = dockerfile()
    config["Entrypoint"][-1] = module
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(libraries, _PACKAGES, filter=_plain)
        for name, text in files.items():
            _write(tar, f"{_PACKAGES}/{name}", text.encode())
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [f"{target.stem}:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as tar:
        _write(tar, "config.json", json.dumps(image).encode())
        _write(tar, "layer.tar", layer.getvalue())
        _write(tar, "manifest.json", json.dumps(manifest).encode())
    return target


def install_libraries(target: Path) -> Path:
    """Install what the Dockerfile installs into a folder, once, and return it."""
    done = target / ".done"
    if not done.exists():
        requirements = _REPOSITORY / "requirements" / "server.txt"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
        pip += ["--require-hashes", "--only-binary=:all:", f"--target={target}", f"--requirement={requirements}"]
        subprocess.run(pip, check=True)
        done.touch()
    return target


def pull(reference: str, target: Path) -> dict[str, Any]:
    """Fetch an image from a registry on loopback, unpack its layers into a folder, and return its config."""
    host, _, rest = reference.partition("/")
    repository, separator, version = rest.rpartition("@") if "@" in rest else rest.rpartition(":")
    assert separator, f"{reference} has neither tag nor digest"
    base = f"http://{host}/v2/{repository.partition(':')[0] if '@' in rest else repository}"
    manifest = json.loads(_fetch(f"{base}/manifests/{version}"))
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(_fetch(f"{base}/blobs/{layer['digest']}"))) as tar:
            tar.extractall(target, filter="data")
    config: dict[str, Any] = json.loads(_fetch(f"{base}/blobs/{manifest['config']['digest']}"))["config"]
    return config


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": _TYPES}), timeout=30) as answer:
        content: bytes = answer.read()
    return content


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The same bytes whoever builds it, and whenever."""
    if "__pycache__" in entry.name or entry.name.endswith((".done", "/bin")):
        return None
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _write(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(content))
