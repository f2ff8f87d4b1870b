"""A fleet's whole rollouts, pass after pass, and what becomes of clusters that come, go and fail."""

import copy
from typing import Any

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import fleet as composer
from function import fn, kube, releases, rollout
from function.api.tier import TierSpec
from function.kube import Manifest
from function.render import render, request
from tests.unit.fleets import NAMESPACE, UID, FleetStory, cluster, counts, fleet, tiers_of
from tests.unit.stories import messages, state, tier_story
from tests.unit.test_api import with_defaults

CANARY = {"canary": {"matchLabels": {"stage": "canary"}}}
# In the order of their names' hashes, behind the canary.
ORDER = sorted("abcdef", key=kube.digest)


def story(rollout: Manifest | None = None, names: str = "abcdef", **spec: Any) -> FleetStory:
    """Begin with a canary and clusters of these names, all of which have their tier."""
    made = FleetStory(fleet(rollout, **spec), cluster("canary", stage="canary"), *map(cluster, names))
    made.settle()
    return made


def settled(*clusters: Manifest, **spec: Any) -> FleetStory:
    """Begin with these clusters, all of which have their tier."""
    made = FleetStory(fleet(**spec), *clusters)
    made.settle()
    return made


def sizes_by_turn(of: FleetStory, turns: int, gib: int) -> list[set[str]]:
    """Who has so much memory, after each turn of so many."""
    found = []
    for _ in range(turns):
        of.turn()
        found.append(of.with_size(gib))
    return found


# --- whole rollouts ---------------------------------------------------------------------------------------------------


def test_of_a_wave_no_more_start_in_a_pass_than_crossplane_can_apply() -> None:
    made = FleetStory(fleet({"maxUnavailable": "100%"}), *(cluster(f"c{n:03}") for n in range(120)))
    made.ill = set(made.clusters)
    assert [len(tiers_of(made.fleet_pass())) for _ in range(4)] == [50, 100, 120, 120]


def test_a_fleet_gives_each_selected_cluster_a_tier_and_no_other_one() -> None:
    made = FleetStory(fleet(), cluster("a"), cluster("b"), cluster("other", gpu="l40s"))
    rendered = made.settle()
    assert made.sizes() == {"a": 64, "b": 64}
    assert counts(rendered) == {"clusters": 2, "updated": 2, "ready": 2, "waiting": 0, "failed": 0}
    assert state(rendered, "RolledOut") == ("True", "RolledOut")
    assert state(rendered, "TiersReady") == ("True", "AllReady")


def test_a_tier_has_the_name_that_engines_look_for_and_says_whose_it_is() -> None:
    (tier,) = settled(cluster("eu-1")).tiers.values()
    assert tier["metadata"]["name"] == kube.tier_of_fleet("h200", "eu-1")
    assert tier["metadata"]["labels"][kube.LABEL_FLEET] == "h200"
    assert tier["metadata"]["labels"][kube.LABEL_CLUSTER] == "eu-1"
    assert tier["spec"]["inferenceClusterRef"] == {"name": "eu-1"}


def test_a_change_goes_to_the_canary_then_in_waves_and_ends() -> None:
    made = story({**CANARY, "maxUnavailable": 2, "maxColdClusters": 2})
    made.change(128)
    first, second, third, fourth, *_ = sizes_by_turn(made, 5, 128)
    assert first == {"canary"}
    assert second - first == set(ORDER[:2])
    assert third - second == set(ORDER[2:4])
    assert fourth - third == set(ORDER[4:])
    assert state(made.turn(), "RolledOut") == ("True", "RolledOut")


def test_the_first_rollout_goes_in_waves_too() -> None:
    made = FleetStory(
        fleet({**CANARY, "maxUnavailable": 3}), cluster("canary", stage="canary"), *map(cluster, "abcdef")
    )
    assert sizes_by_turn(made, 3, 64) == [{"canary"}, {"canary", *ORDER[:3]}, {"canary", *ORDER}]


def test_without_canaries_the_first_wave_is_one_of_all() -> None:
    made = story(names="ab")
    made.change(128)
    first, second, third = sizes_by_turn(made, 3, 128)
    assert (len(first), len(second), len(third)) == (1, 2, 3)


def test_a_canary_that_fails_ends_the_rollout_and_the_others_keep_what_they_had() -> None:
    made = story(CANARY)
    made.ill = lambda _, tier: tier["spec"]["lmcache"]["cpuTierGiBPerNode"] == 128
    made.change(128)
    rendered = made.settle()
    assert made.with_size(128) == {"canary"}
    assert state(rendered, "RolledOut") == ("False", "Progressing")
    assert "now: canary; 6 other clusters wait" in rendered.condition("RolledOut")["message"]
    (unwell,) = rendered.composite["status"]["notWell"]
    assert unwell == {
        "cluster": "canary",
        "reason": "Updating",
        "message": "AgentsReady (Rolling): AgentsReady of canary",
    }
    assert counts(rendered) == {"clusters": 7, "updated": 0, "ready": 6, "waiting": 7, "failed": 0}


