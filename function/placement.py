"""Where agents run, and engines follow: the nodes with GPUs."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from function import kube
from function.api.tier import Placement


class Placed(TypedDict):
    """The part of an EnginePatch that says where an engine may run."""

    node_selector: Mapping[str, str]
    affinity: Sequence[kube.Manifest]
    tolerations: Sequence[kube.Manifest]


# Modelplane's label of a node's pool.
POOL = "modelplane.ai/pool"
# Nodes with GPUs, by the labels of NVIDIA's discovery, of GKE, and of Modelplane's pools; any one will do.
GPU_NODES: Sequence[kube.Manifest] = (
    {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}]},
    {"matchExpressions": [{"key": "cloud.google.com/gke-accelerator", "operator": "Exists"}]},
    {"matchExpressions": [{"key": POOL, "operator": "Exists"}]},
)


def node_terms(placement: Placement) -> Sequence[kube.Manifest]:
    """Give the nodeSelectorTerms of a placement; none where its own nodeSelector says it all."""
    return () if placement.node_selector else GPU_NODES


def placed(placement: Placement) -> Placed:
    """Let an engine follow its tier: only a node that has what the tier runs, or asks for, can serve one."""
    return {
        "node_selector": placement.node_selector,
        "affinity": node_terms(placement),
        "tolerations": [t.manifest() for t in placement.tolerations],
    }


def agents(placement: Placement) -> kube.Manifest:
    """Write where an agent's pod may run; a field that says nothing is empty."""
    return {
        "nodeSelector": placement.node_selector,
        "affinity": affinity(node_terms(placement)),
        "tolerations": [t.manifest() for t in placement.tolerations],
    }


def affinity(terms: Sequence[kube.Manifest]) -> kube.Manifest:
    """Write nodeSelectorTerms as a pod's affinity; empty for none."""
    if not terms:
        return {}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}
