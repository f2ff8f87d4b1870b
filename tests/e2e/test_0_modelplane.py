"""Beside Modelplane: the standalone install is refused, and the administrator's procedure attaches ModelReplicas.

Modelplane's XRDs, Composition and function are stood in for, in its shapes. With MODELPLANE=a checkout of it, they are
its own.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import docs, install
from tests.e2e.conftest import say
from tests.e2e.environment import SYSTEM, TEAM, Environment
from tests.e2e.kube import CLUSTER, DEPLOYMENT, SECRET, TIER, Kind, Manifest, condition, conditions
from tests.e2e.ledger import NAMESPACE, Ledger
from tests.e2e.manifests import agents_tier
from tests.e2e.processes import Broken, wait_until

PAGE = "docs/modelplane.md"
STEP = "modelplane-modelplanecompose-model-replica"
REPLICA = Kind("modelplane.ai/v1alpha1", "ModelReplica")
XRD = Kind("apiextensions.crossplane.io/v2", "CompositeResourceDefinition")
COMPOSITION = Kind("apiextensions.crossplane.io/v1", "Composition")
CONFIGURATION = Kind("pkg.crossplane.io/v1", "Configuration")
CONFIG = Kind("kubernetes.m.crossplane.io/v1alpha1", "ClusterProviderConfig")
_KINDS = {
    "ModelReplica": ("modelreplicas", "Namespaced"),
    "ModelDeployment": ("modeldeployments", "Namespaced"),
    "InferenceCluster": ("inferenceclusters", "Cluster"),
}
UPSTREAM = Path(os.environ["MODELPLANE"]) if os.environ.get("MODELPLANE") else None


@pytest.fixture(scope="module")
def modelplane(base: Environment) -> Iterator[Environment]:
    """Modelplane's package, its function, and an InferenceCluster of its shape that reaches the cluster east."""
    kube, east = base.control.kube, base.clusters["east"]
    east.add_devices("gpu.nvidia.com", "gpu.nvidia.com", 8, {"type": {"string": "gpu"}})
    base.shell("kubectl label nodes gpu-a gpu-b modelplane.ai/pool=gpu", KUBECONFIG=str(east.kubeconfig))
    package = install.push_function(base, STEP, _step(), "modelreplica" if UPSTREAM is None else "function.main")
    function = {"apiVersion": "pkg.crossplane.io/v1", "kind": "Function", "metadata": {"name": STEP}}
    kube.apply({**function, "spec": {"package": package}})
    for version in ("v1", "v2"):
        _push(base, version)
    kube.apply(_configuration(base, "v1"))
    kube.wait(CONFIGURATION, "modelplane", None, conditions(Installed="True", Healthy="True"))
    kube.wait(Kind("pkg.crossplane.io/v1", "Function"), STEP, None, conditions(Healthy="True"))
    _declare(base)
    yield base
    kube.remove(REPLICA, "llama-eu-0", TEAM)
    kube.remove(TIER, "inprocess", SYSTEM)
    kube.remove(CLUSTER, "byo")
    kube.remove(CONFIG, "byo-cluster-kubeconfig")
    # Not in the foreground: the package would go on making its XRDs while they are deleted.
    kube.remove(CONFIGURATION, "modelplane", foreground=False)
    kube.remove(Kind("pkg.crossplane.io/v1", "Function"), STEP, foreground=False)
    for plural, _ in _KINDS.values():
        kube.gone(XRD, f"{plural}.modelplane.ai")