@pytest.mark.parametrize("type_", ["Accepted", "CredentialsResolved", "ClusterReachable"])
def test_what_time_does_not_mend_is_a_failure_and_is_said_with_its_cluster(type_: str) -> None:
    made = story(CANARY)
    made.change(128)
    made.fleet_pass()
    made.ill = {"canary"}
    made.tier_pass()
    says = {"type": type_, "status": "False", "reason": "Wrong", "message": "it is wrong", "observedGeneration": 2}
    made.tiers["canary"]["status"]["conditions"] = [says]
    rendered = made.fleet_pass()
    assert state(rendered, "RolledOut") == ("False", "Halted")
    assert (
        f"canary failed: {type_} (Wrong): it is wrong; 6 other clusters wait"
        in rendered.condition("RolledOut")["message"]
    )
    assert counts(rendered)["failed"] == 1
    assert [m for m in messages(rendered) if "warning: RolledOut" in m]
    # A condition of the spec before says nothing of this one.
    says["observedGeneration"] = 1
    assert state(made.fleet_pass(), "RolledOut") == ("False", "Progressing")


def test_a_fix_goes_to_the_cluster_that_failed_and_then_to_all() -> None:
    made = story(CANARY)
    made.ill = lambda _, tier: tier["spec"]["lmcache"]["cpuTierGiBPerNode"] == 128
    made.change(128)
    made.settle()
    made.change(96)
    made.turn()
    assert made.with_size(96) == {"canary"}
    made.settle()
    assert made.with_size(96) == {"canary", *ORDER}


def test_a_rollback_of_a_bad_wave_reaches_the_bad_clusters_first() -> None:
    made = story({**CANARY, "maxUnavailable": 2, "maxColdClusters": 2})
    made.ill = lambda name, tier: tier["spec"]["lmcache"]["cpuTierGiBPerNode"] == 128 and name in ORDER[:2]
    made.change(128)
    made.settle()
    assert made.with_size(128) == {"canary", *ORDER[:2]}
    made.change(64)
    made.turn()
    assert made.with_size(128) == {"canary"}
    made.settle()
    assert made.with_size(128) == set()


def test_a_fix_waits_for_the_clusters_that_it_repairs_before_it_goes_to_canaries() -> None:
    made = story({**CANARY, "maxUnavailable": 1, "maxColdClusters": 2})
    made.change(128)
    made.turn()
    made.fleet_pass()
    (second,) = made.left
    assert second != "canary"
    made.change(96)
    for _ in range(3):
        made.fleet_pass()
        assert made.with_size(96) == {second}
    made.settle()
    assert made.with_size(96) == set(made.tiers)


def test_a_rollback_counts_only_once_the_tier_is_ready_with_it_again() -> None:
    made = story({"maxUnavailable": 1})
    made.change(128)
    made.turn()
    made.fleet_pass()
    second = made.left
    assert len(second) == 1
    made.change(64)
    for _ in range(3):
        made.fleet_pass()
        assert made.left == second
    made.settle()
    assert made.with_size(64) == set(made.tiers)


def test_a_template_that_changes_in_mid_wave_is_taken_up_by_who_is_away() -> None:
    made = story({"maxUnavailable": 2, "maxColdClusters": 2}, names="abcd")
    made.change(128)
    made.fleet_pass()
    started = made.with_size(128)
    made.change(256)
    made.fleet_pass()
    assert made.with_size(256) == started
    assert made.with_size(128) == set()
    made.settle()
    assert made.with_size(256) == set(made.tiers)


def test_a_pass_that_sees_one_tier_late_does_not_take_its_change_back() -> None:
    made = story({"maxUnavailable": 2, "maxColdClusters": 2}, names="abcd")
    made.change(128)
    stale = copy.deepcopy(made.tiers)
    made.fleet_pass()
    one, other = sorted(made.with_size(128))
    made.tiers[one] = stale[one]
    made.fleet_pass()
    assert made.with_size(128) == {one, other}
    # Nor where both are away already, and get yet another change.
    made.change(256)
    stale = copy.deepcopy(made.tiers)
    made.fleet_pass()
    made.tiers[other] = stale[other]
    made.fleet_pass()
    assert made.with_size(256) == {one, other}


def test_a_cluster_that_is_not_ready_for_another_reason_goes_last_and_keeps_nobody() -> None:
    made = story({"maxUnavailable": 1})
    sick = ORDER[0]
    made.ill = {sick}
    made.tier_pass()
    made.change(128)
    rendered = made.settle()
    assert made.with_size(128) == set(made.tiers)
    assert counts(rendered) == {"clusters": 7, "updated": 6, "ready": 6, "waiting": 1, "failed": 0}
    made.ill = ()
    assert state(made.settle(), "RolledOut") == ("True", "RolledOut")


