"""Makes each example's required.yaml and observed files from renders: `python -m tests.examples` writes them."""

import base64
from pathlib import Path

from function.kube import Manifest
from function.render import EXAMPLES, dump, load, render
from tests.standin import observe

# A password with every character that a URL must not hold as it is.
PASSWORD = "not@a:real/pass%word#"
USERNAME = "kv"

_HEADER = "---\n# Made by `make examples`; not edited by hand.\n"


def names() -> list[str]:
    """All examples' names."""
    return sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())


def files(folder: Path) -> dict[str, str]:
    """Make an example's files: what a control plane would hold and observe beside tier and deployment."""
    tier = load(folder / "tier.yaml")[0]
    deployment = load(folder / "deployment.yaml")[0]
    required = [_cluster(tier), _secret(tier)]
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


def _secret(tier: Manifest) -> Manifest:
    ref = tier["spec"]["lmcache"]["remote"]["redis"]["secretRef"]
    data = {ref.get("usernameKey", "username"): USERNAME, ref.get("passwordKey", "password"): PASSWORD}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": ref["name"],
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
