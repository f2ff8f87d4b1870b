"""RDMA: NICs for agents and engines, by claim or by resource, and what becomes of an engine's pod with them."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from function import api, claims, rdma, releases
from function.api.tier import TierSpec
from function.attach import apply, taken
from function.backends import of
from function.backends.base import EnginePatch, Refusal, Site, Tier
from function.kube import Manifest
from tests.unit.builders import engine

# sha256("kvtier/modelplane-system/shared") begins with 5d78e.
INSTANCE = "kvtier-modelplane-system-shared-5d78e"
BY_RESOURCE: Manifest = {"extendedResource": {"name": "rdma/hca"}}
BY_CLAIM: Manifest = {"dra": {"deviceClassName": "rdma.example"}}


def tier(agents: int = 1, engines: int = 2, **fields: Any) -> Tier:
    """Read a Mooncake tier over RDMA."""
    spec = {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 50},
        "rdma": {"agents": {"count": agents}, "engines": {"count": engines}, **fields},
    }
    return Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.RELEASES["2026.11"])


def nixl(agents: int, engines: int, **fields: Any) -> Tier:
    """Read a tier that needs no NIC for its agents: it has none."""
    spec = {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Nixl",
        "nixl": {"p2p": {}},
        "rdma": {"agents": {"count": agents}, "engines": {"count": engines}, **fields},
    }
    return Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.RELEASES["2026.11"])


# --- who is given what --------------------------------------------------------------------------------------------


def test_agents_and_engines_are_counted_apart() -> None:
    by_resource = tier(1, 2, **BY_RESOURCE)
    assert rdma.for_agents(by_resource).resources == {"rdma/hca": "1"}
    assert rdma.for_engine(by_resource).resources == {"rdma/hca": "2"}
    by_claim = tier(1, 2, **BY_CLAIM)
    (template,) = rdma.parts(by_claim)
    (claim,) = rdma.for_agents(by_claim).claims
    assert claim == {"name": "kv-nics", "resourceClaimTemplateName": template.manifest["metadata"]["name"]}
    assert template.manifest["metadata"]["name"].startswith(f"{INSTANCE}-nics-")
    assert template.manifest["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] == 1
    assert [d["exactly"]["count"] for d in rdma.for_engine(by_claim).devices] == [2]


def test_an_engine_brings_its_own_template() -> None:
    nics = rdma.for_engine(tier(2, 2, **BY_CLAIM))
    assert nics.claims == ()
    assert nics.devices == [{"name": "kv-nic", "exactly": {"deviceClassName": "rdma.example", "count": 2}}]
    assert not nics.align
    assert rdma.for_engine(tier(dra={"deviceClassName": "rdma.example", "alignWithGPU": True})).align


@pytest.mark.parametrize("how", [BY_RESOURCE, BY_CLAIM])
def test_whoever_has_no_nic_needs_nothing(how: Manifest) -> None:
    without = nixl(0, 1, **how)
    assert rdma.for_agents(without) == rdma.Nics()
    assert rdma.for_engine(without).capabilities == ("IPC_LOCK",)
    assert rdma.parts(without) == []


@pytest.mark.parametrize(("agents", "engines"), [(0, 1), (1, 0), (0, 0)])
def test_a_pool_with_a_nic_on_one_side_only_is_refused(agents: int, engines: int) -> None:
    with pytest.raises(api.Invalid, match=r"agents\.count and engines\.count of at least 1"):
        tier(agents, engines, **BY_RESOURCE)


@pytest.mark.parametrize("how", [{}, {**BY_RESOURCE, **BY_CLAIM}])
def test_there_is_exactly_one_way_to_a_nic(how: Manifest) -> None:
    with pytest.raises(api.Invalid, match="exactly one of dra and extendedResource"):
        tier(**how)


def test_a_tier_without_rdma_has_none() -> None:
    spec = {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 50, "protocol": "TCP"},
    }
    plain = Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.NEWEST)
    assert rdma.for_agents(plain) == rdma.for_engine(plain) == rdma.Nics()
    assert rdma.parts(plain) == []


# --- templates ----------------------------------------------------------------------------------------------------


def test_a_template_asks_for_exactly_what_the_tier_says() -> None:
    selectors = [{"cel": 'device.attributes["rdma.example"].fabric == "a"'}]
    (template,) = rdma.parts(tier(4, 4, dra={"deviceClassName": "rdma.example", "selectors": selectors}))
    assert template.manifest["apiVersion"] == "resource.k8s.io/v1"
    assert template.manifest["kind"] == "ResourceClaimTemplate"
    assert template.manifest["spec"] == {
        "spec": {
            "devices": {
                "requests": [
                    {
                        "name": "nic",
                        "exactly": {
                            "deviceClassName": "rdma.example",
                            "count": 4,
                            "selectors": [
                                {"cel": {"expression": 'device.attributes["rdma.example"].fabric == "a"'}},
                            ],
                        },
                    }
                ]
            }
        }
    }


@pytest.mark.parametrize(
    "change",
    [
        {"agents": 3, "engines": 3, **BY_CLAIM},
        {"dra": {"deviceClassName": "other.example"}},
        {"dra": {"deviceClassName": "rdma.example", "selectors": [{"cel": "true"}]}},
    ],
)
def test_another_request_is_another_template_since_one_never_changes(change: Manifest) -> None:
    (before,), (after,) = rdma.parts(tier(2, 2, **BY_CLAIM)), rdma.parts(tier(**{"agents": 2, "engines": 2, **change}))
    # Its part too, or Crossplane would go on to change the old one.
    assert before.name != after.name
    assert before.manifest["metadata"]["name"] != after.manifest["metadata"]["name"]


@pytest.mark.parametrize("change", [{"netDevices": ["mlx5_0"]}, {"gidIndex": 3}, {"hostNetwork": {"firstPort": 21850}}])
def test_what_is_no_part_of_a_request_leaves_its_template(change: Manifest) -> None:
    assert rdma.parts(tier(**BY_CLAIM)) == rdma.parts(tier(**BY_CLAIM, **change))


# --- how many there are -------------------------------------------------------------------------------------------

POOLS = {"h100": {"gpu.nvidia.com": 8, "rdma.example": 8}, "l40s": {"rdma.example": 2}, "a100": {"gpu.nvidia.com": 8}}


@pytest.mark.parametrize(
    ("agents", "engines", "own", "pool", "says"),
    [
        (1, 7, 0, "", ""),
        (1, 8, 0, "", "agents.count (is 1) and engines.count (is 8) are more than the 8 of DeviceClass rdma.example"),
        (1, 1, 0, "l40s", ""),
        (1, 2, 0, "l40s", "more than the 2 of DeviceClass rdma.example that a node of pool l40s has"),
        # What the engine claims by itself is of the same node.
        (1, 3, 4, "h100", ""),
        (1, 4, 4, "h100", "and the 4 that the engine claims itself are more than the 8"),
        # Of a pool that lists none of the class nobody knows how many it has.
        (8, 8, 8, "a100", ""),
        (1, 8, 0, "gone", "more than the 8 of DeviceClass rdma.example that a node has"),
    ],
)
def test_agent_and_engine_cannot_have_more_nics_than_their_node(
    agents: int, engines: int, own: int, pool: str, says: str
) -> None:
    asking = replace(engine(), devices={"rdma.example": own, "gpu.nvidia.com": 8}, pool=pool)
    to = tier(agents, engines, **BY_CLAIM)
    found = of(to.spec).attach(to, Site(pools=POOLS), asking)
    if says:
        assert isinstance(found, Refusal)
        assert found.reason == "InsufficientNICs"
        assert says in found.message
        assert "lower them, which are of KVOffloadTier modelplane-system/shared" in found.message
    else:
        assert isinstance(found, EnginePatch)


def test_the_pool_may_be_the_tiers_choice() -> None:
    to = tier(1, 2, **BY_CLAIM)
    placement = to.spec.placement.model_copy(update={"node_selector": {"modelplane.ai/pool": "l40s"}})
    to = replace(to, spec=to.spec.model_copy(update={"placement": placement}))
    assert isinstance(of(to.spec).attach(to, Site(pools=POOLS), engine()), Refusal)
    assert [n.reason for n in of(to.spec).plan(to, Site(pools=POOLS), {}).notices] == ["MoreThanANodeHas"]


@pytest.mark.parametrize(
    ("to", "pools"), [(tier(9, 9, **BY_CLAIM), {}), (tier(9, 9, **BY_RESOURCE), POOLS), (tier(4, 4, **BY_CLAIM), POOLS)]
)
def test_nothing_is_said_of_what_is_not_known_or_is_enough(to: Tier, pools: Any) -> None:
    assert isinstance(of(to.spec).attach(to, Site(pools=pools), engine()), EnginePatch)
    assert rdma.notices(to, Site(pools=pools)) == []


def test_a_tier_says_that_no_node_can_have_its_agent_and_an_engine() -> None:
    (notice,) = rdma.notices(tier(2, 8, **BY_CLAIM), Site(pools=POOLS))
    assert notice.type == "InsufficientNICs"
    assert "agents.count (is 2) and engines.count (is 8) are more than the 8" in notice.message
    assert "InferenceCluster eu-h100" in notice.message


# --- what an engine's pod becomes ---------------------------------------------------------------------------------


def patch(of_tier: Tier) -> EnginePatch:
    found = of(of_tier.spec).attach(of_tier, Site(), engine())
    assert isinstance(found, EnginePatch)
    # Memory is another matter.
    return replace(found, memory=0)


def claimed(of_tier: Tier) -> claims.Claim | None:
    """Give what an engine claims its NICs by, where it has no claim that they could join."""
    devices = patch(of_tier).devices
    return claims.own(devices, {"name": "chat", "namespace": "default"}, "") if devices else None


def template(**container: Any) -> Manifest:
    return {"metadata": {"labels": {"app": "chat"}}, "spec": {"containers": [{"name": "engine", **container}]}}


def merged(of_tier: Tier, before: Manifest) -> tuple[Manifest, Manifest]:
    """Attach a pod; the result is its container, and its spec without it."""
    untouched = copy.deepcopy(before)
    after, _ = apply(before, patch(of_tier), "engine", claim=claimed(of_tier))
    assert before == untouched
    spec = after["spec"]
    (container,) = spec["containers"]
    return container, {k: v for k, v in spec.items() if k != "containers"}


def test_an_engine_asks_for_its_nics_by_resource() -> None:
    container, pod = merged(tier(1, 2, **BY_RESOURCE), template(resources={"limits": {"nvidia.com/gpu": "2"}}))
    assert container["resources"] == {
        "requests": {"rdma/hca": "2"},
        "limits": {"rdma/hca": "2", "nvidia.com/gpu": "2"},
    }
    assert container["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert "resourceClaims" not in pod
    assert "hostNetwork" not in pod


def test_an_engine_asks_for_its_nics_by_claim_beside_its_gpus() -> None:
    before = template(resources={"claims": [{"name": "gpus"}]})
    before["spec"]["resourceClaims"] = [{"name": "gpus", "resourceClaimTemplateName": "two-h100"}]
    container, pod = merged(tier(1, 2, **BY_CLAIM), before)
    assert container["resources"] == {"claims": [{"name": "gpus"}, {"name": "kv-nics"}]}
    (gpus, nics) = pod["resourceClaims"]
    assert gpus == {"name": "gpus", "resourceClaimTemplateName": "two-h100"}
    claim = claimed(tier(1, 2, **BY_CLAIM))
    assert claim
    assert nics == claim.entry


def test_a_claim_of_the_users_own_may_have_the_name() -> None:
    before, asks = template(), patch(tier(**BY_CLAIM))
    before["spec"]["resourceClaims"] = [{"name": "kv-nics", "resourceClaimTemplateName": "mine"}]
    assert "resource claim 'kv-nics' of its own" in taken(before, asks, "engine")
    assert taken(before, patch(tier(**BY_RESOURCE)), "engine") == ""
    once, _ = apply(template(), asks, "engine", claim=claimed(tier(**BY_CLAIM)))
    assert taken(once, asks, "engine") == ""


@pytest.mark.parametrize(
    ("resources", "want"),
    [
        (
            {"limits": {"rdma/hca": "8"}},
            {"limits": {"rdma/hca": "8"}},
        ),
        (
            {"requests": {"rdma/hca": "8"}, "limits": {"rdma/hca": "8"}},
            {"requests": {"rdma/hca": "8"}, "limits": {"rdma/hca": "8"}},
        ),
        (
            {"requests": {"cpu": "8"}, "limits": {"cpu": "8"}},
            {"requests": {"cpu": "8", "rdma/hca": "2"}, "limits": {"cpu": "8", "rdma/hca": "2"}},
        ),
    ],
)
def test_the_users_own_number_wins_and_no_other_stands_beside_it(resources: Manifest, want: Manifest) -> None:
    # The API server takes no extended resource whose request is not its limit.
    container, _ = merged(tier(1, 2, **BY_RESOURCE), template(resources=resources))
    assert container["resources"] == want


@pytest.mark.parametrize(
    ("capabilities", "want"),
    [
        ({}, {"add": ["IPC_LOCK"]}),
        ({"drop": ["ALL"]}, {"drop": ["ALL"], "add": ["IPC_LOCK"]}),
        ({"add": ["SYS_PTRACE"]}, {"add": ["SYS_PTRACE", "IPC_LOCK"]}),
        ({"add": ["IPC_LOCK"]}, {"add": ["IPC_LOCK"]}),
    ],
)
def test_the_users_capabilities_stay(capabilities: Manifest, want: Manifest) -> None:
    context = {"runAsUser": 0, **({"capabilities": capabilities} if capabilities else {})}
    container, _ = merged(tier(**BY_RESOURCE), template(securityContext=context))
    assert container["securityContext"] == {"runAsUser": 0, "capabilities": want}


@pytest.mark.parametrize(
    ("pod", "want"),
    [
        ({}, {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}),
        ({"dnsPolicy": "Default"}, {"hostNetwork": True, "dnsPolicy": "Default"}),
        ({"hostNetwork": True}, {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}),
    ],
)
def test_an_engine_joins_its_agents_on_the_hosts_network(pod: Manifest, want: Manifest) -> None:
    before = template()
    before["spec"] |= pod
    _, after = merged(tier(**BY_RESOURCE, hostNetwork={"firstPort": 21850}), before)
    assert {k: after.get(k) for k in ("hostNetwork", "dnsPolicy")} == want


@pytest.mark.parametrize("how", [BY_RESOURCE, BY_CLAIM, {**BY_RESOURCE, "hostNetwork": {"firstPort": 21850}}])
def test_attaching_twice_adds_nothing(how: Manifest) -> None:
    before = template(
        resources={"limits": {"nvidia.com/gpu": "1"}}, securityContext={"capabilities": {"add": ["SYS_PTRACE"]}}
    )
    once, _ = apply(before, patch(tier(**how)), "engine", claim=claimed(tier(**how)))
    twice, _ = apply(once, patch(tier(**how)), "engine", claim=claimed(tier(**how)))
    assert json.dumps(twice, sort_keys=True) == json.dumps(once, sort_keys=True)


def test_only_the_engine_gets_the_nics() -> None:
    before = template()
    before["spec"]["containers"].append({"name": "sidecar", "image": "proxy:1"})
    after, _ = apply(before, patch(tier(**BY_CLAIM)), "engine", claim=claimed(tier(**BY_CLAIM)))
    assert after["spec"]["containers"][1] == {"name": "sidecar", "image": "proxy:1"}


def test_a_deployment_over_tcp_gets_no_capability() -> None:
    spec = {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 50, "protocol": "TCP"},
    }
    plain = Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.NEWEST)
    container, _ = merged(plain, template())
    assert "securityContext" not in container
    assert "resources" not in container or not container["resources"]