def test_a_dead_cluster_keeps_neither_another_change_nor_who_joins() -> None:
    made = story({"maxUnavailable": 1})
    dead = ORDER[2]
    made.ill = {dead}
    made.tier_pass()
    for gib in (128, 256):
        made.change(gib)
        made.settle()
        assert made.with_size(gib) == set(made.tiers), gib
    assert made.tiers[dead]["metadata"]["annotations"][kube.ANNOTATION_BEFORE] == "not ready"
    made.clusters["new"] = cluster("new")
    made.settle()
    assert made.sizes()["new"] == 256


def test_a_new_cluster_that_is_dead_keeps_no_later_change() -> None:
    made = story({"maxUnavailable": 1})
    made.ill = {"dead"}
    made.clusters["dead"] = cluster("dead")
    made.settle()
    assert made.tiers["dead"]["metadata"]["annotations"][kube.ANNOTATION_BEFORE] == "new"
    for gib in (128, 256):
        made.change(gib)
        made.settle()
        assert made.with_size(gib) == set(made.tiers), gib


def test_a_new_fleet_whose_first_clusters_fail_goes_no_further() -> None:
    made = FleetStory(
        fleet({**CANARY, "maxUnavailable": 2}), cluster("canary", stage="canary"), *map(cluster, "abcdef")
    )
    made.ill = set(ORDER[:1])
    made.settle()
    assert set(made.tiers) == {"canary", *ORDER[:2]}
    made.ill = ()
    made.settle()
    assert set(made.tiers) == {"canary", *ORDER}


def test_a_cluster_that_falls_ill_after_it_was_updated_keeps_nobody() -> None:
    made = story(CANARY)
    made.change(128)
    made.turn()
    made.ill = {"canary"}
    made.tier_pass()
    rendered = made.settle()
    assert made.with_size(128) == set(made.tiers)
    assert counts(rendered) == {"clusters": 7, "updated": 7, "ready": 6, "waiting": 0, "failed": 0}


def test_a_wave_may_be_a_percentage_that_is_rounded_down_to_one_at_least() -> None:
    for percent, of_seven in (("1%", 1), ("28%", 1), ("29%", 2), ("50%", 3), ("99%", 6), ("100%", 7)):
        made = story({"maxUnavailable": percent, "maxColdClusters": 100})
        made.change(128)
        made.fleet_pass()
        assert len(made.with_size(128)) == of_seven, percent


def test_a_paused_fleet_changes_nothing_and_gives_nobody_a_tier() -> None:
    made = story({"paused": True})
    assert made.tiers == {}
    made.roll(paused=False)
    made.settle()
    made.roll(paused=True)
    made.change(128)
    made.clusters["new"] = cluster("new")
    made.clusters["a"]["metadata"]["labels"] = {}
    rendered = made.settle()
    assert made.with_size(64) == {"canary", *"abcdef"}
    assert state(rendered, "RolledOut") == ("False", "Paused")
    assert state(rendered, "TierLeaving") == ("True", "Paused")
    made.roll(paused=False)
    made.settle()
    assert made.with_size(128) == {"canary", "new", *"bcdef"}


def test_a_pause_in_mid_wave_lets_who_has_started_go_on() -> None:
    made = story({"maxUnavailable": 2, "maxColdClusters": 2}, names="abcd")
    made.change(128)
    made.turn()
    made.roll(paused=True)
    made.settle()
    assert len(made.with_size(128)) == 2
    made.roll(paused=False)
    made.settle()
    assert made.with_size(64) == set()


def test_a_revision_that_is_not_approved_reaches_canaries_alone() -> None:
    made = story(CANARY)
    made.roll(approvedRevision=made.fleet["status"]["revision"])
    assert state(made.settle(), "RolledOut") == ("True", "RolledOut")
    made.change(128)
    rendered = made.settle()
    assert made.with_size(128) == {"canary"}
    assert state(rendered, "RolledOut") == ("False", "AwaitingApproval")
    wanted = rendered.composite["status"]["revision"]
    assert f"set spec.rollout.approvedRevision to {wanted}" in rendered.condition("RolledOut")["message"]
    made.roll(approvedRevision=wanted)
    made.settle()
    assert made.with_size(128) == set(made.tiers)


# --- what a change costs ----------------------------------------------------------------------------------------------


def test_caches_grow_cold_on_so_many_clusters_at_once() -> None:
    made = story({"maxUnavailable": "100%", "maxColdClusters": 2})
    made.change(128)
    assert [len(found) for found in sizes_by_turn(made, 4, 128)] == [2, 4, 6, 7]


