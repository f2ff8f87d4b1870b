"""The KVCache resource: a distributed cache that AIBrix's controller runs.

What the controller makes of it was read in AIBrix v0.7.0 and later (pkg/controller/kvcache); docs/aibrix.md has its
defects. It writes no status, so what it makes is looked at.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from function import kube, workloads
from function.api.tier import Servers
from function.backends.aibrix import metadata
from function.backends.base import Part, Tier

API_VERSION = "orchestration.aibrix.ai/v1alpha1"
KIND = "KVCache"
MAKER = "AIBrix's controller"
PART = "kvcache"

# The controller and its watcher know no other of InfiniStore's.
SERVICE_PORT = 12345

# It makes a Service of the name and `-headless-service`, and a ServiceAccount of the name itself.
_LONGEST = 46
_BACKEND = "kvcache.orchestration.aibrix.ai/backend"


def name(tier: Tier) -> str:
    """Name the KVCache, and so the workload that runs its servers."""
    return kube.child_name("kvcache", tier.namespace, tier.name, longest=_LONGEST)


def headless(tier: Tier) -> str:
    """Give the host:port of the Service that names those of its servers that are ready."""
    return f"{name(tier)}-headless-service.{tier.spec.target_namespace}.svc:{SERVICE_PORT}"


def servers(tier: Tier) -> Mapping[str, str]:
    """Give the labels of its servers' pods."""
    return {metadata.LABEL_NAME: name(tier), metadata.LABEL_ROLE: "cache"}


def watcher(tier: Tier) -> Mapping[str, str]:
    """Give the labels of its watcher's pod."""
    return {metadata.LABEL_NAME: name(tier), metadata.LABEL_ROLE: metadata.WATCHER}


def part(
    tier: Tier,
    backend: str,
    spec: Servers,
    cache: kube.Manifest,
    *,
    ports: Mapping[str, int],
    annotations: Mapping[str, str] = MappingProxyType({}),
    **more: kube.Manifest,
) -> Part:
    """Plan the KVCache.

    Args:
        tier: The tier.
        backend: AIBrix's name of it, which the annotation alone decides.
        spec: How many servers.
        cache: What runs them, as its spec.cache has it.
        ports: Ports of their Service, by name.
        annotations: Further ones.
        **more: Further fields of its spec.
    """
    service = [{"name": n, "port": p, "targetPort": p, "protocol": "TCP"} for n, p in ports.items()]
    metadata_ = {
        "name": name(tier),
        "namespace": tier.spec.target_namespace,
        "labels": tier.labels,
        "annotations": {_BACKEND: backend, **annotations},
    }
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata_,
        "spec": {
            "mode": "distributed",
            "cache": {"replicas": spec.replicas, "imagePullPolicy": "IfNotPresent", **cache},
            "service": {"type": "ClusterIP", "ports": service},
            **more,
        },
    }
    return Part(PART, manifest)


def observed(
    tier: Tier, kind: str, component: str, ready: str, *, replicas: int, template: kube.Manifest | None = None
) -> Part:
    """Look at the workload that the controller makes of it, and whether it runs the `template`, where that is ours.

    Of what changes the controller applies images and numbers alone.
    """
    found = {"name": name(tier), "namespace": tier.spec.target_namespace}
    manifest = {"apiVersion": "apps/v1", "kind": kind, "metadata": found}
    # A controller that is away lets it say what it was told before.
    ready = f"{ready} && object.spec.replicas == {replicas}"
    version = template["metadata"]["annotations"][kube.ANNOTATION_CONFIG] if template else ""
    return Part(component, manifest, ready=ready, maker=MAKER, version=version)


def network_policy(tier: Tier, component: str, labels: Mapping[str, str], rules: Sequence[kube.Manifest]) -> Part:
    """Plan who may reach the pods that the controller makes: ingress `rules`, and nobody else."""
    planned = workloads.network_policy(tier, component, rules, component)
    planned.manifest["spec"]["podSelector"] = {"matchLabels": dict(labels)}
    return planned
