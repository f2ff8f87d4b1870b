"""Nixl: offload to files or objects behind each engine's host memory, or KV moved from prefill to decode engines.

NIXL is a library in the engines, so agents only look after files. The rules and their sources are in docs/nixl.md and
docs/facts.md.
"""

from collections.abc import Mapping

from function import sizing, workloads
from function.backends import hierarchy
from function.backends.base import (
    CREDENTIALS,
    Credential,
    EnginePatch,
    Plan,
    Refusal,
    Site,
    Tier,
    given,
    unsupported,
)
from function.backends.nixl import objects, p2p, storage
from function.engines import Engine
from function.stores import files


class Nixl:
    """The Nixl strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the bucket's Secret, unless it is on the inference cluster already."""
        return objects.secret_name(tier)

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan the agents that look after files, the bucket's Secret, or what stands around engines that move KV."""
        spec = given(tier.spec.nixl)
        if spec.storage is None:
            return Plan(p2p.parts(tier), notices=p2p.notices(tier, site))
        # Behind HiCache it is HiCache that shares out host memory.
        memory = storage.budget(tier, site) if tier.spec.backend == "Nixl" else {}
        if spec.storage.fs:
            return Plan([workloads.service_account(tier), *files.parts(tier, spec.storage.fs)], memory=memory)
        if CREDENTIALS in credentials:
            return Plan([objects.secret(tier, credentials[CREDENTIALS])], memory=memory)
        return Plan([], held=list(self.secrets(tier)), memory=memory)

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach an engine that offloads, or a vLLM engine that has one half of the work."""
        if given(tier.spec.nixl).p2p:
            otherwise = "SGLang's own --disaggregation-mode does it without a tier; remove the tierRef"
            return unsupported(engine, ("vLLM",), otherwise) or p2p.attach(tier, site, engine)
        if refusal := unsupported(engine, ("vLLM", "SGLang"), "choose another engine"):
            return refusal
        if engine.kind.name == "vLLM":
            return storage.vllm(tier, site, engine)
        store = self.store(tier, site, engine)
        if isinstance(store, Refusal):
            return store
        size = storage.rank_bytes(tier, site) // sizing.UNITS["--hicache-size"]
        return hierarchy.attach(tier, engine, hierarchy.Memory(size=size), "WriteThrough", store)

    def store(self, tier: Tier, site: Site, engine: Engine) -> hierarchy.Store | Refusal:  # noqa: ARG002
        """Give the files or the bucket as what stands behind an SGLang engine's host memory."""
        return storage.sglang(tier, engine)