def test_a_change_that_costs_no_cache_goes_to_a_whole_wave_at_once() -> None:
    made = story({"maxUnavailable": "100%"})
    made.template["allowedNamespaces"] = {"from": "Same"}
    made.turn()
    assert {t["metadata"]["annotations"][kube.ANNOTATION_CHANGE] for t in made.tiers.values()} == {"none"}
    assert made.left == set()


@pytest.mark.parametrize(
    ("lmcache", "says"),
    [
        ({"cpuTierGiBPerNode": 128}, "cold cache"),
        ({"chunkSize": 512}, "cold cache, engine roll"),
        ({"mode": "InProcess"}, "cold cache, engine roll"),
    ],
)
def test_a_tier_says_what_its_last_change_cost(lmcache: Manifest, says: str) -> None:
    made = story(names="a")
    made.template["lmcache"].update(lmcache)
    made.settle()
    assert {t["metadata"]["annotations"][kube.ANNOTATION_CHANGE] for t in made.tiers.values()} == {says}


def test_who_is_away_with_a_cold_cache_stays_so_counted_whatever_comes_next() -> None:
    made = story({"maxUnavailable": 3, "maxColdClusters": 1})
    made.change(128)
    made.fleet_pass()
    (cold,) = made.with_size(128)
    made.ill = {cold}
    made.tier_pass()
    made.change(256)
    made.settle()
    assert made.with_size(256) == {cold}
    assert made.with_size(64) == set(made.tiers) - {cold}


def test_a_cold_cache_is_not_forgotten_by_a_change_that_costs_none() -> None:
    made = story(names="a")
    made.change(128)
    made.fleet_pass()
    (cold,) = made.left
    made.template["allowedNamespaces"] = {"from": "Same"}
    made.fleet_pass()
    assert made.tiers[cold]["spec"]["allowedNamespaces"] == {"from": "Same"}
    assert made.tiers[cold]["metadata"]["annotations"][kube.ANNOTATION_CHANGE] == "cold cache"


# --- clusters that differ ---------------------------------------------------------------------------------------------


def test_the_last_override_that_matches_wins_field_by_field() -> None:
    overrides = [
        {"matchLabels": {"memory": "small"}, "spec": {"lmcache": {"cpuTierGiBPerNode": 16}}},
        {"matchLabels": {"disk": "big"}, "spec": {"lmcache": {"diskTier": {"sizePerNode": "4Ti"}}}},
        {"matchLabels": {"memory": "small", "disk": "big"}, "spec": {"placement": {"nodeSelector": {"a": "b"}}}},
        {"matchLabels": {"memory": "tiny"}, "spec": {"lmcache": {"cpuTierGiBPerNode": 8}}},
    ]
    template = {
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64, "diskTier": {"storageClassName": "nvme", "sizePerNode": "1Ti"}},
    }
    made = settled(
        cluster("plain"),
        cluster("small", memory="small"),
        cluster("both", memory="small", disk="big"),
        template={"spec": template},
        overrides=overrides,
    )
    assert made.sizes() == {"both": 16, "plain": 64, "small": 16}
    assert made.tiers["both"]["spec"]["lmcache"]["diskTier"] == {"storageClassName": "nvme", "sizePerNode": "4Ti"}
    assert made.tiers["both"]["spec"]["placement"] == {"nodeSelector": {"a": "b"}}
    assert "placement" not in made.tiers["small"]["spec"]


def test_an_override_of_one_kind_takes_the_place_of_the_other() -> None:
    disk = {"storageClassName": "nvme", "sizePerNode": "1Ti"}
    nics = {"extendedResource": {"name": "rdma/a"}, "agents": {"count": 1}, "engines": {"count": 1}}
    by_claim = {"dra": {"deviceClassName": "nics", "alignWithGPU": True}}
    made = settled(
        cluster("a", fabric="claims"),
        template={"spec": {"backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "disk": disk}, "rdma": nics}},
        overrides=[
            {
                "matchLabels": {"fabric": "claims"},
                "spec": {"rdma": by_claim, "mooncake": {"disk": {"hostPath": {"path": "/mnt/kv"}}}},
            }
        ],
    )
    spec = made.tiers["a"]["spec"]
    assert spec["rdma"] == {**by_claim, "agents": {"count": 1}, "engines": {"count": 1}}
    assert spec["mooncake"]["disk"] == {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}


def test_an_override_that_makes_a_tier_wrong_changes_nothing_anywhere() -> None:
    made = story(names="ab")
    made.change(128)
    nics = {"extendedResource": {"name": "rdma/a"}, "agents": {"count": 1}, "engines": {"count": 1}}
    made.fleet["spec"]["overrides"] = [{"matchLabels": {"stage": "canary"}, "spec": {"rdma": nics}}]
    rendered = made.settle()
    assert made.sizes() == {"a": 64, "b": 64, "canary": 64}
    assert state(rendered, "Accepted") == ("False", "InvalidOverride")
    message = rendered.condition("Accepted")["message"]
    assert message.startswith("spec.template.spec.rdma goes with what moves KV by it")
    assert message.endswith("(with spec.overrides[0]); nothing is changed")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lmcache": {"cpuTierGiBPerNode": 0}}, "spec.template.spec.lmcache.cpuTierGiBPerNode (is 0): "),
        ({"backend": "Redis"}, "spec.template.spec.backend (is 'Redis'): "),
        ({"inferenceClusterRef": {"name": "a"}}, "spec.template.spec.inferenceClusterRef is not the template's to say"),
        ({"release": "2026.11"}, "spec.template.spec.release is not the template's to say"),
    ],
)
def test_a_wrong_template_is_said_by_its_field_and_changes_nothing(change: Manifest, says: str) -> None:
    made = story(names="a")
    before = made.sizes()
    made.template.update(change)
    rendered = made.settle()
    assert rendered.condition("Accepted")["message"].startswith(says)
    assert made.sizes() == before
    assert counts(rendered)["updated"] == 2


