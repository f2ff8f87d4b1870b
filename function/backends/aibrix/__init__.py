"""AIBrix: KV in the memory of each rank of an engine and in a store behind it, or a cache that its controller runs.

The rules and their sources are in docs/aibrix.md and docs/facts.md.
"""

from collections.abc import Mapping
from dataclasses import replace

from function import rdma, workloads
from function.backends import hierarchy, libraries
from function.backends.aibrix import connector, infinistore, l2, metadata, offloading, vineyard
from function.backends.base import CREDENTIALS, Credential, EnginePatch, Plan, Refusal, Site, Tier, given, unsupported
from function.engines import Engine, table
from function.stores import files, valkey


class AIBrix:
    """The AIBrix strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the Secret of the store, or of the Redis with its members; DRAWN for a Valkey of the tier's own."""
        name = l2.secret_name(tier)
        return {} if name is None else {CREDENTIALS: name}

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan the KVCache, the Valkey with a store's members, or the agents of files; raises Invalid, see budget."""
        aibrix, credential = given(tier.spec.aibrix), credentials.get(CREDENTIALS)
        if aibrix.vineyard:
            return Plan(vineyard.parts(tier), memory=offloading.budget(tier, site), notices=vineyard.notices())
        parts = [l2.secret(tier, credential)] if credential else []
        if aibrix.servers:
            parts += infinistore.parts(tier, credential)
        elif aibrix.l2 and aibrix.l2.shfs:
            parts += [workloads.service_account(tier), *files.parts(tier, aibrix.l2.shfs)]
        elif metadata.provisioned(tier):
            watcher = {metadata.LABEL_ROLE: metadata.WATCHER}
            parts += [workloads.service_account(tier), *metadata.parts(tier, credential, watcher)]
        held = [] if credential else list(self.secrets(tier))
        # What restarts with the password stays as it is while that is not known.
        if held and metadata.provisioned(tier):
            held.append(valkey.COMPONENT)
        # Behind HiCache it is HiCache that shares out host memory.
        memory = offloading.budget(tier, site) if tier.spec.backend == "AIBrix" else {}
        return Plan(parts, held, memory, rdma.notices(tier, site))

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach a vLLM engine that holds KV in its own memory, in a store, or in both."""
        otherwise = "choose a tier of backend HiCache, Mooncake or Nixl"
        if given(tier.spec.aibrix).vineyard:
            refusal = unsupported(engine, ("vLLM",), otherwise, table.VLLM_VINEYARD)
            return refusal or vineyard.attach(tier, site, engine)
        refusal = unsupported(engine, ("vLLM",), otherwise, table.VLLM_AIBRIX_PATCHED) or rdma.refusal(
            tier, site, engine
        )
        return refusal or offloading.attach(tier, site, engine)

    def store(self, tier: Tier, site: Site, engine: Engine) -> hierarchy.Store | Refusal:
        """Give L2 as what stands behind an SGLang engine's host memory."""
        if refusal := libraries.missing(
            engine, table.AIBRIX, "take one to which `pip install aibrix-kvcache` was added"
        ):
            return refusal
        if refusal := rdma.refusal(tier, site, engine):
            return refusal
        found = l2.store(tier, engine)
        if found is None or isinstance(found, Refusal):
            return found or Refusal("StoresNothing", f"KVOffloadTier {tier.ref} has no store; name another")
        # What HiCache holds already need not lie in memory twice.
        env = [*workloads.variables(offloading.NO_L1), *found.env]
        notices = list(found.notices)
        if not engine.bundled(table.AIBRIX).holds:
            notices.append(libraries.unverified(engine, table.AIBRIX, connector.UNKNOWN, "AIBrix's KV cache package"))
        return replace(found, env=env, notices=notices)
