"""Sizes mean what their names say, and what is on a node never exceeds the node's number."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from function import sizing
from function.backends.base import Invalid, Site, Tier
from tests.unit.builders import MIDDLE, OLD, attach, engine, part, plan, tier

GIB = 1073741824


def agent(of_tier: Tier) -> Any:
    return part(plan(of_tier), "agents").manifest["spec"]["template"]["spec"]["containers"][0]


def adapters(of_tier: Tier) -> list[Any]:
    return [json.loads(a.removeprefix("--l2-adapter=")) for a in agent(of_tier)["args"] if "--l2-adapter" in a]


def engine_yaml(of_tier: Tier, site: Site | None = None) -> Any:
    connector = part(plan(of_tier, site) if site else plan(of_tier), "connector")
    return yaml.safe_load(connector.manifest["data"]["lmcache.yaml"])


# --- the seed's numbers -------------------------------------------------------------------------------------------


def test_an_agent_of_64_gib_requests_69_and_is_limited_to_104() -> None:
    container = agent(tier())
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "69Gi"}, "limits": {"memory": "104Gi"}}
    assert "--l1-size-gb=64" in container["args"]


def test_of_a_disk_of_1_ti_921_point_6_gib_are_filled() -> None:
    (disk,) = adapters(tier({"diskTier": {"storageClassName": "nvme", "sizePerNode": "1Ti"}}))
    assert disk["max_capacity_gb"] == 921.6


def test_an_engine_beside_an_agent_stages_2_gib_a_rank() -> None:
    assert engine_yaml(tier())["max_local_cpu_size"] == 2.0


def test_the_budget_is_shown_as_it_is_delivered() -> None:
    assert plan(tier()).memory == {
        "cacheGiB": 64,
        "overheadGiB": 5,
        "requestGiB": 69,
        "limitGiB": 104,
        "stagingGiBPerRank": 2,
    }
    assert plan(tier({"mode": "Multiprocess"})).memory == {
        "cacheGiB": 64,
        "overheadGiB": 5,
        "requestGiB": 69,
        "limitGiB": 104,
    }
    assert plan(tier({"mode": "InProcess"})).memory == {"cacheGiB": 64, "gpusPerNode": 8, "perRankGiB": 8}


@pytest.mark.parametrize(
    ("cache", "request_", "limit"),
    [(1, 6, 9), (2, 7, 11), (3, 8, 12), (64, 69, 104), (100, 105, 158), (512, 517, 776), (65536, 65541, 98312)],
)
def test_an_agents_memory_is_l1_and_5_gib_and_its_limit_half_as_much_again(
    cache: int, request_: int, limit: int
) -> None:
    resources = agent(tier({"cpuTierGiBPerNode": cache}))["resources"]
    assert resources["requests"]["memory"] == f"{request_}Gi"
    assert resources["limits"]["memory"] == f"{limit}Gi"


# --- quantities ---------------------------------------------------------------------------------------------------

QUANTITIES = {
    "1": 1,
    "1024": 1024,
    "1k": 1000,
    "1M": 1000000,
    "1G": 1000000000,
    "1T": 1000000000000,
    "1P": 1000000000000000,
    "1E": 1000000000000000000,
    "1Ki": 1024,
    "1Mi": 1048576,
    "1Gi": 1073741824,
    "1Ti": 1099511627776,
    "1Pi": 1125899906842624,
    "1Ei": 1152921504606846976,
    "500Gi": 536870912000,
    "3500Gi": 3758096384000,
    "1.5Gi": 1610612736,
    "0.5Ti": 549755813888,
    "1.0Gi": 1073741824,
    "007Gi": 7516192768,
    "1.9": 1,
}


@pytest.mark.parametrize("text", QUANTITIES)
def test_a_quantity_is_so_many_bytes(text: str) -> None:
    assert sizing.quantity(text) == QUANTITIES[text]


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0Gi", "0.0Gi", "0.9", "-1Gi", "+1Gi", "-0"),
        *("1gb", "1GB", "1gi", "1GI", "1KI", "1K", "1m", "1u", "1e3", "1E3", "1Gib", "1Gi1", "1 Gi", " 1Gi", "1Gi "),
        *("1Gi\n", ".5Gi", "1.Gi", "1.5.5Gi", "1,5Gi", "abc", "Gi", "٣Gi", "1_000Gi", "0x10", "inf", "nan", "9" * 400),
    ],
    ids=repr,
)
def test_what_is_no_positive_quantity_of_bytes_is_refused_without_echoing_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a positive quantity; write it as 500Gi or 1Ti$"):
        sizing.quantity(text)


@given(st.integers(1, 10**15), st.sampled_from(["", "k", "Ki", "M", "Mi", "G", "Gi"]))
@settings(deadline=None)
def test_a_larger_quantity_is_never_fewer_bytes(number: int, suffix: str) -> None:
    assert sizing.quantity(f"{number}{suffix}") <= sizing.quantity(f"{number + 1}{suffix}")


# --- units --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["--l1-size-gb", "max_capacity_gb", "max_local_cpu_size", "max_local_disk_size"])
@pytest.mark.parametrize(
    ("size", "amount"),
    [
        (GIB, 1),
        (64 * GIB, 64),
        (1.5 * GIB, 1.5),
        (921.6 * GIB, 921.6),
        (int(921.6 * GIB), 921.6),
        (1.99 * GIB, 1.9),
        (0.0999 * GIB, 0),
        (10**12, 931.3),
    ],
)
def test_lmcaches_gb_are_gib_and_rounded_down_to_a_tenth(name: str, size: float, amount: float) -> None:
    written = sizing.amount(name, size)
    assert written == amount
    # A whole number is written without a point, which is what --l1-size-gb=64 needs.
    assert isinstance(written, int) == (amount == int(amount))


def test_a_unit_that_is_not_in_the_table_is_not_guessed() -> None:
    with pytest.raises(KeyError):
        sizing.amount("--l1-size-mb", GIB)


DISKS = {"1Gi": 0.9, "10Gi": 9, "500Gi": 450, "1Ti": 921.6, "3500Gi": 3150, "1T": 838.1, "1.5Ti": 1382.4}


@pytest.mark.parametrize("size", DISKS)
def test_nine_tenths_of_a_disk_are_filled(size: str) -> None:
    (disk,) = adapters(tier({"diskTier": {"storageClassName": "nvme", "sizePerNode": size}}))
    assert disk["max_capacity_gb"] == DISKS[size]


@given(st.integers(1, 10**6))
@settings(deadline=None)
def test_what_may_be_filled_is_never_more_than_the_disk_and_never_the_zero_that_means_no_limit(gib: int) -> None:
    filled = sizing.amount("max_capacity_gb", sizing.disk_capacity(sizing.quantity(f"{gib}Gi")))
    assert 0.9 * gib - 0.11 <= filled <= 0.9 * gib
    assert filled > 0


# --- in process: a node's number is shared by its ranks -----------------------------------------------------------

RANKS = [
    (64, 8, 8),
    (64, 4, 16),
    (64, 3, 16),
    (64, 1, 64),
    (65, 1, 64),
    (127, 1, 64),
    (100, 8, 8),
    (200, 4, 32),
    (512, 8, 64),
    (500, 8, 32),
    (8, 8, 1),
    (15, 8, 1),
    (16, 8, 2),
    (7, 8, 0),
    (1, 1, 1),
]


@pytest.mark.parametrize(("node", "gpus", "rank"), RANKS)
def test_a_ranks_share_is_rounded_down_to_a_power_of_two(node: int, gpus: int, rank: int) -> None:
    assert sizing.rank_gib(node, gpus) == rank
    which = tier({"mode": "InProcess", "cpuTierGiBPerNode": node})
    if rank:
        assert engine_yaml(which, Site(gpus))["max_local_cpu_size"] == rank
    else:
        with pytest.raises(Invalid, match=rf"^spec.lmcache.cpuTierGiBPerNode \(is {node}\).* set at least {gpus}$"):
            plan(which, Site(gpus))


def engines_on(gpus: int) -> st.SearchStrategy[list[int]]:
    """Give the ranks of each engine on a node of `gpus` GPUs."""

    def fitting(ranks: list[int]) -> list[int]:
        kept: list[int] = []
        for rank in ranks:
            if sum(kept) + rank <= gpus:
                kept.append(rank)
        return kept

    return st.lists(st.integers(1, gpus), max_size=16).map(fitting)


@given(data=st.data(), node=st.integers(1, 65536), gpus=st.integers(1, 64))
@settings(deadline=None)
def test_in_process_the_engines_of_a_node_hold_no_more_than_its_number(
    data: st.DataObject, node: int, gpus: int
) -> None:
    engines = data.draw(engines_on(gpus))
    rank = sizing.rank_gib(node, gpus)
    # Pinned memory is taken in powers of two, so what is written is what is taken.
    assert rank & (rank - 1) == 0
    assert sum(rank * ranks for ranks in engines) <= node


@given(data=st.data(), size=st.integers(96, 65536), gpus=st.integers(1, 32))
@settings(max_examples=50, deadline=None)
def test_in_process_the_engines_of_a_node_claim_and_fill_no_more_than_its_disk(
    data: st.DataObject, size: int, gpus: int
) -> None:
    disk = {"storageClassName": "nvme", "sizePerNode": f"{size}Gi"}
    which, site = tier({"mode": "InProcess", "cpuTierGiBPerNode": 64, "diskTier": disk}), Site(gpus)
    claimed = 0
    fills = engine_yaml(which, site)["max_local_disk_size"]
    for ranks in data.draw(engines_on(gpus)):
        patch = attach(which, engine(f"-tp={ranks}", image=OLD), site)
        (volume,) = [v for v in patch.volumes if v["name"] == "disk"]
        request = volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
        assert request.endswith("Mi")
        # Twice, since a container that starts again finds the files of the one before.
        assert 2 * ranks * fills * GIB <= int(request[:-2]) * 1024**2
        claimed += int(request[:-2]) * 1024**2
    assert claimed <= size * GIB


def test_the_gpus_that_the_tier_says_win_over_the_pools() -> None:
    which = tier({"mode": "InProcess"}, placement={"gpusPerNode": 4})
    assert plan(which, Site(8)).memory == {"cacheGiB": 64, "gpusPerNode": 4, "perRankGiB": 16}


def test_without_any_number_of_gpus_the_missing_field_is_named() -> None:
    with pytest.raises(Invalid, match=r"^spec.placement.gpusPerNode is required .* InferenceCluster eu-h100 reports"):
        plan(tier({"mode": "InProcess"}), Site())


# --- Auto: the agent's number, and what engines stage beside it ---------------------------------------------------


@given(
    node=st.integers(1, 65536),
    engines=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([OLD, MIDDLE])), max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_in_auto_a_node_holds_the_agents_number_and_2_gib_for_each_rank_that_cannot_use_it(
    node: int, engines: list[tuple[int, str]]
) -> None:
    which = tier({"cpuTierGiBPerNode": node})
    assert f"--l1-size-gb={node}" in agent(which)["args"]
    staged = engine_yaml(which)["max_local_cpu_size"]
    assert staged == 2
    for ranks, image in engines:
        (notice,) = [
            n for n in attach(which, engine(f"-tp={ranks}", image=image)).notices if n.type == "TierUnusedByEngine"
        ]
        assert f"2 GiB x {ranks} rank(s) of its own pod's memory" in notice.message
        assert f"the {node} GiB of the node's agent" in notice.message
