"""Two tiers and three deployments on two clusters, as most stories find them."""

from dataclasses import dataclass

from tests.e2e.environment import OTHER_TEAM, SYSTEM, TEAM, Environment
from tests.e2e.kube import MODEL_DEPLOYMENT, TIER, Kind, Manifest, conditions
from tests.e2e.manifests import deployment, example_secrets, example_tier

RUNS = conditions(
    Synced="True", Ready="True", TierAttached="True", EngineReady="True", RolledOut="True", ClusterReachable="True"
)
READY = conditions(
    Synced="True",
    Ready="True",
    ClusterReachable="True",
    CredentialsResolved="True",
    AgentsReady="True",
    RolledOut="True",
)


@dataclass(frozen=True)
class Member:
    """A tier or a deployment of the fleet, and the inference cluster that it is on."""

    kind: Kind
    name: str
    namespace: str
    cluster: str


CACHE = Member(TIER, "cache", SYSTEM, "east")
POOL = Member(TIER, "pool", SYSTEM, "west")
CHAT = Member(MODEL_DEPLOYMENT, "chat", TEAM, "east")
# Of the same name, by another team.
OTHER_CHAT = Member(MODEL_DEPLOYMENT, "chat", OTHER_TEAM, "east")
SEARCH = Member(MODEL_DEPLOYMENT, "search", TEAM, "west")
MEMBERS = (CACHE, POOL, CHAT, OTHER_CHAT, SEARCH)
SECRET_NAME = "kv-redis-auth"


def manifests() -> list[Manifest]:
    """What is applied, at once and in no order: an LMCache tier with disk and Redis, and a Mooncake pool."""
    sglang = {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23", "args": ["--model-path=Qwen/Qwen3-32B"]}
    return [
        deployment("search", "pool", engine={**sglang, "kvCache": {"tierRef": {"name": "pool"}}}),
        deployment("chat", "cache", OTHER_TEAM),
        example_tier("sglang-mooncake", "west", "pool"),
        deployment("chat", "cache"),
        *example_secrets("lmcache"),
        example_tier("lmcache", "east", "cache"),
    ]


def read(world: Environment, member: Member) -> Manifest:
    """Read one of them."""
    found = world.control.kube.get(member.kind, member.name, member.namespace)
    assert found, f"{member} is gone"
    return found


def settled(world: Environment, seconds: float = 150) -> None:
    """Wait until every tier is ready and every engine runs, attached. Raises Broken."""
    for member in MEMBERS:
        holds = READY if member.kind == TIER else RUNS
        world.control.kube.wait(member.kind, member.name, member.namespace, holds, seconds, "is as it should be")


def poke(world: Environment) -> None:
    """Let Crossplane reconcile every tier and deployment now. What they require is else seen within a minute."""
    for kind in (TIER, MODEL_DEPLOYMENT):
        world.shell(
            f"kubectl annotate {kind.kind.lower()}s.modelplane.ai -A --all tests/poke=$(date +%s%N) --overwrite"
        )
