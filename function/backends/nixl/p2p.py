"""KV moved from engines that prefill to engines that decode, without a store: vLLM's NixlConnector."""

from function import kube, placement, rdma, workloads
from function.backends import compatibility
from function.backends.base import EnginePatch, Notice, Part, Refusal, Site, Tier, given, too_old
from function.backends.nixl import storage
from function.engines import Engine, pod, table
from function.engines import vllm as vllm_line

CONNECTOR = "NixlConnector"
_ROLES = {"Prefill": "kv_producer", "Decode": "kv_consumer"}
# For how long a prefill engine keeps KV that nobody has fetched, unless the decode engine says that it is still there.
_LEASE_SECONDS = 30


def parts(tier: Tier) -> list[Part]:
    """Plan the NetworkPolicy: engines may reach all ports of each other, since NIXL chooses its own; others the API."""
    rules = [
        workloads.from_pods([workloads.engines(tier)], []),
        {"ports": [{"port": pod.PORT_NAME, "protocol": "TCP"}]},
    ]
    spec = {
        "podSelector": {"matchLabels": dict(workloads.engines(tier))},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": tier.metadata(name="engines"),
        "spec": spec,
    }
    return [Part("engines-network-policy", manifest)]


def notices(tier: Tier, site: Site) -> list[Notice]:
    """Say what a platform engineer should know."""
    found = rdma.notices(tier, site)
    if tier.spec.rdma is None or tier.spec.rdma.host_network is None:
        return found
    return [
        *found,
        Notice(
            "HostNetworkUnprotected",
            "NoPolicyBindsIt",
            "engines use their node's network, where no NetworkPolicy applies: whoever reaches nodes reaches ports "
            f"from {_first(tier)} on, and may read KV",
        ),
    ]


def attach(tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
    """Attach a vLLM engine in the role that its user gives it."""
    if refusal := too_old(engine, table.VLLM_HANDSHAKE, "NixlConnector that refuses another model's KV"):
        return refusal
    if refusal := storage.missing(engine):
        return refusal
    if engine.role is None:
        return Refusal(
            "RoleMissing",
            "nixl.p2p moves KV from engines that prefill to engines that decode, and stores nothing; set "
            "engine.kvCache.role to Prefill or Decode, or choose a tier that stores",
        )
    if refusal := _incompatible(engine):
        return refusal
    assert engine.version
    first, count = _first(tier), vllm_line.replicas(engine.line)
    serving = pod.port(engine.kind, engine.line)
    if serving in range(first, first + count):
        return Refusal(
            "PortTaken",
            f"the engine serves on port {serving}, which is among the tier's {first} to {first + count - 1}; set "
            "another --port, or nixl.p2p.sideChannelPort",
        )
    if refusal := rdma.too_few(tier, site, engine):
        return refusal
    config: dict[str, object] = {"kv_connector": CONNECTOR, "kv_role": _ROLES[engine.role]}
    leases = table.VLLM_LEASE.holds(engine.version)
    if leases:
        config["kv_connector_extra_config"] = {"kv_lease_duration": _LEASE_SECONDS}
    nics = rdma.for_engine(tier)
    return EnginePatch(
        tier=tier.ref,
        connector=CONNECTOR,
        identity=engine.identity.digest,
        since=(table.VLLM_LEASE if leases else table.VLLM_HANDSHAKE).since,
        role=engine.role,
        env=[
            # Both where it listens and where it says that it does.
            workloads.field("VLLM_NIXL_SIDE_CHANNEL_HOST", "status.podIP"),
            {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(first)},
            *_devices(tier),
        ],
        kv_transfer=config,
        # Declared, so that on the host network no two engines of a node get the same.
        ports=[{"name": f"kv-side-{i}", "containerPort": first + i} for i in range(count)],
        resources=nics.resources,
        devices=nics.devices,
        align=nics.align,
        capabilities=nics.capabilities,
        host_network=nics.host_network,
        labels=dict(workloads.engines(tier)),
        **placement.placed(tier.spec.placement),
        notices=storage.unverified(engine),
    )


def _incompatible(engine: Engine) -> Refusal | None:
    """Say what of the engine itself NixlConnector cannot go with."""
    return (
        compatibility.in_several_pods(
            engine,
            [CONNECTOR],
            f"each pod draws an engine id of its own, by which {CONNECTOR} refuses KV",
            "keep tensor and pipeline parallelism within a pod, or choose a tier that stores, of backend Mooncake",
        )
        or compatibility.remapped(engine, CONNECTOR, registers=True)
        or compatibility.asleep(engine, CONNECTOR, table.VLLM_NIXL_WAKES)
        or compatibility.hybrid(engine, CONNECTOR, table.VLLM_NIXL_HYBRID)
    )


def _first(tier: Tier) -> int:
    return given(given(tier.spec.nixl).p2p).side_channel_port


def _devices(tier: Tier) -> list[kube.Manifest]:
    """Tell UCX which NICs to take, and by which address; it would take any, a management network's too."""
    wanted = tier.spec.rdma
    if wanted is None:
        return []
    # UCX knows a device by its port, and RDMA devices have one.
    devices = ",".join(f"{device}:1" for device in wanted.net_devices)
    values = {"UCX_NET_DEVICES": devices} if devices else {}
    if wanted.gid_index is not None:
        values["UCX_IB_GID_INDEX"] = str(wanted.gid_index)
    return workloads.variables(values)
