"""Upgrades: a new function, a new release, another connector and another agent image, each rolling what docs/ says."""

import json

import pytest
import yaml

from function.releases import NEWEST
from tests.e2e import install
from tests.e2e.conftest import say
from tests.e2e.environment import REPOSITORY, SYSTEM, TEAM, Environment
from tests.e2e.kube import DAEMON_SET, MODEL_DEPLOYMENT, POD, TIER, Kind, Manifest, conditions, documents
from tests.e2e.ledger import NAMESPACE, Ledger
from tests.e2e.processes import wait_until
from tests.e2e.test_2_attach import ATTACHED, workload

NEXT = "2027.01"
IMAGE = "mirror.example.org/lmcache/standalone:v0.5.6"
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")
FIELD = "later"
XRDS = {"kvoffloadtiers": "apis/kvoffloadtier.yaml", "modeldeployments": "apis/standalone/modeldeployment.yaml"}


def next_version() -> dict[str, str]:
    """What the next version changes, by file: a release, with another image of LMCache, and a field in each XRD."""
    source = (REPOSITORY / "function" / "releases.py").read_text()
    end = source.index("\n)\n\nRELEASES")
    newest = source[source.rindex("    Release(", 0, end) : end]
    more = newest.replace(f'name="{NEWEST.name}"', f'name="{NEXT}"').replace(NEWEST.lmcache_image, IMAGE)
    changed = {"function/releases.py": f"{source[:end]}\n{more}{source[end:]}"}
    for path in XRDS.values():
        (xrd,) = documents(REPOSITORY / path)
        _fields(xrd)[FIELD] = {"type": "string"}
        changed[path] = yaml.safe_dump(xrd)
    return changed


@pytest.fixture(scope="module", autouse=True)
def upgraded(installed: Environment, ledger: Ledger, small: str) -> int:
    """Upgrade everything by the documentation; returns the ledger's mark before it."""
    assert small
    mark = ledger.mark()
    before = installed.runtime.deployment(install.FUNCTION)["metadata"]["name"]
    install.push_packages(installed, "v0.2.0", next_version())
    install.run(installed, "Upgrade", VERSION="v0.2.0")
    now = installed.runtime.deployment(install.FUNCTION)["metadata"]["name"]
    assert now != before
    say(f"{before} was replaced by {now}")
    return mark


def test_a_new_version_changes_nothing(installed: Environment, ledger: Ledger, upgraded: int) -> None:
    kube = installed.control.kube
    for kind, namespace in ((TIER, SYSTEM), (MODEL_DEPLOYMENT, TEAM)):
        installed.shell(f"kubectl annotate {kind.kind} -n {namespace} --all tests/upgraded=true --overwrite")
    with ledger.unharmed(10):
        tier = kube.wait(TIER, "small", SYSTEM, conditions(Ready="True"))
    assert tier["status"]["release"] != NEXT
    for plural in XRDS:
        assert FIELD in _fields(kube.get(CRD, f"{plural}.modelplane.ai") or {})
    assert not ledger.since(upgraded, "deleted", "changed")


def test_moving_the_release_rolls_the_agents_and_no_engine(installed: Environment, ledger: Ledger) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    agents, mark = _agents(installed, "pair"), ledger.mark()
    before = {pod["metadata"]["uid"] for pod in west.find(POD, NAMESPACE, label_selector=_selector(agents))}
    kube.patch(TIER, "pair", SYSTEM, {"spec": {"release": NEXT}})
    kube.wait(TIER, "pair", SYSTEM, lambda t: t["status"]["release"] == NEXT)
    name = agents["metadata"]["name"]
    west.wait(DAEMON_SET, name, NAMESPACE, lambda d: IMAGE in json.dumps(d["spec"]) and _rolled(d), 120)
    kube.wait(TIER, "pair", SYSTEM, conditions(Ready="True", RolledOut="True"))
    assert [c.name for c in ledger.since(mark, "changed")] == [name]
    gone = ledger.since(mark, "deleted")
    assert {c.uid for c in gone if c.name.startswith(name)} == before
    engines = tuple(workload(west, engine)["metadata"]["name"] for engine in ("early", "late"))
    assert not [c for c in gone if c.name.startswith(engines)]


def test_a_change_of_the_connector_rolls_agents_and_engines_once(installed: Environment, ledger: Ledger) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    mark = ledger.mark()
    kube.patch(TIER, "pair", SYSTEM, {"spec": {"lmcache": {"chunkSize": 512}}})
    engines = {workload(west, name)["metadata"]["name"] for name in ("early", "late")}
    agents = _agents(installed, "pair")["metadata"]["name"]
    wait_until(lambda: {c.name for c in ledger.since(mark, "changed")} >= {*engines, agents}, 120, "all roll")
    west.wait(DAEMON_SET, agents, NAMESPACE, _rolled, 120)
    for name in ("early", "late"):
        kube.wait(MODEL_DEPLOYMENT, name, TEAM, ATTACHED, 120)
    kube.wait(TIER, "pair", SYSTEM, conditions(Ready="True", RolledOut="True"))
    assert sorted(c.name for c in ledger.since(mark, "changed")) == sorted([*engines, agents])


def test_on_delete_nothing_restarts_until_a_pod_is_deleted(installed: Environment, ledger: Ledger) -> None:
    kube, west = installed.control.kube, installed.clusters["west"].kube
    kube.patch(TIER, "small", SYSTEM, {"spec": {"updateStrategy": {"type": "OnDelete"}}})
    kube.wait(TIER, "small", SYSTEM, conditions(Ready="True", RolledOut="True"))
    mark = ledger.mark()
    kube.patch(TIER, "small", SYSTEM, {"spec": {"images": {"lmcache": IMAGE}}})
    kube.wait(TIER, "small", SYSTEM, lambda t: " agents restart" in t["status"].get("pendingDisruption", ""))
    agents = _agents(installed, "small")
    west.wait(DAEMON_SET, agents["metadata"]["name"], NAMESPACE, lambda d: IMAGE in json.dumps(d["spec"]))
    assert not ledger.since(mark, "deleted")
    for pod in west.find(POD, NAMESPACE, label_selector=_selector(agents)):
        west.delete(POD, pod["metadata"]["name"], NAMESPACE)
    tier = kube.wait(
        TIER, "small", SYSTEM, lambda t: not t["status"].get("pendingDisruption") and conditions(Ready="True")(t), 120
    )
    pods = west.find(POD, NAMESPACE, label_selector=_selector(agents))
    assert tier["status"]["agents"] == f"{len(pods)}/{len(pods)}"
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {IMAGE}


def _fields(definition: Manifest) -> Manifest:
    """The properties of the spec that an XRD or a CRD has."""
    (version,) = definition["spec"]["versions"]
    fields: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return fields


def _agents(installed: Environment, tier: str) -> Manifest:
    west = installed.clusters["west"].kube
    (found,) = [d for d in west.find(DAEMON_SET, NAMESPACE) if f"-{tier}-" in d["metadata"]["name"]]
    return found


def _selector(workload_: Manifest) -> str:
    return ",".join(f"{k}={v}" for k, v in workload_["spec"]["selector"]["matchLabels"].items())


def _rolled(daemon_set: Manifest) -> bool:
    """Whether all of a DaemonSet's pods are of its newest template, and available."""
    status = daemon_set["status"]
    wanted = status["desiredNumberScheduled"]
    seen: bool = status["observedGeneration"] == daemon_set["metadata"]["generation"]
    return seen and bool(status.get("updatedNumberScheduled") == status.get("numberAvailable") == wanted)