def test_what_cannot_be_overridden_is_refused_with_what_can() -> None:
    made = story(names="a", overrides=[])
    made.fleet["spec"]["overrides"] = [{"matchLabels": {}, "spec": {"lmcache": {"mode": "InProcess"}}}]
    says = made.settle().condition("Accepted")["message"]
    assert says.startswith("spec.overrides[0].spec: lmcache.mode cannot be overridden; these can: lmcache.cpuTier")


def test_a_cluster_whose_labels_change_gets_what_goes_with_them() -> None:
    made = story(names="ab", overrides=[{"matchLabels": {"m": "s"}, "spec": {"lmcache": {"cpuTierGiBPerNode": 16}}}])
    made.clusters["a"]["metadata"]["labels"]["m"] = "s"
    made.settle()
    assert made.sizes() == {"a": 16, "b": 64, "canary": 64}


def test_all_tiers_have_the_release_that_the_fleet_holds() -> None:
    made = story(names="a")
    held = {t["spec"]["release"] for t in made.tiers.values()}
    assert held == {releases.NEWEST.name} == {made.fleet["status"]["release"]}


def test_a_release_that_this_function_does_not_know_changes_nothing() -> None:
    made = story(names="a")
    made.fleet["status"]["release"] = "2020.01"
    made.change(128)
    rendered = made.fleet_pass()
    assert "status.release is '2020.01'" in rendered.condition("Accepted")["message"]
    assert made.with_size(128) == set()


def test_min_ready_seconds_are_those_of_every_tiers_agents() -> None:
    made = story({"minReadySeconds": 300}, names="a")
    assert {t["spec"]["updateStrategy"]["minReadySeconds"] for t in made.tiers.values()} == {300}


# --- clusters that come and go ----------------------------------------------------------------------------------------


def test_a_cluster_that_joins_gets_its_tier() -> None:
    made = story(names="a")
    made.clusters["new"] = cluster("new")
    made.settle()
    assert set(made.tiers) == {"a", "canary", "new"}


def test_a_cluster_that_cannot_be_delivered_to_yet_waits_and_keeps_nobody() -> None:
    made = story(names="a")
    made.clusters["new"] = {**cluster("new"), "status": {}}
    made.change(128)
    rendered = made.settle()
    assert made.sizes() == {"a": 128, "canary": 128}
    assert rendered.composite["status"]["notWell"] == [
        {
            "cluster": "new",
            "reason": "Waiting",
            "message": "InferenceCluster new has no status.providerConfigRef yet",
        }
    ]
    assert counts(rendered) == {"clusters": 3, "updated": 2, "ready": 2, "waiting": 1, "failed": 0}
    assert state(rendered, "RolledOut") == ("False", "LeftOut")


def test_a_cluster_that_no_longer_matches_loses_its_tier() -> None:
    made = story(names="ab")
    made.clusters["a"]["metadata"]["labels"] = {}
    made.settle()
    assert set(made.tiers) == {"b", "canary"}


def test_a_tier_that_is_in_use_stays_until_it_is_not() -> None:
    made = story(names="ab")
    made.use("a")
    made.clusters["a"]["metadata"]["labels"] = {}
    made.change(128)
    rendered = made.settle()
    assert made.sizes() == {"a": 64, "b": 128, "canary": 128}
    assert state(rendered, "TierLeaving") == ("True", "InUse")
    assert rendered.condition("TierLeaving")["message"].startswith("a no longer selected")
    assert counts(rendered)["clusters"] == 2
    del made.tiers["a"]["metadata"]["labels"]["crossplane.io/in-use"]
    made.tiers["a"]["status"]["attachments"] = 0
    made.settle()
    assert set(made.tiers) == {"b", "canary"}


