"""LMCache: an agent per node (multiprocess), or the engine's own process, and the Redis behind both.

The rules and their sources are in docs/lmcache.md. Every option whose default has moved between versions is explicit.
"""

from collections.abc import Mapping
from dataclasses import replace

from function import sizing, workloads
from function.api.tier import Mode
from function.backends import compatibility, libraries
from function.backends.base import (
    AGENTS,
    CREDENTIALS,
    DRAWN,
    Credential,
    EnginePatch,
    Notice,
    Plan,
    Refusal,
    Site,
    Tier,
    given,
    unsupported,
)
from function.backends.lmcache import agents, connector, encryption, patches, redis
from function.engines import Engine, table, versions
from function.stores import valkey

_DRA = "GPUsByDRA"
_FORCED = (
    "the tier's mode Multiprocess attaches it all the same. Where it fails, a tier with lmcache.mode InProcess does not"
)
_CONNECTORS = (connector.MULTIPROCESS, connector.IN_PROCESS)
_GANG = (
    "LMCache looks for their KV in one agent alone, or in process by sockets of one pod, so hits would be lost, or "
    "ranks not start"
)
_INSTEAD = (
    "keep tensor and pipeline parallelism within a pod, with data-parallel replicas in each "
    "(--data-parallel-size-local), or choose a tier of backend Mooncake"
)


class LMCache:
    """The LMCache strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:
        """Name the Secrets of Redis and of encryption, unless they are on the inference cluster already."""
        spec = given(tier.spec.lmcache)
        found: dict[str, str] = {}
        if spec.redis and spec.redis.provision:
            found[CREDENTIALS] = DRAWN
        elif spec.secret_ref and not spec.secret_ref.on_cluster:
            found[CREDENTIALS] = spec.secret_ref.name
        if spec.encryption and not spec.encryption.secret_ref.on_cluster:
            found[encryption.PART] = spec.encryption.secret_ref.name
        return found

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:
        """Plan the connector's ConfigMap, the Secrets, the tier's own Valkey, and, but in process, the agents."""
        spec = given(tier.spec.lmcache)
        parts = [connector.config_map(tier, site)]
        wanted = self.secrets(tier)
        held = [part for part in wanted if part not in credentials]
        undrawn = wanted.get(CREDENTIALS) == DRAWN and CREDENTIALS in held
        if CREDENTIALS in credentials:
            parts.append(redis.secret(tier, credentials[CREDENTIALS]))
        if encryption.PART in credentials:
            parts.append(encryption.secret(tier, credentials[encryption.PART]))
        provision = spec.redis.provision if spec.redis else None
        if provision:
            clients = [workloads.engines(tier)]
            if spec.mode is not Mode.IN_PROCESS:
                clients.append(tier.selector("agent"))
            parts += valkey.parts(tier, redis.VALKEY, provision, credentials.get(CREDENTIALS), clients)
        # What restarts with a Secret's version stays as it is while that is not known.
        if undrawn:
            held.append(valkey.COMPONENT)
        if provision or spec.mode is not Mode.IN_PROCESS:
            parts.append(workloads.service_account(tier))
        if spec.mode is Mode.IN_PROCESS:
            rank, gpus = connector.rank_gib(tier, site)
            memory = {"cacheGiB": spec.cpu_tier_gib_per_node, "gpusPerNode": gpus, "perRankGiB": rank}
            return Plan(parts, held, memory)
        parts += agents.parts(tier, credentials)
        if undrawn or encryption.PART in held:
            held.append(AGENTS)
        budget = sizing.agent_memory(spec.cpu_tier_gib_per_node)
        memory = {
            "cacheGiB": budget.cache,
            "overheadGiB": budget.overhead,
            "requestGiB": budget.request,
            "limitGiB": budget.limit,
        }
        if spec.mode is Mode.AUTO:
            memory["stagingGiBPerRank"] = sizing.STAGING_GIB_PER_RANK
        return Plan(parts, held, memory)

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach a vLLM engine by the agent where it can speak to one, else in process."""
        if refusal := unsupported(engine, ("vLLM",), "choose a tier of backend HiCache, Mooncake or Nixl"):
            return refusal
        if refusal := libraries.missing(engine, table.LMCACHE, "lmcache/vllm-openai images hold it"):
            return refusal
        if engine.identity.lora:
            return Refusal(
                "LoRANotIsolated",
                "no LMCache version keys a LoRA adapter's KV apart from its base model's, so answers could be wrong; "
                "remove --enable-lora, or the tierRef",
            )
        if refusal := compatibility.in_several_pods(engine, _CONNECTORS, _GANG, _INSTEAD):
            return refusal
        mode = given(tier.spec.lmcache).mode
        in_process = patches.not_in_process(engine)
        if mode is Mode.IN_PROCESS:
            return in_process or patches.in_process(tier, site, engine, whole_tier=True)
        reason = _why_in_process(tier, engine)
        if reason is None or (mode is Mode.MULTIPROCESS and reason.reason == _DRA):
            if refusal := libraries.skew(engine, agents.image(tier), table.LMCACHE_MULTIPROCESS, "spec.images.lmcache"):
                return refusal
            patch = patches.multiprocess(tier, engine)
            return (
                patch.with_notice(Notice("MultiprocessForced", reason.reason, f"{reason.message}; {_FORCED}"))
                if reason
                else patch
            )
        if mode is Mode.MULTIPROCESS:
            otherwise = "" if in_process else ", Auto would attach in process"
            return replace(reason, message=f"{reason.message}; the tier's mode is Multiprocess{otherwise}")
        if in_process:
            return in_process
        patch = patches.in_process(tier, site, engine, whole_tier=False)
        return patch.with_notice(_unused(tier, engine, reason, patch))


