"""Installing by the documentation, and tiers of every backend that roll out."""

import json
import time
from collections.abc import Callable

from tests.e2e.conftest import say
from tests.e2e.environment import SYSTEM, TEAM, Environment
from tests.e2e.fleet import RUNS
from tests.e2e.install import FUNCTION, PROVIDER
from tests.e2e.kube import (
    DAEMON_SET,
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    OBJECT,
    POD,
    TIER,
    Kind,
    Manifest,
    condition,
    conditions,
)
from tests.e2e.ledger import NAMESPACE, Ledger
from tests.e2e.manifests import agents_tier, deployment, example_deployment, example_secrets, example_tier
from tests.e2e.processes import wait_until

BACKENDS = {
    "LMCache": "lmcache-valkey",
    "Mooncake": "mooncake-ha",
    "Nixl": "nixl-storage",
    "HiCache": "hicache-mooncake",
    "AIBrix": "aibrix-offloading",
}
READY = {
    "Ready": "True",
    "Accepted": "True",
    "ClusterReachable": "True",
    "ControlPlaneReady": "True",
    "RolledOut": "True",
}


def test_the_documented_commands_install_everything(installed: Environment) -> None:
    kube = installed.control.kube
    for kind, name in (
        ("Function", FUNCTION),
        ("Provider", PROVIDER),
        ("Configuration", "kv-offload"),
        ("Configuration", "kv-offload-standalone"),
    ):
        kube.wait(Kind("pkg.crossplane.io/v1", kind), name, None, conditions(Installed="True", Healthy="True"))
    (container,) = installed.runtime.deployment(FUNCTION)["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["limits"]["memory"]
    (container,) = installed.runtime.deployment(PROVIDER)["spec"]["template"]["spec"]["containers"]
    assert {"--enable-watches", "--sanitize-secrets"} <= set(container["args"])


def test_the_compositions_call_the_function_by_the_name_that_it_is_installed_by(installed: Environment) -> None:
    kube = installed.control.kube
    compositions = kube.find(Kind("apiextensions.crossplane.io/v1", "Composition"))
    steps = [step for composition in compositions for step in composition["spec"]["pipeline"]]
    assert len(compositions) == 4
    assert {step["functionRef"]["name"] for step in steps} == {FUNCTION}
    assert [f["metadata"]["name"] for f in kube.find(Kind("pkg.crossplane.io/v1", "Function"))] == [FUNCTION]


def test_ml_teams_may_have_deployments_and_see_tiers_but_neither_change_tiers_nor_see_objects(
    installed: Environment,
) -> None:
    who = "--as=someone@ml-team"
    installed.shell(f"kubectl create rolebinding editors -n {TEAM} --clusterrole=edit --user=someone@ml-team")
    installed.shell(f"kubectl create rolebinding viewers -n {SYSTEM} --clusterrole=view --user=someone@ml-team")

    def may(verb: str, resource: str, namespace: str) -> str:
        return installed.shell(f"kubectl auth can-i {verb} {resource} -n {namespace} {who} || true").splitlines()[-1]

    deadline = time.monotonic() + 20
    while may("create", "modeldeployments.modelplane.ai", TEAM) == "no" and time.monotonic() < deadline:
        time.sleep(1)  # until the roles are aggregated
    assert may("create", "modeldeployments.modelplane.ai", TEAM) == "yes"
    assert may("get", "kvoffloadtiers.modelplane.ai", SYSTEM) == "yes"
    assert may("update", "kvoffloadtiers.modelplane.ai", SYSTEM) == "no"
    assert may("get", "objects.kubernetes.m.crossplane.io", SYSTEM) == "no"
    assert may("get", "secrets", SYSTEM) == "no"


def test_a_tier_of_each_backend_rolls_out_and_turns_ready(installed: Environment, ledger: Ledger) -> None:
    kube, start, mark = installed.control.kube, time.monotonic(), ledger.mark()
    for example in BACKENDS.values():
        kube.apply(*example_secrets(example), example_tier(example, "east"))
    for backend, example in BACKENDS.items():
        name = example_tier(example, "east")["metadata"]["name"]
        tier = kube.wait(TIER, name, SYSTEM, conditions(**READY), 150, f"({backend}) is ready")
        say(f"{backend} is ready after {time.monotonic() - start:.0f} s")
        agents = tier["status"]["agents"]
        assert agents == ("n/a" if backend in ("Nixl", "AIBrix") else "2/2"), (backend, agents)
    assert not ledger.since(mark, "deleted", "changed")


def test_an_engine_of_each_backend_runs_attached(installed: Environment, ledger: Ledger) -> None:
    kube, mark = installed.control.kube, ledger.mark()
    kube.apply(*(example_deployment(example) for example in BACKENDS.values()))
    for backend, example in BACKENDS.items():
        engine = kube.wait(MODEL_DEPLOYMENT, example, TEAM, RUNS, 120, f"({backend}) runs")
        say(f"{example}: {engine['status']['kvCache']}")
    assert not ledger.since(mark, "deleted", "changed")


def test_a_tier_that_is_ready_is_written_no_more(installed: Environment) -> None:
    def versions() -> dict[str, str]:
        found = [*installed.control.kube.find(OBJECT), *installed.control.kube.find(TIER)]
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in found}

    time.sleep(5)
    before = versions()
    installed.shell(f"kubectl annotate kvoffloadtiers -n {SYSTEM} --all tests/poke=1 --overwrite")
    time.sleep(5)
    after = versions()
    assert {n: v for n, v in after.items() if n.startswith("kvtier-")} == {
        n: v for n, v in before.items() if n.startswith("kvtier-")
    }