def test_a_cluster_that_is_not_there_keeps_its_tier_and_is_told() -> None:
    made = story(names="ab")
    gone = made.clusters.pop("a")
    rendered = made.settle()
    assert set(made.tiers) == {"a", "b", "canary"}
    assert state(rendered, "ClusterMissing") == ("True", "ClusterNotFound")
    made.clusters["a"] = gone
    assert state(made.settle(), "ClusterMissing") == ("False", "Nothing")
    assert counts(made.fleet_pass())["updated"] == 3


def test_a_cluster_that_vanishes_in_mid_wave_keeps_the_rollout_until_its_tier_says_so_too() -> None:
    made = story({"maxUnavailable": 1})
    made.change(128)
    made.fleet_pass()
    (gone,) = made.with_size(128)
    del made.clusters[gone]
    made.fleet_pass()
    assert made.with_size(128) == {gone}
    made.settle()
    assert made.with_size(128) == set(made.tiers)


def test_a_cluster_that_is_missed_for_one_pass_in_mid_wave_lets_nobody_start_in_its_place() -> None:
    made = story({"maxUnavailable": 1})
    made.change(128)
    made.fleet_pass()
    (missed,) = made.with_size(128)
    there = made.clusters.pop(missed)
    made.fleet_pass()
    made.clusters[missed] = there
    made.fleet_pass()
    assert made.with_size(128) == {missed}


def test_a_selector_that_selects_nobody_takes_nothing_away() -> None:
    made = story(names="ab")
    made.fleet["spec"]["clusterSelector"] = {"matchLabels": {"gpu": "h20"}}
    rendered = made.settle()
    assert set(made.tiers) == {"a", "b", "canary"}
    assert state(rendered, "ClustersMatched") == ("False", "NoClusters")
    assert rendered.condition("ClustersMatched")["message"] == (
        "No InferenceCluster has gpu=h20; its tiers stay as they are, delete the fleet to remove them"
    )


def test_no_labels_select_every_cluster() -> None:
    made = FleetStory(fleet(clusterSelector={}), cluster("a"), cluster("other", gpu="l40s"))
    made.settle()
    assert set(made.tiers) == {"a", "other"}


def test_a_cluster_that_is_being_deleted_loses_its_tier() -> None:
    made = story(names="ab")
    made.clusters["a"]["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
    made.settle()
    assert set(made.tiers) == {"b", "canary"}


def test_before_clusters_are_read_nothing_changes() -> None:
    made = story(names="ab")
    made.change(128)
    rsp = fn.run(request(made.fleet, list(made.tiers.values())))
    sizes = {kube.integer(r.resource, "spec", "lmcache", "cpuTierGiBPerNode") for r in rsp.desired.resources.values()}
    assert len(rsp.desired.resources) == 3
    assert sizes == {64}


# --- names and refusals -----------------------------------------------------------------------------------------------


def other_tier(name: str, **metadata: Any) -> Manifest:
    """Write somebody's tier of a name that the fleet would give."""
    spec = {"inferenceClusterRef": {"name": "x"}, "backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 1}}
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
        "spec": spec,
    }


def test_a_name_that_is_taken_is_not_taken_over_and_the_others_go_on() -> None:
    made = FleetStory(fleet(), *map(cluster, "abc"))
    made.others = [other_tier(kube.tier_of_fleet("h200", "b"))]
    rendered = made.settle()
    assert set(made.tiers) == {"a", "c"}
    assert state(rendered, "NameTaken") == ("True", "NameTaken")
    assert counts(rendered) == {"clusters": 3, "updated": 2, "ready": 2, "waiting": 0, "failed": 1}
    assert rendered.composite["status"]["notWell"][0]["reason"] == "NameTaken"
    made.others = []
    assert state(made.settle(), "NameTaken") == ("False", "Nothing")
    assert set(made.tiers) == {"a", "b", "c"}


def test_a_tier_of_its_own_that_is_not_observed_yet_is_no_stranger() -> None:
    made = FleetStory(fleet(), cluster("a"))
    owner = [{"kind": "KVOffloadFleet", "name": "h200", "uid": UID, "controller": True}]
    made.others = [other_tier(kube.tier_of_fleet("h200", "a"), ownerReferences=owner)]
    made.settle()
    assert set(made.tiers) == {"a"}


def test_two_clusters_whose_tiers_would_have_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "tier_of_fleet", lambda fleet, cluster: f"{fleet}-{cluster[:1]}")
    made = FleetStory(fleet(), cluster("a1"), cluster("a2"), cluster("b"))
    rendered = made.fleet_pass()
    assert {t["spec"]["inferenceClusterRef"]["name"] for t in tiers_of(rendered)} <= {"a1", "b"}
    (unwell,) = [w for w in rendered.composite["status"]["notWell"] if w["reason"] == "NameTaken"]
    assert unwell["cluster"] == "a2"


def test_names_of_a_thousand_long_clusters_differ() -> None:
    names = {kube.tier_of_fleet("h200", f"production-inference-us-central1-a-h200-cluster-{n:04}") for n in range(1000)}
    assert len(names) == 1000
    assert max(map(len, names)) == 63


