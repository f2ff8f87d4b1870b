"""Mooncake: a pool of memory over all nodes, with a master that knows its keys and engines that are its clients.

The rules and their sources are in docs/mooncake.md and docs/facts.md.
"""

import base64
from collections.abc import Mapping

from function import rdma, workloads
from function.backends import hierarchy
from function.backends.base import (
    CREDENTIALS,
    Credential,
    CredentialError,
    EnginePatch,
    Notice,
    Part,
    Plan,
    Refusal,
    Site,
    Tier,
    given,
    unsupported,
)
from function.backends.mooncake import agents, cluster, master, patches
from function.engines import Engine
from function.stores import etcd


class Mooncake:
    """The Mooncake strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the Secret with a given etcd's authority, unless it is on the inference cluster already."""
        return cluster.secret_name(tier)

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan etcd, masters, agents, their NICs, and the connector's ConfigMap."""
        store = given(tier.spec.mooncake).etcd
        parts = [patches.config_map(tier), workloads.service_account(tier)]
        held: list[str] = []
        if CREDENTIALS in credentials:
            parts.append(_authority(tier, credentials[CREDENTIALS]))
        elif self.secrets(tier):
            held.append(CREDENTIALS)
        if store and store.provision:
            clients = [workloads.engines(tier), tier.selector("agent"), tier.selector(cluster.MASTER)]
            parts += etcd.parts(tier, store.provision, clients)
        parts += [*master.parts(tier), *rdma.parts(tier), *agents.parts(tier)]
        budget = agents.budget(tier)
        memory = {"cacheGiB": budget.segment, "overheadGiB": budget.headroom, "requestGiB": budget.memory}
        if budget.huge_pages:
            memory["hugePagesGiB"] = budget.huge_pages
        return Plan(parts, held, memory | {"limitGiB": budget.memory}, _notices(tier, site))

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach a vLLM engine as a client of the pool, or an SGLang engine with the pool behind its host memory."""
        if refusal := unsupported(engine, ("vLLM", "SGLang"), "choose another engine"):
            return refusal
        if engine.kind.name == "vLLM":
            return rdma.refusal(tier, site, engine) or patches.vllm(tier, engine)
        store = self.store(tier, site, engine)
        if isinstance(store, Refusal):
            return store
        # Twice its cache in GPU memory: SGLang's own default, which not every version has.
        return hierarchy.attach(tier, engine, hierarchy.Memory(ratio=2.0), "WriteThrough", store)

    def store(self, tier: Tier, site: Site, engine: Engine) -> hierarchy.Store | Refusal:
        """Give the pool as what stands behind an SGLang engine's host memory, or say why it cannot."""
        return rdma.refusal(tier, site, engine) or patches.store(tier, engine)


def _notices(tier: Tier, site: Site) -> list[Notice]:
    found = rdma.notices(tier, site)
    spec = given(tier.spec.mooncake)
    provision = spec.etcd.provision if spec.etcd else None
    if tier.spec.rdma and tier.spec.rdma.host_network:
        first, last = cluster.agent_port(tier, 0), cluster.agent_port(tier, cluster.HEALTH)
        message = (
            "with rdma.hostNetwork agents and engines use their node's network, where no NetworkPolicy applies, and "
            f"{'master and etcd have' if provision else 'the master has'} to be open to all: whoever reaches these, or "
            f"ports {first} to {last} of a node, reaches the pool. Let nobody else reach the nodes"
        )
        found.append(Notice("HostNetworkUnprotected", "NoPolicyBindsIt", message))
    if spec.master.oplog:
        message = (
            "Mooncake never trims its oplog; when it has filled etcd, no key is taken any more. Watch it, and reset "
            "it in time as docs/mooncake.md says"
        )
        found.append(Notice("EtcdFillsUp", "OplogIsNeverTrimmed", message))
        if provision and provision.ephemeral:
            message = (
                "mooncake.etcd.provision.ephemeral is true: when etcd restarts, every key of the pool is lost; a tier "
                "that is created with provision.volume keeps them"
            )
            found.append(Notice("KeysNotDurable", "EphemeralEtcd", message))
    elif cluster.highly_available(tier):
        message = (
            "when another master takes the lead it knows no key, and the pool begins empty; a tier created with "
            "mooncake.master.oplog lets it learn them, at a price that docs/mooncake.md tells"
        )
        found.append(Notice("KeysNotDurable", "NoOplog", message))
    return found


def _authority(tier: Tier, credential: Credential) -> Part:
    """Plan the one copy of a given etcd's authority; raises CredentialError where the Secret does not hold it."""
    ref = given(given(tier.spec.mooncake).etcd).ca_secret_ref
    assert ref  # a credential is only read for a caSecretRef
    found = credential.data.get(ref.key)
    if not found:
        raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {ref.key!r}")
    try:
        text = base64.b64decode(found, validate=True)
    except ValueError:
        text = b""
    if b"BEGIN CERTIFICATE" not in text:
        raise CredentialError("NotACertificate", f"key {ref.key!r} of Secret {tier.namespace}/{ref.name} holds no PEM")
    return workloads.secret(tier, CREDENTIALS, {cluster.CA_KEY: found}, f"{credential.version} {ref.key}")
