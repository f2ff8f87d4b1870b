"""What the stories apply: tiers and Secrets of the examples, and deployments of a few lines."""

from typing import Any

from function.render import EXAMPLES, load
from tests.e2e.environment import SYSTEM, TEAM
from tests.e2e.kube import FLEET, Manifest
from tests.render.changes import changed

MODEL = "--model=Qwen/Qwen3-8B"


def example_tier(example: str, cluster: str, name: str = "", **changes: Any) -> Manifest:
    """An example's tier, on one of the clusters here; changes are fields of its spec, with __ for a dot."""
    (tier,) = load(EXAMPLES / example / "tier.yaml")
    spec = {f"spec.{path.replace('__', '.')}": value for path, value in changes.items()}
    where = {"metadata.name": name or tier["metadata"]["name"], "spec.inferenceClusterRef.name": cluster}
    return changed(tier, {**where, **spec})


def example_deployment(example: str) -> Manifest:
    """An example's deployment, of the team here, and named after the example."""
    (made,) = load(EXAMPLES / example / "deployment.yaml")
    return changed(made, {"metadata.name": example, "metadata.namespace": TEAM})


def example_secrets(example: str) -> list[Manifest]:
    """The Secrets that an example's tier names, as its user made them."""
    secrets = [r for r in load(EXAMPLES / example / "required.yaml") if r["kind"] == "Secret"]
    for secret in secrets:
        secret["metadata"] = {"name": secret["metadata"]["name"], "namespace": secret["metadata"]["namespace"]}
    return secrets


def agents_tier(cluster: str, name: str, **changes: Any) -> Manifest:
    """An LMCache tier of agents alone."""
    tier: Manifest = {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {"inferenceClusterRef": {"name": cluster}, "backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}},
    }
    return changed(tier, {f"spec.{path.replace('__', '.')}": value for path, value in changes.items()})


def fleet(name: str, template: Manifest, **rollout: Any) -> Manifest:
    """A KVOffloadFleet of the clusters that are labelled `name: yes`."""
    selector = {"matchLabels": {name: "yes"}}
    return {
        "apiVersion": FLEET.api_version,
        "kind": FLEET.kind,
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {"clusterSelector": selector, "template": {"spec": template}, "rollout": rollout},
    }


def deployment(name: str, tier: str, namespace: str = TEAM, **changes: Any) -> Manifest:
    """A ModelDeployment of one vLLM that names a tier; changes are fields of its spec, with __ for a dot."""
    made: Manifest = {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "engine": {
                "name": "vLLM",
                "image": "vllm/vllm-openai:v0.33.0",
                "args": [MODEL],
                "kvCache": {"tierRef": {"name": tier}},
            }
        },
    }
    return changed(made, {f"spec.{path.replace('__', '.')}": value for path, value in changes.items()})
