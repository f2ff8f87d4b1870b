"""RDMA: how agents and engines are given NICs, by claim or by a device plugin's resource."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from function import kube
from function.api.tier import HOST_PORTS
from function.backends.base import Part, Refusal, Tier
from function.engines import Engine, pod

CLAIM = "kv-nics"


@dataclass(frozen=True)
class Nics:
    """What a pod needs to use its NICs: extended resources by name, claims, and capabilities of the container."""

    resources: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[kube.Manifest] = ()
    capabilities: Sequence[str] = ()
    host_network: bool = False


def for_agents(tier: Tier) -> Nics:
    """Give an agent's NICs; none where the tier has no rdma block."""
    return _nics(tier, tier.spec.rdma.agents.count if tier.spec.rdma else 0)


def for_engine(tier: Tier) -> Nics:
    """Give an engine's NICs; none where the tier has no rdma block."""
    return _nics(tier, tier.spec.rdma.engines.count if tier.spec.rdma else 0)


def port_taken(tier: Tier, engine: Engine) -> Refusal | None:
    """Say that an engine on the host network would listen where the agent of its node does."""
    rdma = tier.spec.rdma
    if rdma is None or rdma.host_network is None:
        return None
    first, port = rdma.host_network.first_port, pod.port(engine.kind, engine.line)
    if port not in range(first, first + HOST_PORTS):
        return None
    return Refusal(
        "PortTaken",
        f"the engine serves on port {port}, and its node's agent listens from {first} to {first + HOST_PORTS - 1}; set "
        "another --port, or a tier with another rdma.hostNetwork.firstPort",
    )


def parts(tier: Tier) -> list[Part]:
    """Plan the ResourceClaimTemplates that agents and engines claim their NICs by."""
    rdma = tier.spec.rdma
    if rdma is None or rdma.dra is None:
        return []
    # A template is immutable, so another one has another name, and its part too.
    return [
        Part(
            _name(tier, count),
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaimTemplate",
                "metadata": tier.metadata(name=_name(tier, count)),
                "spec": _claim(tier, count),
            },
        )
        for count in sorted({rdma.agents.count, rdma.engines.count} - {0})
    ]


def _nics(tier: Tier, count: int) -> Nics:
    rdma = tier.spec.rdma
    if rdma is None or not count:
        return Nics()
    # Registering memory pins it, which needs IPC_LOCK beyond a few MiB.
    capabilities, host_network = ("IPC_LOCK",), rdma.host_network is not None
    if rdma.extended_resource:
        return Nics({rdma.extended_resource.name: str(count)}, (), capabilities, host_network)
    claim = {"name": CLAIM, "resourceClaimTemplateName": tier.named(_name(tier, count))}
    return Nics({}, (claim,), capabilities, host_network)


def _name(tier: Tier, count: int) -> str:
    return f"nics-{kube.digest(_claim(tier, count))[:5]}"


def _claim(tier: Tier, count: int) -> kube.Manifest:
    assert tier.spec.rdma and tier.spec.rdma.dra
    dra = tier.spec.rdma.dra
    request = kube.prune(
        {
            "deviceClassName": dra.device_class_name,
            "count": count,
            "selectors": [{"cel": {"expression": s.cel}} for s in dra.selectors],
        }
    )
    return {"spec": {"devices": {"requests": [{"name": "nic", "exactly": request}]}}}
