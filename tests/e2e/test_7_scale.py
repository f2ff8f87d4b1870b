"""Three hundred clusters under one fleet, on a real control plane: it rolls out, and all of its tiers chat for an hour.

What is not real: the clusters are names of one, and their tiers need nothing there (AIBrix's own memory), so that what
is measured is the control plane's work for the fleet, and not that of three hundred clusters.
"""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from function import kube as names
from tests.e2e import manifests
from tests.e2e.conftest import COUNTS, say
from tests.e2e.environment import SYSTEM, Environment
from tests.e2e.kube import AWAY, CLUSTER, FLEET, TIER, Kube, Manifest, condition
from tests.e2e.processes import wait_until

NAME = "many"
CLUSTERS = 300
# How often a tier says something in an hour: every ten minutes.
CHANGES = 6
_THREADS = 4


def cluster(number: int) -> Manifest:
    """One of the clusters, which are all reached as the cluster east is."""
    existing = {"secretRef": {"name": "east-kubeconfig"}}
    return {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.kind,
        "metadata": {"name": f"{NAME}-{number:03}", "labels": {NAME: "yes"}},
        "spec": {"cluster": {"source": "Existing", "existing": existing}},
    }


def fleet(allowed: str) -> Manifest:
    """The fleet, all of whose clusters change at once."""
    template = {"backend": "AIBrix", "aibrix": {"offloading": {}}, "allowedNamespaces": {"from": allowed}}
    return manifests.fleet(NAME, template, maxUnavailable="100%")


class Watcher:
    """Looks at the fleet again and again: whether Crossplane answers to it, and how often it is written."""

    def __init__(self, world: Environment) -> None:
        self._kube = Kube(world.control.kubeconfig)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.unresponsive: set[str] = set()
        # What was written of it, by version: all but its managed fields.
        self.versions: dict[str, Manifest] = {}
        self._thread.start()

    def _look(self) -> None:
        while not self._ends.wait(0.2):
            try:
                found = self._kube.get(FLEET, NAME, SYSTEM)
            except AWAY:
                continue
            if found:
                del found["metadata"]["managedFields"]
                self.versions[found["metadata"]["resourceVersion"]] = found
                status, reason, message = condition(found, "Responsive")
                if status == "False":
                    self.unresponsive.add(f"{reason}: {message}")

    def end(self) -> None:
        """Look no more."""
        self._ends.set()
        self._thread.join()


@pytest.fixture(scope="module")
def many(installed: Environment) -> Iterator[Environment]:
    """The clusters, each with a provider config, and the fleet."""
    kube = installed.control.kube
    kube.apply(*map(cluster, range(CLUSTERS)))

    def known() -> bool:
        found = kube.find(CLUSTER, label_selector=f"{NAME}=yes")
        return len([c for c in found if c.get("status", {}).get("providerConfigRef")]) == CLUSTERS

    wait_until(known, 180, "all clusters have a provider config")
    say(f"{CLUSTERS} clusters are declared")
    yield installed


@pytest.fixture(scope="module")
def watcher(many: Environment) -> Iterator[Watcher]:
    """Who looks at the fleet from its beginning to its end."""
    made = Watcher(many)
    yield made
    made.end()


def updated(world: Environment, allowed: str) -> Manifest:
    """Wait until all clusters have a tier of this kind, and were ready with it."""

    def holds(found: Manifest) -> bool:
        status = found.get("status", {})
        current = status.get("observedGeneration") == found["metadata"]["generation"]
        return bool(current and status.get("updated") == status.get("ready") == CLUSTERS)

    found = world.control.kube.wait(FLEET, NAME, SYSTEM, holds, 300, "is rolled out everywhere")
    tiers = world.control.kube.find(TIER, SYSTEM, label_selector=f"{names.LABEL_FLEET}={NAME}")
    assert len(tiers) == CLUSTERS
    assert {t["spec"]["allowedNamespaces"]["from"] for t in tiers} == {allowed}
    return found


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Say what of two versions of an object differs, but for the times and versions of writes."""
    if old == new or path.endswith(("resourceVersion", "lastTransitionTime")):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in sorted({*old, *new}) for d in differences(old.get(key), new.get(key), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for n, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{path}[{n}]")]
    return [f"{path}: {old} -> {new}"]


def chat(world: Environment) -> None:
    """Let every tier change as often as in an hour, by what is of no meaning to the fleet."""

    def some(first: int) -> None:
        kube = Kube(world.control.kubeconfig)
        for change in range(CHANGES):
            for number in range(first, CLUSTERS, _THREADS):
                name = names.tier_of_fleet(NAME, f"{NAME}-{number:03}")
                kube.patch(TIER, name, SYSTEM, {"metadata": {"annotations": {"tests/chat": str(change)}}})

    threads = [threading.Thread(target=some, args=(first,)) for first in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_three_hundred_clusters_get_their_tiers(many: Environment, watcher: Watcher) -> None:
    start = time.monotonic()
    many.control.kube.apply(fleet("All"))
    found = updated(many, "All")
    COUNTS["seconds until 300 clusters had their tiers"] = round(time.monotonic() - start)
    assert (found["status"]["failed"], found["status"].get("notWell")) == (0, None)
    assert not watcher.unresponsive


def test_an_hour_of_chatter_does_not_open_the_circuit_breaker_and_hardly_writes_the_fleet(
    many: Environment, watcher: Watcher
) -> None:
    time.sleep(10)
    watcher.versions.clear()
    before, start = many.counted(), time.monotonic()
    chat(many)
    say(f"{CLUSTERS * CHANGES} changes took {time.monotonic() - start:.0f} s")
    time.sleep(15)
    reconciles = many.counted()["reconciles of composites"] - before["reconciles of composites"]
    COUNTS["reconciles of composites for an hour's changes of 300 tiers"] = reconciles
    COUNTS["writes of the fleet meanwhile"] = len(watcher.versions) - 1
    assert watcher.unresponsive == set()
    for before_, after in pairwise(watcher.versions.values()):
        say(f"the fleet was written: {differences(before_, after)}")
    # Mostly none; whatever wrote it is printed.
    assert len(watcher.versions) - 1 <= CLUSTERS * CHANGES / 100


def test_a_change_reaches_all_of_them(many: Environment, watcher: Watcher) -> None:
    start = time.monotonic()
    many.control.kube.apply(fleet("Same"))
    updated(many, "Same")
    COUNTS["seconds until 300 clusters had a change"] = round(time.monotonic() - start)
    assert watcher.unresponsive == set()
