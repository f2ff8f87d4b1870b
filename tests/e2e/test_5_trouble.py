"""Every kind of trouble, each ending in recovery without one workload that is deleted or restarted."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e import calls, fleet, install
from tests.e2e.conftest import say
from tests.e2e.environment import SYSTEM, TEAM, Environment
from tests.e2e.fleet import CACHE, CHAT, MEMBERS, OTHER_CHAT, POOL, SEARCH, SECRET_NAME
from tests.e2e.kube import CLUSTER, MODEL_DEPLOYMENT, SECRET, TIER, Kind, condition, conditions
from tests.e2e.ledger import NAMESPACE, Ledger
from tests.e2e.manifests import agents_tier, deployment, example_secrets
from tests.e2e.processes import wait_until

# What a password is rotated to.
ROTATED = b"rotated-and-still-secret"


@pytest.fixture
def unharmed(request: pytest.FixtureRequest, fleet_runs: Environment, ledger: Ledger) -> Iterator[Environment]:
    """The fleet, which ends as it began, and whose workloads are not touched meanwhile."""
    before = len(fleet_runs.faults)
    with ledger.unharmed():
        yield fleet_runs
        fleet.settled(fleet_runs)
    if len(fleet_runs.faults) == before:
        fleet_runs.faults.append(request.node.name)


def test_the_function_is_killed_again_and_again_while_it_reconciles(unharmed: Environment) -> None:
    for _ in range(5):
        fleet.poke(unharmed)
        unharmed.kill(install.FUNCTION)
        time.sleep(1)


def test_the_function_is_down_for_more_than_a_minute(unharmed: Environment) -> None:
    kube = unharmed.control.kube
    with unharmed.without(install.FUNCTION):
        fleet.poke(unharmed)
        # What is changed meanwhile is not lost.
        kube.patch(CHAT.kind, CHAT.name, CHAT.namespace, {"spec": {"replicas": 2}})
        time.sleep(65)
    kube.wait(
        CHAT.kind, CHAT.name, CHAT.namespace, lambda d: d["status"].get("replicas") == "2/2", 90, "has two replicas"
    )


def test_an_inference_clusters_api_server_is_gone_and_comes_back(unharmed: Environment) -> None:
    kube = unharmed.control.kube
    with unharmed.away(unharmed.clusters["west"].api):
        kube.patch(SEARCH.kind, SEARCH.name, SEARCH.namespace, {"spec": {"replicas": 2}})
        kube.wait(SEARCH.kind, SEARCH.name, SEARCH.namespace, conditions(ClusterReachable="ApplyFailed"), 90)
    kube.wait(SEARCH.kind, SEARCH.name, SEARCH.namespace, fleet.RUNS, 180, "runs with two replicas")


def test_the_control_planes_etcd_is_restarted(unharmed: Environment) -> None:
    with unharmed.away(unharmed.etcd.process):
        time.sleep(5)
    wait_until(unharmed.control.answers, 60, "the control plane answers")
    fleet.poke(unharmed)


def test_the_provider_is_restarted(unharmed: Environment) -> None:
    unharmed.kill(install.PROVIDER)
    fleet.poke(unharmed)


def test_a_secret_is_rotated_deleted_and_made_again(unharmed: Environment) -> None:
    kube, east = unharmed.control.kube, unharmed.clusters["east"].kube
    rotated = base64.b64encode(ROTATED).decode()

    def copied(value: str) -> bool:
        copies = [s for s in east.find(SECRET, NAMESPACE) if "cache" in s["metadata"]["name"]]
        return any(value in s.get("data", {}).values() for s in copies)

    kube.patch(SECRET, SECRET_NAME, SYSTEM, {"data": {"password": rotated}})
    fleet.poke(unharmed)
    wait_until(lambda: copied(rotated), 90, "the copy is rotated")
    fleet.settled(unharmed)
    kube.delete(SECRET, SECRET_NAME, SYSTEM)
    fleet.poke(unharmed)
    kube.wait(CACHE.kind, CACHE.name, SYSTEM, conditions(CredentialsResolved="SecretNotFound"), 90)
    assert copied(rotated)
    kube.apply(*example_secrets("lmcache"))
    fleet.poke(unharmed)
    kube.wait(CACHE.kind, CACHE.name, SYSTEM, conditions(CredentialsResolved="True"), 90)


def test_the_account_of_an_inference_cluster_ends_and_is_made_again(unharmed: Environment) -> None:
    kube, west = unharmed.control.kube, unharmed.clusters["west"]
    west.kube.delete(Kind("v1", "ServiceAccount"), "kv-offload-delivery", NAMESPACE)
    kube.patch(SEARCH.kind, SEARCH.name, SEARCH.namespace, {"spec": {"replicas": 3}})
    refused = kube.wait(SEARCH.kind, SEARCH.name, SEARCH.namespace, conditions(ClusterReachable="ApplyFailed"), 90)
    say(condition(refused, "ClusterReachable")[2])
    kube.delete(SECRET, "west-kubeconfig", SYSTEM)
    install.declare(unharmed, west)
    kube.wait(SEARCH.kind, SEARCH.name, SEARCH.namespace, lambda d: d["status"].get("replicas") == "3/3", 120)


def test_an_invalid_tier_stands_beside_good_ones(unharmed: Environment) -> None:
    kube = unharmed.control.kube
    kube.apply(agents_tier("east", "wrong", release="1999.01"))
    tier = kube.wait(TIER, "wrong", SYSTEM, conditions(Accepted="InvalidSpec"))
    assert "spec.release (is '1999.01')" in condition(tier, "Accepted")[2]
    # A good one becomes wrong under its engines, and good again.
    kube.patch(CACHE.kind, CACHE.name, SYSTEM, {"spec": {"release": "1999.01"}})
    kube.wait(CACHE.kind, CACHE.name, SYSTEM, conditions(Accepted="InvalidSpec"))
    fleet.poke(unharmed)
    for engine in (CHAT, OTHER_CHAT):
        kube.wait(engine.kind, engine.name, engine.namespace, conditions(TierAttached="TierInvalid"), 90)
    kube.patch(CACHE.kind, CACHE.name, SYSTEM, {"spec": {"release": None}})
    kube.wait(CACHE.kind, CACHE.name, SYSTEM, conditions(Accepted="True"))
    fleet.poke(unharmed)
    kube.remove(TIER, "wrong", SYSTEM)


def test_a_tier_ref_is_moved_to_another_clusters_tier(unharmed: Environment) -> None:
    kube = unharmed.control.kube
    kube.patch(SEARCH.kind, SEARCH.name, TEAM, {"spec": {"engine": {"kvCache": {"tierRef": {"name": CACHE.name}}}}})
    moved = kube.wait(SEARCH.kind, SEARCH.name, TEAM, conditions(TierAttached="TierOnOtherCluster"), 90)
    say(condition(moved, "TierAttached")[2])
    kube.patch(SEARCH.kind, SEARCH.name, TEAM, {"spec": {"engine": {"kvCache": {"tierRef": {"name": POOL.name}}}}})


def test_a_thousand_calls_with_random_required_resources_missing_never_shrink_what_is_desired(
    fleet_runs: Environment,
) -> None:
    outcome = calls.storm(fleet_runs, MEMBERS, 1000)
    say(json.dumps(outcome))
    assert outcome["calls"] == 1000
    assert outcome["missing"] > 500
    assert outcome["shrunk"] == 0
    assert outcome["fatal"] == 0


def test_an_inference_cluster_is_deleted_and_made_again(unharmed: Environment) -> None:
    kube = unharmed.control.kube
    cluster = kube.get(CLUSTER, "west") or {}
    kube.delete(CLUSTER, "west")
    kube.gone(CLUSTER, "west")
    fleet.poke(unharmed)
    for member in (POOL, SEARCH):
        kube.wait(member.kind, member.name, member.namespace, conditions(ClusterReachable="ClusterNotFound"))
    again = {"metadata": {"name": "west"}, "spec": {"cluster": cluster["spec"]["cluster"]}}
    kube.apply({"apiVersion": CLUSTER.api_version, "kind": CLUSTER.kind, **again})
    kube.wait(CLUSTER, "west", None, conditions(Ready="True"))
    kube.patch(SEARCH.kind, SEARCH.name, SEARCH.namespace, {"spec": {"replicas": 4}})
    kube.wait(SEARCH.kind, SEARCH.name, SEARCH.namespace, lambda d: d["status"].get("replicas") == "4/4", 90)


def test_a_tier_is_deleted_by_force_under_a_running_engine(fleet_runs: Environment, ledger: Ledger) -> None:
    kube = fleet_runs.control.kube
    kube.apply(agents_tier("east", "doomed"), deployment("survivor", "doomed"))
    kube.wait(MODEL_DEPLOYMENT, "survivor", TEAM, fleet.RUNS, 120)
    mark = ledger.mark()
    # As if the webhooks were off: nothing holds it.
    with contextlib.suppress(Exception):
        kube.wait(TIER, "doomed", SYSTEM, lambda t: t["metadata"].get("labels", {}).get("crossplane.io/in-use"), 60)
    kube.patch(TIER, "doomed", SYSTEM, {"metadata": {"labels": {"crossplane.io/in-use": None}}})
    kube.delete(TIER, "doomed", SYSTEM)
    kube.gone(TIER, "doomed", SYSTEM)
    fleet.poke(fleet_runs)
    kube.wait(MODEL_DEPLOYMENT, "survivor", TEAM, conditions(TierAttached="TierNotFound", Synced="True"), 90)
    harmed = [c for c in ledger.since(mark, "deleted", "changed") if "survivor" in c.name]
    assert not harmed, harmed
    kube.apply(agents_tier("east", "doomed"))
    kube.wait(TIER, "doomed", SYSTEM, conditions(Ready="True"))
    fleet.poke(fleet_runs)
    kube.wait(MODEL_DEPLOYMENT, "survivor", TEAM, fleet.RUNS, 120)
    assert not [c for c in ledger.since(mark, "deleted", "changed") if "survivor" in c.name]