def test_the_standalone_install_is_refused_and_nothing_changes(modelplane: Environment) -> None:
    kube = modelplane.control.kube
    before = {name: _xrd(modelplane, name) for name in ("modeldeployments", "inferenceclusters")}
    with pytest.raises(Broken, match="Modelplane is here"):
        install.run(modelplane, "Without Modelplane", VERSION=install.VERSION)
    assert kube.get(CONFIGURATION, "kv-offload-standalone") is None
    # Whoever does not look is refused by Crossplane: another package owns these XRDs.
    package = f"{modelplane.registry_host}/standalone-configuration:{install.VERSION}"
    meta = {"apiVersion": CONFIGURATION.api_version, "kind": CONFIGURATION.kind}
    kube.apply({**meta, "metadata": {"name": "kv-offload-standalone"}, "spec": {"package": package}})
    kube.wait(CONFIGURATION, "kv-offload-standalone", None, conditions(Healthy="False"))
    assert {name: _xrd(modelplane, name) for name in before} == before
    kube.remove(CONFIGURATION, "kv-offload-standalone", foreground=False)
    assert {name: _xrd(modelplane, name) for name in before} == before


def test_adding_the_step_attaches_replicas_that_name_a_tier(modelplane: Environment, ledger: Ledger) -> None:
    kube = modelplane.control.kube
    tier = agents_tier("byo", "inprocess", lmcache__mode="InProcess", placement__gpusPerNode=8)
    kube.apply(tier, _replica())
    kube.wait(REPLICA, "llama-eu-0", TEAM, conditions(Synced="True", Ready="True"), 120)
    assert "LMCache" not in _engine(modelplane)
    modelplane.shell(docs.commands(PAGE, "Before you start") + docs.commands(PAGE, "Add the step"))
    assert _steps(modelplane) == ["compose-model-replica", install.FUNCTION]
    kube.wait(REPLICA, "llama-eu-0", TEAM, conditions(Synced="True", Ready="True", TierAttached="True"), 120)
    wait_until(lambda: "LMCacheConnectorV1" in _engine(modelplane), 60, "the engine is attached")
    changed = [c for c in ledger.since(0, "changed") if c.kind == "Deployment"]
    assert len(changed) == 1, changed
    kube.wait(TIER, "inprocess", SYSTEM, lambda t: t["status"]["attachments"] == 1, 90, "has an attachment")


def test_reconciles_and_upgrades_of_the_package_undo_nothing(modelplane: Environment, ledger: Ledger) -> None:
    kube = modelplane.control.kube
    _settle(modelplane)
    with ledger.unharmed(5):
        revision = "configurationrevision -l pkg.crossplane.io/package=modelplane"
        modelplane.shell(f"kubectl annotate {revision} tests/poke=1 --overwrite")
        time.sleep(3)
        assert _steps(modelplane)[-1] == install.FUNCTION
        kube.apply(_configuration(modelplane, "v2"))
        wait_until(lambda: "compose-usages" in _steps(modelplane), 60, "the package is upgraded")
        assert _steps(modelplane) == ["compose-model-replica", "compose-usages", install.FUNCTION]
        kube.wait(REPLICA, "llama-eu-0", TEAM, conditions(Synced="True", Ready="True", TierAttached="True"), 120)


def test_a_renamed_provider_config_moves_nothing(modelplane: Environment, ledger: Ledger) -> None:
    kube = modelplane.control.kube
    with ledger.unharmed():
        kube.patch(CLUSTER, "byo", None, {"status": {"providerConfigRef": {"name": "another"}}}, status=True)
        kube.patch(TIER, "inprocess", SYSTEM, {"metadata": {"annotations": {"tests/poke": "1"}}})
        tier = kube.wait(TIER, "inprocess", SYSTEM, conditions(ClusterReachable="ProviderConfigChanged"), 90)
        say(condition(tier, "ClusterReachable")[2])
        _name_config(modelplane)
        kube.patch(TIER, "inprocess", SYSTEM, {"metadata": {"annotations": {"tests/poke": "2"}}})
        kube.wait(TIER, "inprocess", SYSTEM, conditions(ClusterReachable="True", Ready="True"), 90)


