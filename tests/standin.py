"""A stand-in for provider-kubernetes and a cluster with kubelets, neither of which runs in these tests.

It makes what is observed in pass n+1 from what was desired in pass n, in the shapes that provider-kubernetes 1.2.0 and
Kubernetes 1.34 give.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function.kube import Manifest
from function.render import Rendered, answered, outcome, render
from tests import aibrix

_KEY = "crossplane.io/composition-resource-name"


def observe(
    rendered: Rendered,
    before: Sequence[Manifest] = (),
    *,
    nodes: int = 2,
    ready: int | None = None,
    updated: int | None = None,
    surge: int = 0,
    reachable: bool = True,
    controller: bool = True,
) -> list[Manifest]:
    """Observe what was desired.

    Args:
        rendered: The pass before.
        before: What was observed in it: what the cluster holds while it cannot be reached.
        nodes: Nodes that run agents.
        ready: Pods of each workload that are ready; all by default.
        updated: Pods of each workload that run the newest revision; all by default.
        surge: Pods of a new revision that are there beside a Deployment's old ones, and not ready.
        reachable: Whether the provider reaches the cluster.
        controller: Whether AIBrix's controller runs there, and makes what a KVCache asks for.

    Returns:
        The Objects, and other composed resources, as the function would observe them.
    """
    known = {manifest["metadata"]["annotations"][_KEY]: manifest for manifest in before}
    caches = _caches(rendered) if controller else {}
    return [
        _object(manifest, known.get(key), nodes, ready, updated, surge, reachable, caches)
        if manifest["kind"] == "Object"
        else copy.deepcopy(manifest)
        for key, manifest in rendered.composed.items()
    ]


def states(
    composite: Manifest,
    found: Sequence[Manifest],
    desired: Mapping[str, Manifest] = MappingProxyType({}),
    kept: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> tuple[fnv1.RunFunctionRequest, fnv1.RunFunctionRequest]:
    """Give the last request of a composite's first reconcile, and of one when all that it composed is there and ready.

    Args:
        composite: The composite, as written.
        found: What a control plane holds.
        desired: What earlier steps of the pipeline desire, by key.
        kept: What an API server makes of a manifest; by default nothing.
    """
    composite, found = kept(composite), [*map(kept, found)]
    first, rsp = answered(composite, [], found, desired)
    observed = observe(outcome(composite, rsp))
    composite = render(composite, observed, found, desired).composite
    steady, _ = answered(kept(composite), [*map(kept, observed)], found, desired)
    return first, steady


def _caches(rendered: Rendered) -> dict[str, Manifest]:
    """The workloads that AIBrix's controller makes, by name."""
    objects = [o["spec"]["forProvider"]["manifest"] for o in rendered.composed.values() if o["kind"] == "Object"]
    made = [m for cache in objects if cache["kind"] == "KVCache" for m in aibrix.made(cache)]
    return {m["metadata"]["name"]: m for m in made if m["kind"] in {"Deployment", "StatefulSet"}}


def _object(  # noqa: PLR0917
    desired: Manifest,
    before: Manifest | None,
    nodes: int,
    ready: int | None,
    updated: int | None,
    surge: int,
    reachable: bool,
    caches: dict[str, Manifest],
) -> Manifest:
    observed = copy.deepcopy(desired)
    # The API server's defaults.
    observed["spec"] = {
        "managementPolicies": ["*"],
        "watch": False,
        "readiness": {"policy": "SuccessfulCreate"},
        **observed["spec"],
    }
    if not reachable:
        message = "cannot connect to the cluster: dial tcp: connection refused"
        synced = _condition("Synced", "False", "ReconcileError", message)
        status = copy.deepcopy((before or {}).get("status", {}))
        kept = [c for c in status.get("conditions", []) if c["type"] == "Ready"]
        return {**observed, "status": {**status, "conditions": [*kept, synced]}}
    remote = copy.deepcopy(desired["spec"]["forProvider"]["manifest"])
    if observed["spec"]["managementPolicies"] == ["Observe"]:
        made = caches.get(remote["metadata"]["name"])
        if made is None:
            absent = _condition("Synced", "False", "ReconcileError", "external resource does not exist")
            return {**observed, "status": {"conditions": [absent]}}
        remote = copy.deepcopy(made)
    generation = _generation(remote, before)
    remote["metadata"]["generation"] = generation
    healthy = True
    if remote["kind"] == "DaemonSet":
        counts = {
            "currentNumberScheduled": nodes,
            "desiredNumberScheduled": nodes,
            "numberReady": nodes if ready is None else ready,
            "updatedNumberScheduled": nodes if updated is None else updated,
            "numberMisscheduled": 0,
        }
        # Kubernetes leaves this one out at 0.
        remote["status"] = {k: v for k, v in counts.items() if v or k != "updatedNumberScheduled"}
        rolled = counts["updatedNumberScheduled"] == nodes or remote["spec"]["updateStrategy"]["type"] == "OnDelete"
        healthy = counts["numberReady"] == nodes and rolled
    elif remote["kind"] in {"Deployment", "StatefulSet"}:
        replicas = remote["spec"]["replicas"]
        stateful = remote["kind"] == "StatefulSet"
        surge = 0 if stateful else surge
        counts = {
            "replicas": replicas + surge,
            "readyReplicas": replicas if ready is None else min(ready, replicas),
            "updatedReplicas": surge or (replicas if updated is None else min(updated, replicas)),
        }
        counts["availableReplicas"] = counts["readyReplicas"]
        if stateful:
            # Pods of the revision before; those of a finished rollout count as both.
            rolled = counts["updatedReplicas"] == replicas
            counts["currentReplicas"] = replicas if rolled else replicas - counts["updatedReplicas"]
        healthy = all(counts[count] == replicas for count in counts if count != "currentReplicas")
        # Kubernetes leaves zeros out, but for two of a StatefulSet's.
        always = {"replicas", "availableReplicas"} if stateful else set()
        remote["status"] = {k: v for k, v in counts.items() if v or k in always}
    elif remote["kind"] == "Secret":
        remote["data"] = {"redacted": ""}  # the provider runs with --sanitize-secrets
    if "status" in remote:
        remote["status"]["observedGeneration"] = generation
    observed["status"] = {
        "atProvider": {"manifest": remote},
        "conditions": [
            _condition("Ready", "True" if healthy else "False", "Available" if healthy else "Unavailable"),
            _condition("Synced", "True", "ReconcileSuccess"),
        ],
    }
    return observed


def _generation(remote: Manifest, before: Manifest | None) -> int:
    was: dict[str, Any] = ((before or {}).get("status", {}).get("atProvider", {})).get("manifest", {})
    if not was:
        return 1
    generation: int = was["metadata"].get("generation", 1)
    return generation if was.get("spec") == remote.get("spec") else generation + 1


def _condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-22T00:00:00Z",
    }
