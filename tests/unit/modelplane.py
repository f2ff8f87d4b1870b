"""What Modelplane's compose-model-replica desires for a ModelReplica, in its shapes and in words of our own.

Read in modelplaneai/modelplane 90ba117: an Object per engine with a Deployment, or a LeaderWorkerSet for a gang, and
one with a ResourceClaimTemplate per member; nothing is set that a name could be derived from but the manifest's own.
"""

from typing import Any

from function.kube import Manifest

CLUSTER = "cluster-kubeconfig-1a2b3"
NAMESPACE = "ml-team"
REPLICA = "llama-70b-eu-0-4f1c2"
TIER = {"kv-offload.modelplane.ai/tier": "shared"}
AVAILABLE = 'has(object.status.conditions) && object.status.conditions.exists(c, c.type == "Available")'


def wrap(manifest: Manifest, query: str = "", provider_config: str = CLUSTER) -> Manifest:
    """Wrap a manifest as compose-model-replica does: without metadata."""
    readiness = {"policy": "DeriveFromCelQuery", "celQuery": query} if query else {"policy": "SuccessfulCreate"}
    spec = {
        "providerConfigRef": {"kind": "ClusterProviderConfig", "name": provider_config},
        "readiness": readiness,
        "forProvider": {"manifest": manifest},
    }
    return {"apiVersion": "kubernetes.m.crossplane.io/v1alpha1", "kind": "Object", "spec": spec}


def replica(*engines: str, mode: str | None = None) -> Manifest:
    """Write a ModelReplica that runs these engines."""
    serving = {"serving": {"mode": mode}} if mode else {}
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "ModelReplica",
        "metadata": {"name": REPLICA, "namespace": NAMESPACE, "labels": {"modelplane.ai/deployment": "llama-70b"}},
        "spec": {"clusterName": "eu-h100", "engines": [{"name": name} for name in engines or ("main",)], **serving},
    }


def pod(
    *args: str,
    annotations: Manifest | None = TIER,
    leader: bool = True,
    command: list[str] | None = None,
    **engine: Any,
) -> Manifest:
    """Write one member's pod template."""
    container: Manifest = {
        "name": "engine",
        "image": "vllm/vllm-openai:v0.33.0",
        "args": list(args),
        "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],
        "resources": {"claims": [{"name": "devices"}]},
        **engine,
    }
    if command:
        container["command"] = command
    if leader:
        container["ports"] = [{"containerPort": 8000}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": 8000}, "initialDelaySeconds": 30}
    metadata = {"labels": {"modelplane.ai/serving": REPLICA, "modelplane.ai/workload": "main"}} if leader else {}
    return {
        "metadata": {**metadata, **({"annotations": dict(annotations)} if annotations else {})},
        "spec": {
            "containers": [container],
            "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}],
            "nodeSelector": {"modelplane.ai/pool": "h100"},
            "resourceClaims": [{"name": "devices", "resourceClaimTemplateName": "main-devices"}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    }


def standalone(template: Manifest, copies: int = 1) -> Manifest:
    """Write a Standalone engine's Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "main", "namespace": "default"},
        "spec": {
            "replicas": copies,
            "selector": {"matchLabels": {"modelplane.ai/workload": "main"}},
            "template": template,
        },
    }


def gang(leader: Manifest, worker: Manifest, size: int = 2) -> Manifest:
    """Write a Leader and Worker engine's LeaderWorkerSet."""
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "main", "namespace": "default"},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {"size": size, "leaderTemplate": leader, "workerTemplate": worker},
        },
    }


def claim(*requests: Manifest, name: str = "main-devices") -> Manifest:
    """Write a member's ResourceClaimTemplate."""
    found = list(requests) or [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 8}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"spec": {"devices": {"requests": found}}},
    }


def desired(workload: Manifest, engine: str = "main") -> dict[str, Manifest]:
    """Write everything that is desired for one engine and its routing, by key."""
    return {
        f"model-serving-{engine}": wrap(workload, AVAILABLE),
        f"resource-claim-{engine}-standalone": wrap(claim()),
        "epp-config": wrap(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "epp", "namespace": "default"},
                "data": {"epp-config.yaml": "kind: EndpointPickerConfig\n"},
            }
        ),
    }
