"""Deletion: a tier in use stays until its last engine leaves, and in the end nothing of ours is left anywhere."""

import contextlib
import json
import time
from collections.abc import Collection

import pytest

from tests.e2e import fleet, secrecy
from tests.e2e.conftest import say
from tests.e2e.environment import SYSTEM, Environment
from tests.e2e.fleet import CACHE, CHAT, MEMBERS, OTHER_CHAT, POOL, SEARCH, Member
from tests.e2e.install import FUNCTION, PROVIDER
from tests.e2e.kube import MODEL_DEPLOYMENT, OBJECT, SECRET, TIER, USAGE, Kind, Refused, names
from tests.e2e.ledger import NAMESPACE
from tests.e2e.processes import wait_until
from tests.e2e.test_5_trouble import ROTATED

_KINDS = [
    *(Kind("apps/v1", kind) for kind in ("DaemonSet", "Deployment", "StatefulSet", "ReplicaSet", "ControllerRevision")),
    *(Kind("v1", kind) for kind in ("Pod", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim")),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("resource.k8s.io/v1", "ResourceClaimTemplate"),
    Kind("resource.k8s.io/v1", "ResourceClaim"),
    Kind("monitoring.coreos.com/v1", "PodMonitor"),
    Kind("monitoring.coreos.com/v1", "PrometheusRule"),
]


def test_no_secret_is_anywhere_but_in_secrets_and_in_the_documented_object(fleet_runs: Environment) -> None:
    ours = fleet_runs.control.kube.find(SECRET, SYSTEM)
    drawn = [s for c in fleet_runs.clusters.values() for s in c.kube.find(SECRET, NAMESPACE)]
    spelled = secrecy.spellings([*secrecy.values([*ours, *drawn]), ROTATED])
    # What is looked for is there to be found: in the Objects that are documented to carry it.
    carriers = [o for o in fleet_runs.control.kube.find(OBJECT) if any(value in json.dumps(o) for value in spelled)]
    assert {o["spec"]["forProvider"]["manifest"]["kind"] for o in carriers} == {"Secret"}
    leaks = [
        f"{server.name}: {leak}" for server in fleet_runs.servers for leak in secrecy.in_objects(server.kube, spelled)
    ]
    logs = [
        p for p in (fleet_runs.folder / "logs").glob("*.log") if p.name.startswith((FUNCTION, PROVIDER, "crossplane"))
    ]
    leaks += secrecy.in_logs(logs, spelled)
    fleet_runs.counts["secrets outside Secrets"] = len(leaks)
    assert not leaks


def ask_for_deletion(world: Environment, but: Collection[Member] = ()) -> None:
    """Ask for the deletion of all deployments and tiers, at once, and wait for none of them."""
    kept = {(m.kind, m.name, m.namespace) for m in but}
    for kind in (MODEL_DEPLOYMENT, TIER):
        for item in world.control.kube.find(kind):
            name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
            if (kind, name, namespace) not in kept:
                with contextlib.suppress(Refused):
                    world.control.kube.delete(kind, name, namespace, foreground=True)


def test_a_tier_in_use_refuses_deletion_and_goes_with_its_last_engine(fleet_runs: Environment) -> None:
    kube = fleet_runs.control.kube
    fleet.settled(fleet_runs)
    # All others begin to go: what is refused while it is in use is asked again at last.
    ask_for_deletion(fleet_runs, but=MEMBERS)
    with pytest.raises(Refused, match="in-use by 2 usage") as refusal:
        kube.delete(CACHE.kind, CACHE.name, CACHE.namespace)
    say(str(refusal.value))
    kube.remove(CHAT.kind, CHAT.name, CHAT.namespace)
    wait_until(
        lambda: not kube.find(USAGE, CHAT.namespace, label_selector="kv-offload.modelplane.ai/tier=cache"),
        90,
        "it lets go",
    )
    assert kube.get(CACHE.kind, CACHE.name, CACHE.namespace)
    start = time.monotonic()
    kube.remove(OTHER_CHAT.kind, OTHER_CHAT.name, OTHER_CHAT.namespace)
    # Nobody asks again: the refused deletion is not forgotten.
    kube.gone(CACHE.kind, CACHE.name, CACHE.namespace, 150)
    say(f"the tier went {time.monotonic() - start:.0f} s after its last engine was deleted")


def test_a_foreground_deletion_ends(fleet_runs: Environment) -> None:
    start = time.monotonic()
    fleet_runs.shell(
        f"kubectl delete modeldeployment {SEARCH.name} -n {SEARCH.namespace} --cascade=foreground --timeout=90s"
    )
    say(f"the deployment was gone after {time.monotonic() - start:.0f} s")
    fleet_runs.control.kube.remove(POOL.kind, POOL.name, POOL.namespace)


def test_after_the_last_one_nothing_of_ours_is_left(fleet_runs: Environment) -> None:
    kube = fleet_runs.control.kube
    ask_for_deletion(fleet_runs)
    for kind in (MODEL_DEPLOYMENT, TIER):
        for item in kube.find(kind):
            kube.remove(kind, item["metadata"]["name"], item["metadata"]["namespace"], 180)
    assert not kube.find(OBJECT)
    assert not kube.find(USAGE)

    def left_behind() -> list[str]:
        found = []
        for cluster in fleet_runs.clusters.values():
            for kind in _KINDS:
                found += [f"{cluster.name}: {kind.kind} {name}" for name in names(cluster.kube.find(kind, NAMESPACE))]
        return [name for name in found if not name.endswith(("Service kubernetes", "ConfigMap kube-root-ca.crt"))]

    wait_until(lambda: not left_behind(), 90, "the inference clusters hold nothing of ours", left_behind)
