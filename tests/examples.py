"""Makes each example's required.yaml and observed files from renders: `python -m tests.examples` writes them."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from function.kube import Manifest
from function.render import EXAMPLES, dump, load, render
from tests.standin import observe

# A password with every character that a URL must not hold as it is.
PASSWORD = "not@a:real/pass%word#"
USERNAME = "kv"
ACCESS_KEY_ID = "KVCACHEEXAMPLEKEYID0"
ENCRYPTION_KEY = "32 bytes at least, as random as they come"
# What is drawn where chance is taken away, and the version that stands for it.
DRAWN, DRAWN_VERSION = "dHJ1bHktcmFuZG9tLWFzLWRpY2Utcm9sbC1pdC1hYWFhYQ", "0123456789abcdef"

_HEADER = "---\n# Made by `make examples`; not edited by hand.\n"


def names() -> list[str]:
    """The names of all examples with an engine of our own."""
    return sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "deployment.yaml").exists())


@contextlib.contextmanager
def drawn(password: str = DRAWN, version: str = DRAWN_VERSION) -> Iterator[None]:
    """Let the function draw this password and version, over and over."""
    fixed = SimpleNamespace(token_urlsafe=lambda _: password, token_hex=lambda _: version)
    with mock.patch("function.tier.secrets", fixed):
        yield


@drawn()
def files(folder: Path) -> dict[str, str]:
    """Make an example's files: what a control plane would hold and observe beside tier and deployment."""
    tier = load(folder / "tier.yaml")[0]
    deployment = load(folder / "deployment.yaml")[0]
    required = [_cluster(tier), *_secrets(tier)]
    documents = {
        "required.yaml": required,
        "observed-tier.yaml": observe(render(tier, [], required)),
        "observed-deployment.yaml": observe(render(deployment, [], [*required, tier])),
    }
    # Behind the first ---, since a document of comments alone is one that Crossplane's CLI cannot read.
    return {file: dump(manifests).replace("---\n", _HEADER, 1) for file, manifests in documents.items()}


def _cluster(tier: Manifest) -> Manifest:
    name = tier["spec"]["inferenceClusterRef"]["name"]
    cluster = render(
        {
            "apiVersion": "modelplane.ai/v1alpha1",
            "kind": "InferenceCluster",
            "metadata": {"name": name},
            "spec": {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": f"{name}-kubeconfig"}}}},
        }
    ).composite
    del cluster["status"]["conditions"]  # they have times on a control plane, and nobody reads them
    return cluster


def _secrets(tier: Manifest) -> list[Manifest]:
    """Write the Secrets that a tier names in its own namespace."""
    block = tier["spec"].get("lmcache", {})
    bucket = tier["spec"].get("nixl", {}).get("storage", {}).get("obj", {}).get("secretRef")
    redis = block.get("remote", {}).get("redis", {}).get("secretRef")
    key = block.get("encryption", {}).get("secretRef")
    secrets = []
    if redis:
        data = {redis.get("usernameKey", "username"): USERNAME, redis.get("passwordKey", "password"): PASSWORD}
        secrets.append((redis["name"], data))
    if key:
        secrets.append((key["name"], {key.get("key", "key"): ENCRYPTION_KEY}))
    if bucket:
        data = {
            bucket.get("accessKeyIdKey", "access-key-id"): ACCESS_KEY_ID,
            bucket.get("secretAccessKeyKey", "secret-access-key"): PASSWORD,
        }
        secrets.append((bucket["name"], data))
    return [_secret(tier, name, data) for name, data in secrets]


def _secret(tier: Manifest, name: str, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": tier["metadata"]["namespace"],
            "uid": "5f0c7d1e-0000-4000-8000-000000000001",
            "resourceVersion": "1",
        },
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


if __name__ == "__main__":
    for name in names():
        for file, text in files(EXAMPLES / name).items():
            (EXAMPLES / name / file).write_text(text)
