"""Installs the project on the control plane by the commands of docs/install.md, from packages that are built here."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.e2e import docs, image
from tests.e2e.clusters import Cluster
from tests.e2e.environment import REPOSITORY, Environment
from tests.tools import build

PAGE = "docs/install.md"
VERSION = "v0.1.0"
FUNCTION = "function-kv-offload"
PROVIDER = "provider-kubernetes"


def push_packages(world: Environment, version: str, changed: Mapping[str, str] | None = None) -> None:
    """Build and push all packages as a version, from this checkout, or from one where some files are `changed`."""
    checkout = REPOSITORY
    if changed:
        checkout = world.folder / f"checkout-{version}"
        shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(".*", "dist"))
        for path, text in changed.items():
            (checkout / path).write_text(text)
    runtime = image.build(world.folder / f"image-{version}.tar", libraries(), image.function(checkout))
    run(world, "Build and push the packages", checkout, VERSION=version, IMAGE=str(runtime))


def libraries() -> Path:
    """Where the function's requirements are installed, once for all runs."""
    return image.install_libraries(build.folder("e2e-libraries", REPOSITORY / "requirements" / "server.txt"))


def push_function(world: Environment, name: str, files: Mapping[str, str], module: str) -> str:
    """Build and push another Function's package, of some Python files, and return its reference."""
    root, reference = world.folder / "packages" / name, f"{world.registry_host}/{name}:v0.0.1"
    root.mkdir(parents=True)
    meta = {"apiVersion": "meta.pkg.crossplane.io/v1", "kind": "Function", "metadata": {"name": name}}
    (root / "crossplane.yaml").write_text(yaml.safe_dump({**meta, "spec": {"capabilities": ["composition"]}}))
    runtime = image.build(world.folder / f"image-{name}.tar", libraries(), files, module)
    push(world, root, reference, f"--embed-runtime-image-tarball={runtime}")
    return reference


def push(world: Environment, root: Path, reference: str, *flags: str) -> None:
    """Build a package from a folder, and push it."""
    package = root.with_suffix(".xpkg") if root.is_relative_to(world.folder) else world.folder / "provider.xpkg"
    build_ = f"crossplane xpkg build --package-root={root} --package-file={package} --examples-root={root}/none"
    world.shell(f"{build_} {' '.join(flags)}\ncrossplane xpkg push -f {package} {reference}")


def install(world: Environment) -> None:
    """Install the packages that every control plane has, with provider-kubernetes."""
    push_packages(world, VERSION)
    reference = f"{world.registry_host}/{PROVIDER}:v1.2.0"
    push(world, build.provider_package(), reference)
    run(world, "Runtime settings and roles")
    run(world, PROVIDER, PROVIDER=reference)
    run(world, "The Function and KVOffloadTier", VERSION=VERSION)


def install_standalone(world: Environment) -> None:
    """Install what is for control planes without Modelplane, and declare the inference clusters."""
    run(world, "Without Modelplane", VERSION=VERSION)
    for cluster in world.clusters.values():
        declare(world, cluster)


def declare(world: Environment, cluster: Cluster, name: str = "") -> None:
    """Declare an inference cluster to the control plane, under its own name or another."""
    run(world, "An inference cluster", CLUSTER=name or cluster.name, CLUSTER_KUBECONFIG=str(cluster.kubeconfig))


def run(world: Environment, heading: str, cwd: Path = REPOSITORY, **env: str) -> str:
    """Run the commands beneath a heading of docs/install.md, in a checkout."""
    return world.shell(docs.commands(PAGE, heading), cwd, REGISTRY=world.registry_host, **env)