def test_a_node_joins_and_leaves_and_status_follows_at_once(installed: Environment, small: str) -> None:
    kube, west = installed.control.kube, installed.clusters["west"]
    for count, change in ((3, west.add_node), (2, west.remove_node)):
        start = time.monotonic()
        change("gpu-c")
        kube.wait(TIER, small, SYSTEM, has_agents(f"{count}/{count}"), 30, f"has {count} agents")
        kube.wait(TIER, small, SYSTEM, conditions(Ready="True", RolledOut="True"))
        say(f"{count} nodes: status follows after {time.monotonic() - start:.0f} s")
    west.forget_node("gpu-c")


def test_without_watches_status_follows_with_the_providers_poll(installed: Environment, small: str) -> None:
    kube, west = installed.control.kube, installed.clusters["west"]
    config = Kind("pkg.crossplane.io/v1beta1", "DeploymentRuntimeConfig")
    before = kube.get(config, PROVIDER)
    assert before
    (container,) = before["spec"]["deploymentTemplate"]["spec"]["template"]["spec"]["containers"]
    documented = list(container["args"])
    container["args"] = ["--sanitize-secrets", "--poll=20s"]
    body = {"spec": before["spec"]}
    kube.patch(config, PROVIDER, None, body)
    _provider_runs(installed, "--poll=20s")
    time.sleep(10)  # it reads everything once when it starts
    start = time.monotonic()
    west.add_node("gpu-d")
    west.kube.wait(DAEMON_SET, _daemon_set(installed), NAMESPACE, lambda d: d["status"].get("numberReady") == 3, 30)
    on_cluster = time.monotonic() - start
    kube.wait(TIER, small, SYSTEM, has_agents("3/3"), 90, "has three agents")
    lag = time.monotonic() - start - on_cluster
    say(f"without watches: {on_cluster:.0f} s on the cluster, status {lag:.0f} s later")
    container["args"] = documented
    kube.patch(config, PROVIDER, None, body)
    _provider_runs(installed, "--enable-watches")
    west.remove_node("gpu-d")
    kube.wait(TIER, small, SYSTEM, has_agents("2/2"), 60, "has two agents again")
    west.forget_node("gpu-d")


def test_a_pool_without_nodes_is_ready_and_does_not_hold_its_engines(installed: Environment) -> None:
    kube, west = installed.control.kube, installed.clusters["west"]
    kube.apply(agents_tier("west", "later", placement__nodeSelector={"pool": "later"}))
    tier = kube.wait(TIER, "later", SYSTEM, conditions(Ready="True", AgentsAvailable="NoNodes"))
    assert condition(tier, "AgentsReady")[0] == "True"
    kube.apply(deployment("scaled-from-zero", "later"))
    kube.wait(MODEL_DEPLOYMENT, "scaled-from-zero", TEAM, conditions(TierAttached="True"))
    # Its pod waits for a node, which an autoscaler brings because of it.
    (pod,) = wait_until(lambda: west.kube.find(POD, NAMESPACE, field_selector="spec.nodeName="), 30, "its pod is there")
    assert pod["spec"]["nodeSelector"]["pool"] == "later"
    west.add_node("gpu-later", labels={"pool": "later"})
    kube.wait(MODEL_DEPLOYMENT, "scaled-from-zero", TEAM, conditions(Ready="True"))
    kube.wait(TIER, "later", SYSTEM, has_agents("1/1"))


def has_agents(count: str) -> Callable[[Manifest], object]:
    """Ask of a tier that its status says so many agents, such as 2/2."""
    return lambda tier: tier["status"]["agents"] == count


def _daemon_set(installed: Environment) -> str:
    (found,) = installed.clusters["west"].kube.find(DAEMON_SET, NAMESPACE)
    name: str = found["metadata"]["name"]
    return name


def _provider_runs(installed: Environment, flag: str) -> None:
    """Wait until provider-kubernetes runs with a flag."""

    def runs(deployment: Manifest) -> bool:
        return flag in json.dumps(deployment["spec"]) and condition(deployment, "Available")[0] == "True"

    name = installed.runtime.deployment(PROVIDER)["metadata"]["name"]
    installed.control.kube.wait(DEPLOYMENT, name, "crossplane-system", runs, 60, f"has {flag}")
