"""A deployment and its tier, in either order: the engine starts once, attached."""

import json

import pytest

from tests.e2e import fleet
from tests.e2e.environment import SYSTEM, TEAM, Environment
from tests.e2e.kube import DEPLOYMENT, MODEL_DEPLOYMENT, TIER, Kube, Manifest, conditions, names
from tests.e2e.ledger import NAMESPACE, Ledger
from tests.e2e.manifests import agents_tier, deployment

ATTACHED = conditions(Ready="True", TierAttached="True", EngineReady="True", RolledOut="True")


def workload(kube: Kube, name: str, namespace: str = TEAM) -> Manifest:
    """The engine's Deployment on an inference cluster."""
    found = [d for d in kube.find(DEPLOYMENT, NAMESPACE) if f"{namespace}-{name}-" in d["metadata"]["name"]]
    (one,) = found
    return one


def pods_made(ledger: Ledger, mark: int, workload_name: str) -> list[str]:
    """The UIDs of all pods that an engine ever had since a mark."""
    return [c.uid for c in ledger.since(mark, "made") if c.kind == "Pod" and c.name.startswith(workload_name)]


@pytest.fixture
def mark(ledger: Ledger) -> int:
    """Where the ledger is when a story begins."""
    return ledger.mark()


def test_a_deployment_before_its_tier_waits_and_then_starts_once_attached(
    installed: Environment, ledger: Ledger, mark: int
) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    kube.apply(deployment("early", "pair"))
    waiting = kube.wait(MODEL_DEPLOYMENT, "early", TEAM, conditions(TierAttached="TierNotFound"))
    assert "pair" in json.dumps(waiting["status"])
    assert "early" not in " ".join(names(west.find(DEPLOYMENT, NAMESPACE)))
    kube.apply(agents_tier("west", "pair", updateStrategy__minReadySeconds=1))
    kube.wait(TIER, "pair", SYSTEM, conditions(Ready="True"))
    fleet.poke(installed)
    kube.wait(MODEL_DEPLOYMENT, "early", TEAM, ATTACHED, 120)
    made = workload(west, "early")
    assert "LMCacheMPConnector" in json.dumps(made["spec"]["template"])
    assert len(pods_made(ledger, mark, made["metadata"]["name"])) == 1


def test_a_deployment_after_its_tier_starts_once_attached_and_shares_it(
    installed: Environment, ledger: Ledger, mark: int
) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    kube.wait(TIER, "pair", SYSTEM, conditions(Ready="True"))
    kube.apply(deployment("late", "pair"))
    kube.wait(MODEL_DEPLOYMENT, "late", TEAM, ATTACHED)
    made = workload(west, "late")
    assert len(pods_made(ledger, mark, made["metadata"]["name"])) == 1
    fleet.poke(installed)
    kube.wait(TIER, "pair", SYSTEM, lambda t: t["status"]["attachments"] == 2, 90, "has two attachments")
    assert not ledger.since(mark, "deleted", "changed")


def test_an_engine_that_serves_without_rolls_once_when_its_tier_comes(
    installed: Environment, ledger: Ledger, mark: int
) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    cluster = {"name": "west"}
    eager = deployment("eager", "missing", engine__kvCache__onUnavailable="ServeWithout", inferenceClusterRef=cluster)
    kube.apply(eager)
    kube.wait(MODEL_DEPLOYMENT, "eager", TEAM, conditions(EngineReady="True", TierAttached="TierNotFound"))
    name = workload(west, "eager")["metadata"]["name"]
    kube.apply(agents_tier("west", "missing", placement__nodeSelector={"nvidia.com/gpu.present": "true"}))
    kube.wait(TIER, "missing", SYSTEM, conditions(Ready="True"))
    fleet.poke(installed)
    kube.wait(MODEL_DEPLOYMENT, "eager", TEAM, ATTACHED)
    assert len(pods_made(ledger, mark, name)) == 2
    assert [c.what for c in ledger.since(mark, "changed") if c.name == name] == ["changed"]


def test_changing_replicas_restarts_nothing(installed: Environment, ledger: Ledger, mark: int) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    kube.patch(MODEL_DEPLOYMENT, "late", TEAM, {"spec": {"replicas": 2}})
    name = workload(west, "late")["metadata"]["name"]
    west.wait(DEPLOYMENT, name, NAMESPACE, lambda d: d["status"].get("readyReplicas") == 2)
    kube.wait(MODEL_DEPLOYMENT, "late", TEAM, ATTACHED)
    assert len(pods_made(ledger, mark, name)) == 1
    assert not ledger.since(mark, "deleted", "changed")
