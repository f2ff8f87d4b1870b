"""Two tiers and three deployments on two clusters, all applied at once: nothing is mixed up."""

import json

from tests.e2e import fleet
from tests.e2e.environment import Environment
from tests.e2e.fleet import CACHE, CHAT, MEMBERS, OTHER_CHAT, POOL, SEARCH, Member
from tests.e2e.kube import DEPLOYMENT, OBJECT, Manifest, owned
from tests.e2e.ledger import NAMESPACE, Ledger


def objects_of(world: Environment, member: Member) -> list[Manifest]:
    """The Objects that a tier or a deployment composes."""
    return owned(world.control.kube.find(OBJECT, member.namespace), fleet.read(world, member))


def remote_names(world: Environment, member: Member) -> set[tuple[str, str]]:
    """What a member's Objects put on its cluster: kinds and names."""
    manifests = [o["spec"]["forProvider"]["manifest"] for o in objects_of(world, member)]
    return {(m["kind"], m["metadata"]["name"]) for m in manifests}


def test_no_two_of_them_put_the_same_name_anywhere(fleet_runs: Environment) -> None:
    names = [remote_names(fleet_runs, member) for member in MEMBERS]
    assert all(names)
    assert sum(map(len, names)) == len(set.union(*names))


def test_everything_of_one_is_on_its_own_cluster(fleet_runs: Environment) -> None:
    for member in MEMBERS:
        other = fleet_runs.clusters["west" if member.cluster == "east" else "east"].kube
        for manifest in objects_of(fleet_runs, member):
            config = manifest["spec"]["providerConfigRef"]["name"]
            assert config.startswith(f"{member.cluster}-"), (member, config)
        deployed = {d["metadata"]["name"] for d in other.find(DEPLOYMENT, NAMESPACE)}
        assert not deployed & {name for kind, name in remote_names(fleet_runs, member) if kind == "Deployment"}


def test_each_engine_is_wired_to_its_own_tier_alone(fleet_runs: Environment) -> None:
    config = {tier: fleet.read(fleet_runs, tier)["status"]["connector"]["configMap"] for tier in (CACHE, POOL)}
    for engine, tier in ((CHAT, CACHE), (OTHER_CHAT, CACHE), (SEARCH, POOL)):
        (workload,) = [
            o["spec"]["forProvider"]["manifest"]
            for o in objects_of(fleet_runs, engine)
            if o["spec"]["forProvider"]["manifest"]["kind"] == "Deployment"
        ]
        mounted = {name for name in config.values() if name in json.dumps(workload["spec"]["template"])}
        assert mounted == {config[tier]}, engine
    assert fleet.read(fleet_runs, CACHE)["status"]["attachments"] == 2
    assert fleet.read(fleet_runs, POOL)["status"]["attachments"] == 1


def test_nothing_started_twice(fleet_runs: Environment, ledger: Ledger) -> None:
    assert fleet_runs
    ours = [remote_names(fleet_runs, member) for member in (CHAT, OTHER_CHAT, SEARCH)]
    for name in (name for names in ours for kind, name in names if kind == "Deployment"):
        assert len([c for c in ledger.since(0, "made") if c.kind == "Pod" and c.name.startswith(f"{name}-")]) == 1
