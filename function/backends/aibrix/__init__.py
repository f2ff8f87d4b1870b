"""AIBrix: KV in the memory of each rank of an engine, by AIBrix's own connector.

An engine takes everything as arguments and variables, so nothing runs on the cluster. The rules and their sources are
in docs/aibrix.md and docs/facts.md.
"""

from collections.abc import Mapping

from function.backends.aibrix import offloading
from function.backends.base import Credential, EnginePatch, Plan, Refusal, Site, Tier, unsupported
from function.engines import Engine, table


class AIBrix:
    """The AIBrix strategy; see base.Backend."""

    def secrets(self, tier: Tier) -> Mapping[str, str]:  # noqa: ARG002
        """Name no Secret."""
        return {}

    def plan(self, tier: Tier, site: Site, credentials: Mapping[str, Credential]) -> Plan:  # noqa: ARG002
        """Plan nothing that runs; raises Invalid where a rank's share is too small."""
        return Plan([], memory=offloading.budget(tier, site))

    def attach(self, tier: Tier, site: Site, engine: Engine) -> EnginePatch | Refusal:
        """Attach a vLLM engine that holds KV in its own memory."""
        otherwise = "choose a tier of backend HiCache, Mooncake or Nixl"
        refusal = unsupported(engine, ("vLLM",), otherwise, table.VLLM_AIBRIX_PATCHED)
        return refusal or offloading.attach(tier, site, engine)