def test_a_tier_that_the_api_server_refuses_has_failed_and_keeps_what_it_has() -> None:
    made = story(CANARY)
    made.refused = {"canary"}
    made.change(128)
    rendered = made.settle()
    assert made.sizes()["canary"] == 64
    assert made.with_size(128) == set()
    assert state(rendered, "RolledOut") == ("False", "Halted")
    assert counts(rendered) == {"clusters": 7, "updated": 0, "ready": 7, "waiting": 6, "failed": 1}
    made.refused = ()
    made.settle()
    assert made.with_size(128) == set(made.tiers)


def test_a_new_tier_that_the_api_server_refuses_has_failed_too() -> None:
    made = FleetStory(fleet(), cluster("a"))
    made.refused = {"a"}
    rendered = made.settle()
    assert made.tiers == {}
    assert rendered.composite["status"]["notWell"][0]["reason"] == "Refused"
    assert counts(rendered)["failed"] == 1


@pytest.mark.parametrize(("refused", "named"), [("ab", "ab"), ("abc", "abc"), ("abcde", "abc")])
def test_of_many_that_are_refused_those_are_known_that_crossplane_names(refused: str, named: str) -> None:
    made = FleetStory(fleet({"maxUnavailable": "100%"}), *map(cluster, refused))
    made.refused = set(refused)
    found = made.settle().composite["status"]
    assert {ail["cluster"] for ail in found["notWell"] if ail["reason"] == "Refused"} == set(named)
    assert found["failed"] == len(named)


# --- what is desired --------------------------------------------------------------------------------------------------


def test_a_second_pass_desires_the_same() -> None:
    made = story(CANARY)
    first = made.fleet_pass().composed
    assert made.fleet_pass().composed == first


def test_a_tier_that_somebody_has_changed_by_hand_is_put_right() -> None:
    made = story(names="a")
    made.tiers["a"]["spec"]["lmcache"]["cpuTierGiBPerNode"] = 7
    made.fleet_pass()
    assert made.sizes() == {"a": 64, "canary": 64}


def test_of_clusters_that_have_a_tier_and_are_selected_nothing_more_is_asked() -> None:
    made = story(names="a")
    made.clusters["new"] = cluster("new")
    found = [("clusters", [*made.clusters.values()])]
    rsp = fn.run(request(made.fleet, list(made.tiers.values()), found))
    assert set(rsp.requirements.resources) == {"clusters", "tier new"}


def test_what_waits_is_desired_as_it_was_sent() -> None:
    made = story(CANARY)
    before = {t["metadata"]["name"]: t["spec"] for t in tiers_of(made.fleet_pass())}
    made.change(128)
    # As an API server stores them: with its defaults, and with what Crossplane keeps in them.
    for tier in made.tiers.values():
        spec = with_defaults(TierSpec, tier["spec"])
        tier["spec"] = {**spec, "crossplane": {"resourceRefs": [{"name": "x"}]}}
    rendered = render(made.fleet, list(made.tiers.values()), [*made.clusters.values()])
    after = {t["metadata"]["name"]: t["spec"] for t in tiers_of(rendered)}
    canary = kube.tier_of_fleet("h200", "canary")
    assert {name: spec for name, spec in after.items() if name != canary} == {
        name: spec for name, spec in before.items() if name != canary
    }
    assert after[canary] != before[canary]


def test_a_fleet_says_the_same_with_and_without_the_xrds_defaults() -> None:
    written = fleet(CANARY)
    spec = written["spec"]
    filled = {**written, "spec": {**spec, "template": {"spec": _template_defaults(spec["template"]["spec"])}}}
    filled["spec"]["rollout"] = {**CANARY, "maxUnavailable": 1, "maxColdClusters": 1, "paused": False}
    there = [cluster("a"), cluster("canary", stage="canary")]
    one, other = render(written, [], there), render(filled, [], there)
    assert one.composed == other.composed
    assert one.composite["status"] == other.composite["status"]


def _template_defaults(spec: Manifest) -> Manifest:
    filled = with_defaults(TierSpec, {**spec, "inferenceClusterRef": {"name": "a"}})
    del filled["inferenceClusterRef"]
    assert "placement" in filled
    return filled


def test_a_tier_that_this_function_cannot_read_is_kept_as_it_is() -> None:
    made = story(names="a")
    made.tiers["a"]["spec"]["lmcache"]["cpuTierGiBPerNode"] = 0
    made.roll(paused=True)
    made.change(128)
    made.settle()
    assert made.sizes() == {"a": 0, "canary": 64}


