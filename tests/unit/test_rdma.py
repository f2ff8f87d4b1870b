"""RDMA: NICs for agents and engines, by claim or by resource, and what becomes of an engine's pod with them."""

import copy
import json
from typing import Any

import pytest

from function import api, rdma, releases
from function.api.tier import TierSpec
from function.attach import apply
from function.backends import of
from function.backends.base import EnginePatch, Site, Tier
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
    names = [n.claims[0]["resourceClaimTemplateName"] for n in (rdma.for_agents(by_claim), rdma.for_engine(by_claim))]
    counts = {
        p.manifest["metadata"]["name"]: p.manifest["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"]
        for p in rdma.parts(by_claim)
    }
    assert [counts[name] for name in names] == [1, 2]


def test_equal_counts_share_a_template() -> None:
    both = tier(2, 2, **BY_CLAIM)
    (only,) = rdma.parts(both)
    for nics in (rdma.for_agents(both), rdma.for_engine(both)):
        assert nics.claims[0]["resourceClaimTemplateName"] == only.manifest["metadata"]["name"]


@pytest.mark.parametrize("how", [BY_RESOURCE, BY_CLAIM])
def test_whoever_has_no_nic_needs_nothing(how: Manifest) -> None:
    without = nixl(0, 1, **how)
    assert rdma.for_agents(without) == rdma.Nics()
    assert rdma.for_engine(without).capabilities == ("IPC_LOCK",)
    assert len(rdma.parts(without)) == (1 if how is BY_CLAIM else 0)


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


# --- what an engine's pod becomes ---------------------------------------------------------------------------------


def patch(of_tier: Tier) -> EnginePatch:
    found = of(of_tier.spec).attach(of_tier, Site(), engine())
    assert isinstance(found, EnginePatch)
    return found


def template(**container: Any) -> Manifest:
    return {"metadata": {"labels": {"app": "chat"}}, "spec": {"containers": [{"name": "engine", **container}]}}


def merged(of_tier: Tier, before: Manifest) -> tuple[Manifest, Manifest]:
    """Attach a pod; the result is its container, and its spec without it."""
    untouched = copy.deepcopy(before)
    after, _ = apply(before, patch(of_tier), "engine")
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
    (_, two) = sorted(rdma.parts(tier(1, 2, **BY_CLAIM)), key=lambda p: str(p.manifest["spec"]))
    assert pod["resourceClaims"] == [
        {"name": "gpus", "resourceClaimTemplateName": "two-h100"},
        {"name": "kv-nics", "resourceClaimTemplateName": two.manifest["metadata"]["name"]},
    ]
    assert two.manifest["metadata"]["name"].startswith(f"{INSTANCE}-nics-")


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
    once, _ = apply(before, patch(tier(**how)), "engine")
    twice, _ = apply(once, patch(tier(**how)), "engine")
    assert json.dumps(twice, sort_keys=True) == json.dumps(once, sort_keys=True)


def test_only_the_engine_gets_the_nics() -> None:
    before = template()
    before["spec"]["containers"].append({"name": "sidecar", "image": "proxy:1"})
    after, _ = apply(before, patch(tier(**BY_CLAIM)), "engine")
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