def test_taking_the_step_out_detaches_once(modelplane: Environment, ledger: Ledger) -> None:
    kube = modelplane.control.kube
    _settle(modelplane)
    mark = ledger.mark()
    (take_out, *_) = docs.blocks(PAGE, "Take it out")
    modelplane.shell(take_out)
    wait_until(lambda: install.FUNCTION not in _steps(modelplane), 60, "the step is gone")
    modelplane.shell("kubectl annotate modelreplicas -A --all tests/poke=3 --overwrite")
    wait_until(lambda: "LMCache" not in _engine(modelplane), 90, "the engine is detached")
    kube.wait(REPLICA, "llama-eu-0", TEAM, conditions(Synced="True", Ready="True"), 90)
    assert len([c for c in ledger.since(mark, "changed") if c.kind == "Deployment"]) == 1


def _step() -> dict[str, str]:
    """The files of compose-model-replica, by path."""
    if UPSTREAM is None:
        return {"modelreplica.py": (Path(__file__).parent / "modelreplica.py").read_text()}
    roots = (UPSTREAM / "functions" / "compose-model-replica", UPSTREAM / "schemas" / "python")
    files = [(root, p) for root in roots for p in root.rglob("*.py") if "tests" not in p.parts]
    return {str(p.relative_to(root)): p.read_text() for root, p in files}


def _push(world: Environment, version: str) -> None:
    """Push a version of Modelplane's package; the second one has a step more."""
    root = world.folder / "packages" / f"modelplane-{version}"
    root.mkdir(parents=True)
    meta = {"apiVersion": "meta.pkg.crossplane.io/v1", "kind": "Configuration", "metadata": {"name": "modelplane"}}
    documents: dict[str, Manifest] = {"crossplane": {**meta, "spec": {"crossplane": {"version": ">=v2.3.0"}}}}
    for kind, (plural, scope) in _KINDS.items():
        documents[plural] = _definition(kind, plural, scope)
    composition = _composition()
    if version == "v2":
        composition["spec"]["pipeline"].append({"step": "compose-usages", "functionRef": {"name": STEP}})
    documents["composition"] = composition
    for name, document in documents.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
    install.push(world, root, f"{world.registry_host}/modelplane:{version}.0.0")


def _definition(kind: str, plural: str, scope: str) -> Manifest:
    if UPSTREAM is not None:
        read: Manifest = yaml.safe_load((UPSTREAM / "apis" / plural / "definition.yaml").read_text())
        return read
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    # Of a status, Crossplane keeps what is a property alone.
    found = {"providerConfigRef": free, "namespace": {"type": "string"}, "gpuPools": {"type": "array", "items": free}}
    status = {"type": "object", "properties": found}
    schema = {"type": "object", "properties": {"spec": free, "status": status}}
    version = {"name": "v1alpha1", "served": True, "referenceable": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural}
    spec = {"group": "modelplane.ai", "scope": scope, "names": names, "versions": [version]}
    meta = {"name": f"{plural}.modelplane.ai"}
    return {"apiVersion": XRD.api_version, "kind": XRD.kind, "metadata": meta, "spec": spec}


def _composition() -> Manifest:
    if UPSTREAM is not None:
        read: Manifest = yaml.safe_load((UPSTREAM / "apis" / "modelreplicas" / "composition.yaml").read_text())
        return read
    pipeline = [{"step": "compose-model-replica", "functionRef": {"name": STEP}}]
    of = {"apiVersion": REPLICA.api_version, "kind": REPLICA.kind}
    return {
        "apiVersion": COMPOSITION.api_version,
        "kind": COMPOSITION.kind,
        "metadata": {"name": "modelreplicas.modelplane.ai"},
        "spec": {"compositeTypeRef": of, "mode": "Pipeline", "pipeline": pipeline},
    }


def _configuration(world: Environment, version: str) -> Manifest:
    return {
        "apiVersion": CONFIGURATION.api_version,
        "kind": CONFIGURATION.kind,
        "metadata": {"name": "modelplane"},
        "spec": {"package": f"{world.registry_host}/modelplane:{version}.0.0"},
    }


