"""The CEL queries by which provider-kubernetes tells readiness, asked of the API server's own CEL.

A CRD is made whose rule is the query, so a field that Kubernetes does not have is an error as well. The stand-in that
plays the cluster in other tests says the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from function.kube import Manifest
from function.render import EXAMPLES, load, render
from tests.lint.schemas import schema_errors
from tests.render.changes import GONE, NOTHING, Changes, changed
from tests.standin import observe
from tests.tools import crossplane

EXAMPLE = "lmcache-current"
_NOT_READY = "not ready"


class State(NamedTuple):
    """A story: what the stand-in makes of the cluster, what is then changed in the manifest seen there, the verdict.

    `tier` changes the tier. `part` is the workload that is looked at, of `example`.
    """

    story: str
    part: str
    ready: bool
    cluster: Mapping[str, Any]
    seen: Changes = NOTHING
    tier: Changes = NOTHING
    example: str = EXAMPLE


AGENTS, ENGINE, MASTER, ETCD = "agents", "engine", "master", "etcd"
POOL = "mooncake-ha"
BY_HAND = {"spec.updateStrategy.type": "OnDelete"}
UNSEEN = {
    "status": {"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}
}

STATES = [
    State("all agents are ready", AGENTS, True, {"nodes": 8}),
    State("no node has an agent", AGENTS, True, {"nodes": 0}),
    State("an agent is not ready", AGENTS, False, {"nodes": 8, "ready": 7}),
    State("agents are replaced", AGENTS, False, {"nodes": 8, "updated": 3}),
    State("no agent is replaced yet", AGENTS, False, {"nodes": 8, "updated": 0}),
    State("agents wait to be replaced by hand", AGENTS, True, {"nodes": 8, "updated": 0}, tier=BY_HAND),
    State("an agent replaced by hand is not ready", AGENTS, False, {"nodes": 8, "ready": 7}, tier=BY_HAND),
    State("agents have no status", AGENTS, False, {}, {"status": GONE}),
    State("agents have the status of creation", AGENTS, False, {}, UNSEEN),
    State("a new spec of the agents is not seen yet", AGENTS, False, {}, {"metadata.generation": 2}),
    State("all replicas are ready", ENGINE, True, {}),
    State("a replica is not ready", ENGINE, False, {"ready": 1}),
    State("no replica is ready", ENGINE, False, {"ready": 0}),
    State("replicas are replaced", ENGINE, False, {"updated": 1}),
    State("no replica is replaced yet", ENGINE, False, {"updated": 0}),
    State("the engine has no status", ENGINE, False, {}, {"status": GONE}),
    State("the engine has an empty status", ENGINE, False, {}, {"status": {}}),
    State("a new replica fails beside an old one that serves", ENGINE, False, {"surge": 1}),
    State("no replica is wanted", ENGINE, True, {}, {"spec.replicas": 0, "status": {"observedGeneration": 1}}),
    State("a replica is left that nobody wants", ENGINE, False, {}, {"spec.replicas": 0}),
    State("a new spec of the engine is not seen yet", ENGINE, False, {}, {"metadata.generation": 2}),
    State("all masters are ready", MASTER, True, {}, example=POOL),
    State("a master is not ready", MASTER, False, {"ready": 2}, example=POOL),
    State("all members of etcd are ready", ETCD, True, {}, example=POOL),
    State("a member of etcd is not ready", ETCD, False, {"ready": 2}, example=POOL),
    State("members of etcd are replaced", ETCD, False, {"updated": 1}, example=POOL),
    State("no member of etcd is replaced yet", ETCD, False, {"updated": 0}, example=POOL),
    State("etcd has no status", ETCD, False, {}, {"status": GONE}, example=POOL),
    State("etcd has an empty status", ETCD, False, {}, {"status": {"replicas": 0}}, example=POOL),
    State("a new spec of etcd is not seen yet", ETCD, False, {}, {"metadata.generation": 2}, example=POOL),
]

_INTEGER = {"type": "integer"}
# What queries may read of a workload; Kubernetes' own schemas are asked whether it has these.
_WORKLOAD = {
    "metadata": {"type": "object", "properties": {"generation": _INTEGER}},
    "spec": {"type": "object", "properties": {"replicas": _INTEGER}},
    "status": {
        "type": "object",
        "properties": {
            **dict.fromkeys(
                (
                    "observedGeneration",
                    "desiredNumberScheduled",
                    "numberReady",
                    "updatedNumberScheduled",
                    "replicas",
                    "updatedReplicas",
                    "availableReplicas",
                    "readyReplicas",
                ),
                _INTEGER,
            ),
        },
    },
}


def crd(query: str) -> Manifest:
    """Write a CRD whose one rule is a query over `object`."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"object": {"type": "object", "properties": _WORKLOAD}},
        "x-kubernetes-validations": [{"rule": query.replace("object.", "self.object."), "message": _NOT_READY}],
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "queries.example.org"},
        "spec": {
            "group": "example.org",
            "names": {"kind": "Query", "listKind": "QueryList", "plural": "queries", "singular": "query"},
            "scope": "Cluster",
            "versions": [version],
        },
    }


def ask(query: str, manifest: Manifest, folder: Path) -> bool:
    """Ask a query about a manifest; what does not compile, or fails, is an error of the test."""
    file = folder / "crd.yaml"
    file.write_text(json.dumps(crd(query), indent=1))
    asked = {"apiVersion": "example.org/v1", "kind": "Query", "metadata": {"name": "x"}, "object": manifest}
    answer = crossplane.check_xrd(file, [{"name": "", "old": None, "new": asked}])
    assert answer["crdErrors"] == []
    errors = answer["cases"][0]["errors"]
    assert all(error.endswith(f": {_NOT_READY}") for error in errors), errors
    return not errors


def look(state: State) -> tuple[str, Manifest, bool]:
    """Give a workload's query, its manifest as the provider sees it, and what the stand-in says of it."""
    folder = EXAMPLES / state.example
    tier = changed(load(folder / "tier.yaml")[0], state.tier)
    required = [*load(folder / "required.yaml"), tier]
    composite = tier if state.part != ENGINE else load(folder / "deployment.yaml")[0]
    observed = observe(render(composite, (), required), **state.cluster)
    name = "crossplane.io/composition-resource-name"
    (carrier,) = (
        o
        for o in observed
        if o["spec"].get("readiness", {}).get("celQuery")
        and o["metadata"]["annotations"][name].startswith(f"{state.part}-")
    )
    (said,) = (c["status"] == "True" for c in carrier["status"]["conditions"] if c["type"] == "Ready")
    return carrier["spec"]["readiness"]["celQuery"], carrier["status"]["atProvider"]["manifest"], said


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.story)
def test_the_query_tells_readiness_when(state: State, tmp_path: Path) -> None:
    query, manifest, said = look(state)
    seen = changed(manifest, state.seen)
    assert schema_errors(seen) == []
    assert ask(query, seen, tmp_path) is state.ready
    if not state.seen:
        assert said is state.ready


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("query", ["has(object.status.numberRedy)", "object.status.numberReady", "object.status ="])
def test_a_query_with_a_mistake_is_found(query: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        ask(query, {}, tmp_path)