def _why_in_process(tier: Tier, engine: Engine) -> Refusal | None:
    """Say why an engine cannot speak to an agent; None where it can. What cannot be overridden comes first."""
    assert engine.version
    first, needed = table.VLLM_MULTIPROCESS, table.LMCACHE_MULTIPROCESS
    if not first.holds(engine.version):
        return Refusal(
            "EngineTooOld",
            f"vLLM {versions.show(engine.version)} does not speak multiprocess LMCache (from "
            f"{versions.show(first.since)} on)",
        )
    held = engine.bundled(table.LMCACHE)
    if held.newest is not None and not needed.holds(held.newest):
        return Refusal(
            "LMCacheTooOld", f"the image holds LMCache {held.shown}, the agent needs {versions.show(needed.since)}"
        )
    chunk_size = given(tier.spec.lmcache).chunk_size
    if refusal := (
        compatibility.chunks(engine, connector.MULTIPROCESS, chunk_size)
        or compatibility.unshareable(engine, connector.MULTIPROCESS)
    ):
        return refusal
    if not (engine.identity.plain or engine.identity.vouched):
        return Refusal(
            "IdentityNotShared",
            f"multiprocess LMCache keys by the model string alone, and this one {engine.identity.beside}, which may "
            "change KV; set kvCache.identity if on this tier the string means this one thing",
        )
    if engine.dra:
        return Refusal(
            _DRA, "with GPUs by DRA claim, engines were seen to fail to register with an agent (LMCache #4534)"
        )
    return None


def _unused(tier: Tier, engine: Engine, reason: Refusal, patch: EnginePatch) -> Notice:
    spec = given(tier.spec.lmcache)
    unused = [f"the {spec.cpu_tier_gib_per_node} GiB of the node's agent"]
    if spec.disk_tier:
        unused.append(f"its disk of {spec.disk_tier.size_per_node}")
    staging = sizing.STAGING_GIB_PER_RANK
    remote = any(variable["name"] == redis.REMOTE for variable in patch.env)
    return Notice(
        "TierUnusedByEngine",
        reason.reason,
        f"{reason.message}. It is attached in process: {staging} GiB x {engine.ranks} rank(s) of its own pod's memory"
        f"{', and the Redis' if remote else ''}; {' and '.join(unused)} it cannot use. "
        "A tier for a fleet of such engines has lmcache.mode InProcess",
    )
