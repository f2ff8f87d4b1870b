"""A fleet of three clusters: it rolls out, one fails, it halts, is fixed and finishes; engines name it on any."""

import contextlib
from collections.abc import Iterator

import pytest
import yaml

from function import kube as names
from function.backends.base import instance
from tests.e2e import install, manifests
from tests.e2e.conftest import say
from tests.e2e.environment import SYSTEM, TEAM, Environment
from tests.e2e.fleet import RUNS
from tests.e2e.kube import (
    CLUSTER,
    FLEET,
    MODEL_DEPLOYMENT,
    TIER,
    Kind,
    Manifest,
    Refused,
    condition,
    conditions,
)
from tests.e2e.ledger import Ledger
from tests.e2e.manifests import agents_tier, deployment
from tests.e2e.processes import Broken, wait_until

NAME = "waves"
CANARY, OTHERS = "west", ("east", "north")
CLUSTERS = (CANARY, *OTHERS)
DONE = conditions(Ready="True", RolledOut="True")
# More than a node has, so that the agents' pods find no place.
TOO_MUCH = 60000
_POLICY = Kind("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy")
_BINDING = Kind("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding")


def fleet(gib: int) -> Manifest:
    """The fleet, with so much memory on each node."""
    template = {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": gib}}
    return manifests.fleet(NAME, template, canary={"matchLabels": {"stage": "canary"}}, minReadySeconds=2)


def sizes(world: Environment) -> dict[str, int]:
    """The memory that each cluster's tier asks for."""
    found = world.control.kube.find(TIER, SYSTEM, label_selector=f"{names.LABEL_FLEET}={NAME}")
    return {t["spec"]["inferenceClusterRef"]["name"]: t["spec"]["lmcache"]["cpuTierGiBPerNode"] for t in found}


def tier(cluster: str) -> str:
    """The name of a cluster's tier."""
    return names.tier_of_fleet(NAME, cluster)


def label(world: Environment, cluster: str, **labels: str | None) -> None:
    """Label an InferenceCluster, as an administrator does."""
    world.control.kube.patch(CLUSTER, cluster, None, {"metadata": {"labels": labels}})


def poke(world: Environment) -> None:
    """Let Crossplane reconcile the fleet now; what it requires is else seen within a minute."""
    world.shell(f"kubectl annotate kvoffloadfleet {NAME} -n {SYSTEM} tests/poke=$(date +%s%N) --overwrite")


@pytest.fixture(scope="module")
def waves(installed: Environment, ledger: Ledger) -> Iterator[Environment]:
    """The fleet on three clusters, the third of which is another name of the first; all gone in the end."""
    assert ledger
    install.declare(installed, installed.clusters["east"], "north")
    for cluster in CLUSTERS:
        label(installed, cluster, **{NAME: "yes"}, stage="canary" if cluster == CANARY else "prod")
    installed.control.kube.apply(fleet(8))
    yield installed
    kube = installed.control.kube
    kube.remove(FLEET, NAME, SYSTEM)
    for cluster in CLUSTERS:
        kube.gone(TIER, tier(cluster), SYSTEM)
        label(installed, cluster, **{NAME: None}, stage=None)
    kube.remove(CLUSTER, "north")


def rolled_out(world: Environment, gib: int) -> Manifest:
    """Wait until all clusters have so much memory, and are ready with it."""
    kube = world.control.kube
    found = kube.wait(
        FLEET, NAME, SYSTEM, lambda f: DONE(f) and set(sizes(world).values()) == {gib}, 180, "is rolled out"
    )
    assert sizes(world) == dict.fromkeys(CLUSTERS, gib)
    return found


def test_each_cluster_gets_a_tier_the_canary_first(waves: Environment, ledger: Ledger) -> None:
    status = rolled_out(waves, 8)["status"]
    assert {name: status[name] for name in ("clusters", "updated", "ready", "waiting", "failed")} == {
        "clusters": 3,
        "updated": 3,
        "ready": 3,
        "waiting": 0,
        "failed": 0,
    }
    made = [c.name for c in ledger.since(0, "made") if c.kind == "DaemonSet"]
    first, *later = (made.index(instance(SYSTEM, tier(cluster))) for cluster in CLUSTERS)
    assert first < min(later)
    shown = waves.shell(f"kubectl get kvoffloadfleet {NAME} -n {SYSTEM}").splitlines()
    for column in ("CLUSTERS", "UPDATED", "WAITING", "FAILED", "BACKEND"):
        assert column in shown[0]
    say("\n".join(shown))


def test_a_canary_that_fails_halts_it_and_a_fix_lets_it_finish(waves: Environment, ledger: Ledger) -> None:
    kube = waves.control.kube
    kube.apply(fleet(TOO_MUCH))
    # Its agents are gone for the new ones, which find no place.
    kube.wait(TIER, tier(CANARY), SYSTEM, conditions(AgentsReady="False"))
    halted = kube.wait(FLEET, NAME, SYSTEM, lambda f: "AgentsReady" in str(f["status"].get("notWell")))
    assert f"now: {CANARY}; 2 other clusters wait" in condition(halted, "RolledOut")[2]
    assert [ail["cluster"] for ail in halted["status"]["notWell"]] == [CANARY]
    with ledger.unharmed(10):
        assert sizes(waves) == {CANARY: TOO_MUCH, **dict.fromkeys(OTHERS, 8)}
    assert sizes(waves) == {CANARY: TOO_MUCH, **dict.fromkeys(OTHERS, 8)}
    say(condition(halted, "RolledOut")[2])
    kube.apply(fleet(16))
    rolled_out(waves, 16)


@contextlib.contextmanager
def no_thirteen(world: Environment) -> Iterator[None]:
    """Let the API server refuse tiers of 13 GiB, as a policy of an administrator's would."""
    kube = world.control.kube
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": NAME}}
    what = {"apiGroups": ["modelplane.ai"], "apiVersions": ["*"], "resources": ["kvoffloadtiers"]}
    rules = [{**what, "operations": ["CREATE", "UPDATE"]}]
    checks = [{"expression": "object.spec.lmcache.cpuTierGiBPerNode != 13", "message": "no 13 here"}]
    policy = {"matchConstraints": {"resourceRules": rules}, "validations": checks}
    kube.apply(
        {**api, "kind": _POLICY.kind, "spec": policy},
        {**api, "kind": _BINDING.kind, "spec": {"policyName": NAME, "validationActions": ["Deny"]}},
    )
    probe = world.folder / "thirteen.yaml"
    probe.write_text(yaml.safe_dump(agents_tier("east", "thirteen", lmcache__cpuTierGiBPerNode=13)))

    def holds() -> bool:
        try:
            world.shell(f"kubectl create -f {probe} --dry-run=server")
        except Broken as e:
            return "no 13 here" in str(e)
        return False

    wait_until(holds, 60, "the API server refuses 13")
    yield
    kube.delete(_BINDING, NAME)
    kube.delete(_POLICY, NAME)


def test_a_tier_that_the_api_server_refuses_halts_it_too(waves: Environment) -> None:
    kube = waves.control.kube
    with no_thirteen(waves):
        kube.apply(fleet(13))
        halted = kube.wait(FLEET, NAME, SYSTEM, conditions(RolledOut="Halted"))
        assert [(a["cluster"], a["reason"]) for a in halted["status"]["notWell"]] == [(CANARY, "Refused")]
        assert halted["status"]["failed"] == 1
        assert sizes(waves) == dict.fromkeys(CLUSTERS, 16)
        say(condition(halted, "RolledOut")[2])
    kube.apply(fleet(24))
    rolled_out(waves, 24)


def test_an_engine_that_names_the_fleet_has_the_tier_of_its_cluster_and_holds_it(waves: Environment) -> None:
    kube = waves.control.kube
    ref = {"name": NAME, "kind": FLEET.kind}
    kube.apply(deployment("anywhere", NAME, engine__kvCache__tierRef=ref, inferenceClusterRef={"name": "north"}))
    kube.wait(MODEL_DEPLOYMENT, "anywhere", TEAM, RUNS)
    kube.wait(FLEET, NAME, SYSTEM, lambda f: f["status"].get("attachments") == 1)
    # A cluster that leaves keeps its tier for the engine, and one without an engine loses it.
    for cluster in OTHERS:
        label(waves, cluster, **{NAME: None})
    poke(waves)
    kube.gone(TIER, tier("east"), SYSTEM)
    kube.wait(FLEET, NAME, SYSTEM, conditions(TierLeaving="InUse"))
    assert sizes(waves).keys() == {CANARY, "north"}


def test_a_fleet_with_an_engine_refuses_deletion_and_goes_with_its_last_engine(waves: Environment) -> None:
    kube = waves.control.kube

    def refused() -> bool:
        try:
            kube.delete(FLEET, NAME, SYSTEM)
        except Refused as e:
            return "in-use" in str(e)
        return False

    assert refused()
    kube.remove(MODEL_DEPLOYMENT, "anywhere", TEAM)
    # Crossplane says the deletion again, once nobody is in the way.
    kube.gone(FLEET, NAME, SYSTEM, 120)
    for cluster in CLUSTERS:
        kube.gone(TIER, tier(cluster), SYSTEM)
