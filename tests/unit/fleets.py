"""Stories of fleets: a KVOffloadFleet over several passes, with clusters and tiers that live beside it.

A tier's own composer is stood in for by what it would say: `ill` names the clusters whose tiers do not become ready,
and `refused` those whose tiers the API server does not take.
"""

import copy
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from function import kube
from function.kube import Manifest
from function.render import Rendered, render

NAMESPACE = "modelplane-system"
UID = "f1ee7000"
_KEY = "crossplane.io/composition-resource-name"

Ill = Callable[[str, Manifest], bool]


def fleet(rollout: Manifest | None = None, **spec: Any) -> Manifest:
    """Write the fleet `h200`: LMCache with 64 GiB per node on clusters labelled gpu=h200."""
    template = {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}}
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadFleet",
        "metadata": {"name": "h200", "namespace": NAMESPACE, "uid": UID, "generation": 1},
        "spec": {
            "clusterSelector": {"matchLabels": {"gpu": "h200"}},
            "template": {"spec": template},
            **({"rollout": rollout} if rollout else {}),
            **spec,
        },
    }


def cluster(name: str, **labels: str) -> Manifest:
    """Write an InferenceCluster that can be delivered to."""
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": name, "labels": {"gpu": "h200", **labels}},
        "status": {
            "providerConfigRef": {"name": f"{name}-kubeconfig"},
            "gpuPools": [{"name": "h200", "devices": [{"driver": "gpu.nvidia.com", "count": 8}]}],
        },
    }


class Refused(AssertionError):
    """A deletion that Crossplane's webhook refuses, by which a composite's whole pass fails."""