def _declare(world: Environment) -> None:
    """Make an InferenceCluster as Modelplane leaves it: with a ClusterProviderConfig, and its pools in the status."""
    kube, east = world.control.kube, world.clusters["east"]
    kubeconfig = yaml.safe_dump(east.kubeconfig_for(east.token))
    secret = {"namespace": SYSTEM, "name": "byo"}
    spec: dict[str, Any] = {"source": "Existing", "existing": {"secretRef": {"name": "byo", "key": "kubeconfig"}}}
    kube.apply(
        {
            "apiVersion": SECRET.api_version,
            "kind": SECRET.kind,
            "metadata": secret,
            "stringData": {"kubeconfig": kubeconfig},
        },
        {
            "apiVersion": CONFIG.api_version,
            "kind": CONFIG.kind,
            "metadata": {"name": "byo-cluster-kubeconfig"},
            "spec": {"credentials": {"source": "Secret", "secretRef": {**secret, "key": "kubeconfig"}}},
        },
        {
            "apiVersion": CLUSTER.api_version,
            "kind": CLUSTER.kind,
            "metadata": {"name": "byo"},
            "spec": {"cluster": spec, "nodePools": [{"name": "gpu", "className": "h100", "nodeCount": 2}]},
        },
    )
    _name_config(world)


def _name_config(world: Environment) -> None:
    gpu = {"name": "gpu", "claim": "DRA", "driver": "gpu.nvidia.com", "deviceClassName": "gpu.nvidia.com", "count": 8}
    pool = {"name": "gpu", "nodes": 2, "devices": [gpu]}
    status = {"providerConfigRef": {"name": "byo-cluster-kubeconfig"}, "gpuPools": [pool], "namespace": SYSTEM}
    kube = world.control.kube
    kube.patch(CLUSTER, "byo", None, {"status": status}, status=True)


def _replica() -> Manifest:
    container = {
        "name": "engine",
        "image": "vllm/vllm-openai:v0.33.0",
        "command": ["vllm", "serve", "Qwen/Qwen3-8B"],
        "args": ["--port=8000"],
    }
    member = {
        "role": "Standalone",
        "nodePoolName": "gpu",
        "deviceRequests": [{"name": "gpu", "deviceClassName": "gpu.nvidia.com", "count": 1}],
        "template": {
            "metadata": {"annotations": {"kv-offload.modelplane.ai/tier": "inprocess"}},
            "spec": {"containers": [container]},
        },
    }
    engine = {"name": "main", "copies": 1, "members": [member]}
    return {
        "apiVersion": REPLICA.api_version,
        "kind": REPLICA.kind,
        "metadata": {"name": "llama-eu-0", "namespace": TEAM, "labels": {"modelplane.ai/deployment": "llama"}},
        "spec": {"clusterName": "byo", "engines": [engine]},
    }


def _xrd(world: Environment, plural: str) -> str:
    found = world.control.kube.get(XRD, f"{plural}.modelplane.ai")
    assert found
    owners = [ref for ref in found["metadata"]["ownerReferences"] if ref.get("controller")]
    return json.dumps([found["spec"], [owner["name"] for owner in owners]], sort_keys=True)


def _steps(world: Environment) -> list[str]:
    found = world.control.kube.get(COMPOSITION, "modelreplicas.modelplane.ai")
    return [step["step"] for step in (found or {"spec": {"pipeline": []}})["spec"]["pipeline"]]


def _engines(world: Environment) -> list[Manifest]:
    """The Deployments of engines on the cluster."""
    found = world.clusters["east"].kube.find(DEPLOYMENT, NAMESPACE)
    return [d for d in found if d["spec"]["template"]["spec"]["containers"][0]["name"] == "engine"]


def _engine(world: Environment) -> str:
    """The engine's pod template on the cluster, as text."""
    return json.dumps([engine["spec"]["template"] for engine in _engines(world)])


def _settle(world: Environment) -> None:
    """Wait until the engine's roll is over."""
    (engine,) = _engines(world)

    def rolled(d: Manifest) -> bool:
        status = d["status"]
        return bool(status.get("replicas") == status.get("updatedReplicas") == status.get("availableReplicas") == 1)

    world.clusters["east"].kube.wait(DEPLOYMENT, engine["metadata"]["name"], NAMESPACE, rolled, 90, "has rolled")
    time.sleep(3)
