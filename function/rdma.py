"""RDMA: how agents and engines are given NICs, by claim or by a device plugin's resource."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from function import claims, kube
from function.api.tier import HOST_PORTS
from function.backends.base import Notice, Part, Refusal, Site, Tier
from function.engines import Engine, pod
from function.placement import POOL

# Of an engine's claim, which may hold requests of others.
_REQUEST = "kv-nic"


@dataclass(frozen=True)
class Nics:
    """What a pod needs to use its NICs: extended resources by name, or DRA requests, and the container's capabilities.

    `align`: each of the pod's GPUs should have its NICs on its own PCIe root. An agent's `claims` are its pod's.
    """

    resources: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[kube.Manifest] = ()
    align: bool = False
    claims: Sequence[kube.Manifest] = ()
    capabilities: Sequence[str] = ()
    host_network: bool = False


def for_agents(tier: Tier) -> Nics:
    """Give an agent's NICs; none where the tier has no rdma block."""
    nics = _nics(tier, tier.spec.rdma.agents.count if tier.spec.rdma else 0)
    named = ({"name": claims.NAME, "resourceClaimTemplateName": tier.named(p.name)} for p in parts(tier))
    return replace(nics, claims=tuple(named))


def for_engine(tier: Tier) -> Nics:
    """Give an engine's NICs; none where the tier has no rdma block."""
    rdma = tier.spec.rdma
    nics = _nics(tier, rdma.engines.count if rdma else 0)
    if rdma is None or rdma.dra is None or not rdma.engines.count:
        return nics
    return replace(nics, devices=[_request(tier, _REQUEST, rdma.engines.count)], align=rdma.dra.align_with_gpu)


def refusal(tier: Tier, site: Site, engine: Engine) -> Refusal | None:
    """Say why no engine's pod could have its NICs beside its node's agent; None where it could."""
    return port_taken(tier, engine) or too_few(tier, site, engine)


def port_taken(tier: Tier, engine: Engine) -> Refusal | None:
    """Say that an engine on the host network would listen where the agent of its node does."""
    rdma = tier.spec.rdma
    if rdma is None or rdma.host_network is None or not rdma.agents.count:
        return None
    first, port = rdma.host_network.first_port, pod.port(engine.kind, engine.line)
    if port not in range(first, first + HOST_PORTS):
        return None
    return Refusal(
        "PortTaken",
        f"the engine serves on port {port}, and its node's agent listens from {first} to {first + HOST_PORTS - 1}; set "
        "another --port, or a tier with another rdma.hostNetwork.firstPort",
    )


def too_few(tier: Tier, site: Site, engine: Engine) -> Refusal | None:
    """Say that agent and engine together ask for more NICs than their node has."""
    pool = engine.pool or tier.spec.placement.node_selector.get(POOL, "")
    has, needs = _has(tier, site, pool), _needs(tier, beside=True)
    own = engine.devices.get(_class(tier), 0)
    if has is None or needs + own <= has:
        return None
    return Refusal(
        "InsufficientNICs",
        f"{_sum(tier)}{f' and the {own} that the engine claims itself' if own else ''} are more than the {has} of "
        f"DeviceClass {_class(tier)} that a node{f' of pool {pool}' if pool in site.pools else ''} has; lower them, "
        f"which are of KVOffloadTier {tier.ref}{', or claim fewer' if own else ''}",
    )


def notices(tier: Tier, site: Site) -> list[Notice]:
    """Say that no engine can be attached, or no agent run, since no node has as many NICs."""
    has = _has(tier, site, tier.spec.placement.node_selector.get(POOL, ""))
    if has is None or _needs(tier) <= has:
        return []
    message = (
        f"{_sum(tier)} are more than the {has} of DeviceClass {_class(tier)} that a node has by InferenceCluster "
        f"{tier.spec.inference_cluster_ref.name}; lower them"
    )
    return [Notice("InsufficientNICs", "MoreThanANodeHas", message)]


def parts(tier: Tier) -> list[Part]:
    """Plan the ResourceClaimTemplate that agents claim their NICs by; engines bring their own."""
    rdma = tier.spec.rdma
    if rdma is None or rdma.dra is None or not rdma.agents.count:
        return []
    spec = {"spec": {"devices": {"requests": [_request(tier, "nic", rdma.agents.count)]}}}
    # A template is immutable, so another one has another name, and its part too.
    name = f"nics-{kube.digest(spec)[:5]}"
    manifest = {
        "apiVersion": claims.API_VERSION,
        "kind": claims.KIND,
        "metadata": tier.metadata(name=name),
        "spec": spec,
    }
    return [Part(name, manifest)]


def _nics(tier: Tier, count: int) -> Nics:
    rdma = tier.spec.rdma
    if rdma is None or not count:
        return Nics()
    resources = {rdma.extended_resource.name: str(count)} if rdma.extended_resource else {}
    # Registering memory pins it, which needs IPC_LOCK beyond a few MiB.
    return Nics(resources, capabilities=("IPC_LOCK",), host_network=rdma.host_network is not None)


def _request(tier: Tier, name: str, count: int) -> kube.Manifest:
    assert tier.spec.rdma and tier.spec.rdma.dra
    dra = tier.spec.rdma.dra
    exactly = kube.prune(
        {
            "deviceClassName": dra.device_class_name,
            "count": count,
            "selectors": [{"cel": {"expression": s.cel}} for s in dra.selectors],
        }
    )
    return {"name": name, "exactly": exactly}


# --- how many there are -------------------------------------------------------------------------------------------


def _class(tier: Tier) -> str:
    rdma = tier.spec.rdma
    return rdma.dra.device_class_name if rdma and rdma.dra else ""


def _apart(tier: Tier) -> bool:
    """Whether what agents are to other tiers are servers that need not share a node with engines."""
    return tier.spec.aibrix is not None


def _needs(tier: Tier, *, beside: bool = False) -> int:
    """How many NICs a node has to have for agent and engine, or `beside` the engine's own, for its pod to run there."""
    rdma = tier.spec.rdma
    if rdma is None:
        return 0
    if beside and _apart(tier):
        return rdma.engines.count
    counts = (rdma.agents.count, rdma.engines.count)
    return max(counts) if _apart(tier) else sum(counts)


def _sum(tier: Tier) -> str:
    assert tier.spec.rdma
    either = "or" if _apart(tier) else "and"
    rdma = tier.spec.rdma
    return f"rdma.agents.count (is {rdma.agents.count}) {either} engines.count (is {rdma.engines.count})"


def _has(tier: Tier, site: Site, pool: str) -> int | None:
    """How many NICs of the tier's class a node of a pool has, else one of the pool with the most; None if unknown."""
    pools = [site.pools[pool]] if pool in site.pools else site.pools.values()
    return max((devices[_class(tier)] for devices in pools if _class(tier) in devices), default=None)