class FleetStory:
    """A fleet's life. Change `fleet`, `clusters`, `ill`, `refused` and `tiers` between passes."""

    def __init__(self, of: Manifest, *clusters: Manifest) -> None:
        self.fleet = copy.deepcopy(of)
        self.clusters = {c["metadata"]["name"]: copy.deepcopy(c) for c in clusters}
        # The fleet's tiers, by cluster, and tiers that are none of its.
        self.tiers: dict[str, Manifest] = {}
        self.others: list[Manifest] = []
        # Clusters whose tiers are not ready, now.
        self.ill: Collection[str] | Ill = ()
        self.refused: Collection[str] = ()
        # Clusters whose tiers were ready, have changed, and have not been ready since; those whose tiers ever were, and
        # those whose tiers are.
        self.left: set[str] = set()
        self.served: set[str] = set()
        self.well: set[str] = set()
        self.last: Rendered | None = None

    @property
    def template(self) -> Manifest:
        """The spec of its tiers."""
        spec: Manifest = self.fleet["spec"]["template"]["spec"]
        return spec

    def change(self, gib: int) -> None:
        """Change the template so that every cluster's cache is lost."""
        self.template["lmcache"]["cpuTierGiBPerNode"] = gib

    def roll(self, **fields: Any) -> None:
        """Change spec.rollout."""
        self.fleet["spec"].setdefault("rollout", {}).update(fields)

    def use(self, *names: str) -> None:
        """Attach an engine to the tiers of these clusters."""
        for name in names:
            self.tiers[name]["metadata"]["labels"]["crossplane.io/in-use"] = "true"
            self.tiers[name]["status"]["attachments"] = 1

    # --- passes -----------------------------------------------------------------------------------------------

    def fleet_pass(self) -> Rendered:
        """Compose the fleet, and take what it desires, as Crossplane does."""
        required = [*self.clusters.values(), *self.others, *self.tiers.values()]
        observed = [copy.deepcopy(t) for t in self.tiers.values()]
        rendered = render(copy.deepcopy(self.fleet), observed, required)
        self.last = rendered
        if rendered.fatal:
            return rendered
        desired = {m["spec"]["inferenceClusterRef"]["name"]: m for m in tiers_of(rendered)}
        for name in self.tiers.keys() - desired.keys():
            if self.tiers[name]["metadata"]["labels"].get("crossplane.io/in-use"):
                raise Refused(name)
            del self.tiers[name]
            self.left.discard(name)
            self.served.discard(name)
            self.well.discard(name)
        unsynced = [f"tier-{name}" for name, manifest in desired.items() if not self._apply(name, manifest)]
        self.fleet["status"] = rendered.composite["status"]
        message = f"Unsynced resources: {_first(sorted(unsynced))}"
        synced = {"type": "Synced", "status": "False" if unsynced else "True", "message": message if unsynced else ""}
        self.fleet["status"]["conditions"].append(synced)
        return rendered

    def _apply(self, name: str, manifest: Manifest) -> bool:
        before = self.tiers.get(name)
        if before is None:
            if name in self.refused:
                return False
            name_, uid = (self.fleet["metadata"].get(field, UID) for field in ("name", "uid"))
            owner = {"kind": "KVOffloadFleet", "name": name_, "uid": uid, "controller": True}
            metadata = {**manifest["metadata"], "generation": 1, "ownerReferences": [owner]}
            self.tiers[name] = {**copy.deepcopy(manifest), "metadata": metadata, "status": {}}
            self.left.add(name)
            return True
        changed = before["spec"] != manifest["spec"]
        if changed and name in self.refused:
            return False
        for field in ("labels", "annotations"):
            before["metadata"][field] = {**before["metadata"].get(field, {}), **manifest["metadata"][field]}
        before["spec"] = copy.deepcopy(manifest["spec"])
        before["metadata"]["generation"] += changed
        if changed and name in self.well:
            self.left.add(name)
            self.well.discard(name)
        return True

    def tier_pass(self, *only: str) -> None:
        """Let every tier's own composer have a pass, or only those of some clusters."""
        for name, tier in self.tiers.items():
            if only and name not in only:
                continue
            ill = self.ill(name, tier) if callable(self.ill) else name in self.ill
            there = name in self.clusters
            generation = tier["metadata"]["generation"]
            states = {
                "ClusterReachable": ("True", "Reachable") if there else ("False", "ClusterNotFound"),
                "AgentsReady": ("False", "Rolling") if ill or not there else ("True", "AllReady"),
                "Ready": ("False", "Creating") if ill or not there else ("True", "Available"),
            }
            tier["status"]["conditions"] = [
                {
                    "type": type_,
                    "status": status,
                    "reason": reason,
                    "message": f"{type_} of {name}",
                    "observedGeneration": generation,
                }
                for type_, (status, reason) in states.items()
            ]
            self.well.discard(name)
            if not ill and there:
                self.well.add(name)
                tier["status"]["settledRevision"] = tier["metadata"]["annotations"][kube.ANNOTATION_REVISION]
                self.left.discard(name)
                self.served.add(name)

    def turn(self) -> Rendered:
        """Let fleet and tiers have a pass each."""
        rendered = self.fleet_pass()
        self.tier_pass()
        return rendered

    def settle(self, turns: int = 60) -> Rendered:
        """Go on until nothing changes any more."""
        before = ""
        for _ in range(turns):
            rendered = self.turn()
            now = json.dumps([self.tiers, self.fleet["status"]], sort_keys=True)
            if now == before:
                return rendered
            before = now
        raise AssertionError(f"not settled after {turns} turns")

    # --- what is seen -----------------------------------------------------------------------------------------

    def sizes(self) -> dict[str, int]:
        """The memory that each cluster's tier has, GiB per node."""
        return {name: t["spec"]["lmcache"]["cpuTierGiBPerNode"] for name, t in sorted(self.tiers.items())}

    def with_size(self, gib: int) -> set[str]:
        """The clusters whose tiers have so much memory."""
        return {name for name, size in self.sizes().items() if size == gib}


def tiers_of(rendered: Rendered) -> list[Manifest]:
    """The tiers that a fleet desires."""
    return [m for m in rendered.composed.values() if m["kind"] == "KVOffloadTier"]


def counts(rendered: Rendered) -> Mapping[str, int]:
    """What the printer columns show."""
    status = rendered.composite["status"]
    return {name: status[name] for name in ("clusters", "updated", "ready", "waiting", "failed")}


def _first(names: list[str]) -> str:
    """As Crossplane shortens a list."""
    if len(names) == 3:
        return f"{names[0]}, {names[1]}, and {names[2]}"
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f", and {rest} more" if rest > 0 else "")