def test_a_fleet_with_engines_cannot_be_deleted_and_one_without_can() -> None:
    made = story(names="a")
    assert [m for m in made.fleet_pass().composed.values() if m["kind"] == "Usage"] == []
    made.use("a")
    rendered = made.fleet_pass()
    (usage,) = [m for m in rendered.composed.values() if m["kind"] == "Usage"]
    assert usage["spec"]["of"] == {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadFleet",
        "resourceRef": {"name": "h200"},
    }
    assert usage["spec"]["reason"] == "An engine on one of its clusters uses it"
    assert rendered.composite["status"]["attachments"] == 1
    made.template["backend"] = "Redis"
    assert [m for m in made.fleet_pass().composed.values() if m["kind"] == "Usage"] == [usage]


def test_ready_is_a_fleet_all_of_whose_tiers_are() -> None:
    made = FleetStory(fleet(), *map(cluster, "ab"))
    there = [*made.clusters.values()]
    found = [("clusters", there), *((f"tier {name}", None) for name in "ab")]
    assert fn.run(request(made.fleet, [], found)).desired.composite.ready == fnv1.READY_FALSE
    made.settle()
    assert fn.run(request(made.fleet, list(made.tiers.values()), found)).desired.composite.ready == fnv1.READY_TRUE
    made.ill = {"a"}
    made.tier_pass()
    assert fn.run(request(made.fleet, list(made.tiers.values()), found)).desired.composite.ready == fnv1.READY_FALSE


# --- size -------------------------------------------------------------------------------------------------------------


def test_status_names_twenty_clusters_and_counts_the_rest() -> None:
    made = FleetStory(fleet({"maxUnavailable": "100%"}), *(cluster(f"c{n:02}") for n in range(50)))
    made.ill = set(made.clusters)
    rendered = made.settle()
    status = rendered.composite["status"]
    assert len(status["notWell"]) == 20
    assert status["notListed"] == 30
    assert all(len(w["message"]) <= 200 for w in status["notWell"])
    assert "c00, c01, c02 and 47 more" in rendered.condition("TiersReady")["message"]


def test_what_a_thousand_clusters_get_is_less_than_3_mib_and_status_stays_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout, "AT_ONCE", 1000)
    template = {
        "backend": "LMCache",
        "lmcache": {
            "cpuTierGiBPerNode": 256,
            "diskTier": {"storageClassName": "nvme-local", "sizePerNode": "1Ti"},
            "remote": {"redis": {"host": "kv-redis.modelplane-system", "secretRef": {"name": "kv-redis-auth"}}},
        },
        "placement": {"nodeSelector": {"pool": "h200"}, "priorityClassName": "system-node-critical"},
    }
    of = fleet({"maxUnavailable": "100%"}, template={"spec": template})
    there = [cluster(f"production-inference-us-central1-a-h200-{n:04}") for n in range(1000)]
    names = [c["metadata"]["name"] for c in there]
    rsp = fn.run(request(of, [], [("clusters", there), *((f"tier {name}", None) for name in names)]))
    assert len(rsp.desired.resources) == 1000
    assert rsp.desired.ByteSize() < 3 * 2**20
    assert rsp.ByteSize() < 3 * 2**20
    assert rsp.desired.composite.ByteSize() < 10_000


def test_more_than_crossplane_can_receive_is_fatal_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FleetStory(fleet({"maxUnavailable": "100%"}), *(cluster(f"c{n:02}") for n in range(50)))
    monkeypatch.setattr(composer, "_LARGEST", 20000)
    rendered = made.fleet_pass()
    assert rendered.fatal
    (message,) = messages(rendered)
    assert message.startswith(
        "fatal: KVOffloadFleet: the tiers of 50 clusters come to 0.0 MiB, and Crossplane receives"
    )
    assert message.endswith("by spec.clusterSelector; nothing was changed")


# --- the tier's own part ----------------------------------------------------------------------------------------------


def test_a_tier_says_with_which_revision_it_was_last_ready() -> None:
    told = tier_story()
    told.composite["metadata"]["annotations"] = {kube.ANNOTATION_REVISION: "one"}
    told.render()
    assert "settledRevision" not in told.composite["status"]
    told.happen(ready=1)
    assert "settledRevision" not in told.render().composite["status"]
    told.happen()
    assert told.render().composite["status"]["settledRevision"] == "one"
    # A change that is not rolled out yet, and one that breaks it.
    told.composite["metadata"]["annotations"] = {kube.ANNOTATION_REVISION: "two"}
    told.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 128
    assert told.render().composite["status"]["settledRevision"] == "one"
    told.happen(updated=1)
    assert told.render().composite["status"]["settledRevision"] == "one"
    told.happen()
    assert told.render().composite["status"]["settledRevision"] == "two"
    # What ails it later is another matter.
    told.happen(ready=0)
    assert told.render().composite["status"]["settledRevision"] == "two"


def test_a_tier_of_no_fleet_says_nothing_of_revisions() -> None:
    told = tier_story()
    assert "settledRevision" not in told.settle().composite["status"]
