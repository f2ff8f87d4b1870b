"""Where agents run, and engines follow: the nodes with GPUs."""

from collections.abc import Sequence

from function import kube
from function.api.tier import Placement

# Nodes with GPUs, by the labels of NVIDIA's discovery, of GKE, and of Modelplane's pools; any one will do.
GPU_NODES: Sequence[kube.Manifest] = (
    {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}]},
    {"matchExpressions": [{"key": "cloud.google.com/gke-accelerator", "operator": "Exists"}]},
    {"matchExpressions": [{"key": "modelplane.ai/pool", "operator": "Exists"}]},
)


def node_terms(placement: Placement) -> Sequence[kube.Manifest]:
    """Give the nodeSelectorTerms of a placement; none where its own nodeSelector says it all."""
    return () if placement.node_selector else GPU_NODES


def affinity(terms: Sequence[kube.Manifest]) -> kube.Manifest:
    """Write nodeSelectorTerms as a pod's affinity; empty for none."""
    if not terms:
        return {}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}
