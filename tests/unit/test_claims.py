"""Claims of NICs: in a copy of the claim that has the engine's GPUs, or a second one."""

import copy
import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest

from function import claims
from function.kube import MANAGED_BY, Manifest
from tests.lint.schemas import schema_errors
from tests.unit.modelplane import claim

GPU = "gpu.nvidia.com"
ROOT = "resource.kubernetes.io/pcieRoot"


def request(name: str, class_: str = GPU, count: int = 1, **exactly: Any) -> Manifest:
    return {"name": name, "exactly": {"deviceClassName": class_, "count": count, **exactly}}


def nics(count: int = 1) -> list[Manifest]:
    return [request("kv-nic", "rdma.example", count)]


def pod(*used: Manifest, **named: str) -> Manifest:
    """Write a pod whose engine uses claims, of these templates by the claims' names."""
    entries = [{"name": name, "resourceClaimTemplateName": template} for name, template in named.items()]
    container = {"name": "engine", "resources": {"claims": list(used)}}
    return {"containers": [{"name": "proxy"}, container], "resourceClaims": entries}


PLAIN = pod({"name": "devices"}, devices="main-devices")


def join(
    *requests: Manifest, nics_: Sequence[Manifest] = (), of: Manifest = PLAIN, align: bool = True, **devices: Any
) -> claims.Claim:
    """Join the claim of a pod whose template has these requests, and what else is given."""
    theirs = claim(*requests)
    theirs["spec"]["spec"]["devices"] |= devices
    untouched = copy.deepcopy(theirs)
    joined = claims.join(of, "engine", nics_ or nics(), {"main-devices": theirs}.get, align=align)
    assert theirs == untouched
    assert schema_errors(joined.template) == []
    return joined


def parts(joined: claims.Claim) -> tuple[list[tuple[str, str, int]], list[list[str]]]:
    """Show a claim: requests as (name, class, count), and which are held on one root."""
    devices = joined.template["spec"]["spec"]["devices"]
    shown = [
        (r["name"], r["exactly"]["deviceClassName"], r["exactly"]["count"]) if "exactly" in r else (r["name"], "", 0)
        for r in devices["requests"]
    ]
    constraints = devices.get("constraints", [])
    return shown, [c["requests"] for c in constraints if c["matchAttribute"] == ROOT]


# --- joined -------------------------------------------------------------------------------------------------------


def test_the_copy_is_named_after_its_template_and_its_own_content() -> None:
    joined = join(request("gpu"))
    metadata = joined.template["metadata"]
    assert metadata["name"].startswith("main-devices-nics-")
    assert (metadata["namespace"], metadata["labels"]) == ("default", MANAGED_BY)
    assert joined.entry == {"name": "devices", "resourceClaimTemplateName": metadata["name"]}
    ways = itertools.product((True, False), (1, 2))
    others = [join(request("gpu"), align=align, nics_=nics(count)).entry for align, count in ways]
    assert len({other["resourceClaimTemplateName"] for other in others}) == 4
    assert join(request("gpu")) == joined


@pytest.mark.parametrize("gpus", [1, 8])
def test_without_alignment_the_request_is_one_more(gpus: int) -> None:
    joined = join(request("gpu", count=gpus), align=False)
    assert parts(joined) == ([("gpu", GPU, gpus), ("kv-nic", "rdma.example", 1)], [])
    assert joined.apart == ""


@pytest.mark.parametrize("count", [1, 2])
def test_one_gpu_and_its_nics_are_on_one_root(count: int) -> None:
    joined = join(request("gpu"), nics_=nics(count))
    assert parts(joined) == ([("gpu", GPU, 1), ("kv-nic", "rdma.example", count)], [["gpu", "kv-nic"]])
    assert joined.apart == ""


def test_each_of_several_gpus_is_on_a_root_with_its_own_nics() -> None:
    """One constraint over all of them would want all devices on one root."""
    selectors = [{"cel": {"expression": "device.attributes['gpu.nvidia.com'].productName == 'H100'"}}]
    joined = join(request("gpu", count=2, selectors=selectors), request("efa", "efa.example", 4), nics_=nics(4))
    requests, roots = parts(joined)
    assert requests == [
        ("gpu-0", GPU, 1),
        ("gpu-1", GPU, 1),
        ("efa", "efa.example", 4),
        ("kv-nic-0", "rdma.example", 2),
        ("kv-nic-1", "rdma.example", 2),
    ]
    assert roots == [["gpu-0", "kv-nic-0"], ["gpu-1", "kv-nic-1"]]
    of_gpus = joined.template["spec"]["spec"]["devices"]["requests"][:2]
    assert [r["exactly"]["selectors"] for r in of_gpus] == [selectors, selectors]


def test_gpus_of_several_requests_are_shared_out_to_alike() -> None:
    joined = join(request("a"), request("b", "gpu.amd.com", 3), nics_=nics(4))
    assert parts(joined)[1] == [["a", "kv-nic-0"], ["b-0", "kv-nic-1"], ["b-1", "kv-nic-2"], ["b-2", "kv-nic-3"]]


def test_sixteen_pairs_fill_a_claim() -> None:
    joined = join(request("gpu", count=16), nics_=nics(16))
    assert joined.apart == ""
    assert len(parts(joined)[0]) == 32


def test_what_the_template_says_of_its_own_devices_does_not_bind_the_nics() -> None:
    numa = {"matchAttribute": "numa.example/node"}
    some = {"requests": ["gpu"], "matchAttribute": "fabric.example/clique"}
    config = {"opaque": {"driver": GPU, "parameters": {"sharing": "none"}}}
    joined = join(
        request("gpu", count=2), request("efa", "efa.example"), nics_=nics(2), constraints=[numa, some], config=[config]
    )
    devices = joined.template["spec"]["spec"]["devices"]
    assert devices["constraints"][:2] == [
        {**numa, "requests": ["gpu-0", "gpu-1", "efa"]},
        {**some, "requests": ["gpu-0", "gpu-1"]},
    ]
    assert devices["config"] == [{**config, "requests": ["gpu-0", "gpu-1", "efa"]}]


FIRST = {
    "name": "gpu",
    "firstAvailable": [
        {"name": "large", "deviceClassName": GPU, "count": 1},
        {"name": "small", "deviceClassName": GPU, "count": 2},
    ],
}
EVERY: Manifest = {"name": "gpu", "exactly": {"deviceClassName": GPU, "allocationMode": "All"}}


@pytest.mark.parametrize(
    ("requests", "count", "why"),
    [
        ([request("gpu", count=8)], 4, "8 GPUs cannot have equal shares of 4 NICs"),
        ([request("gpu", count=2)], 1, "2 GPUs cannot have equal shares of 1 NIC"),
        ([FIRST], 1, "'gpu' of the engine's claim leaves open which GPUs it gets (firstAvailable)"),
        ([EVERY], 1, "'gpu' of the engine's claim takes all GPUs there are (allocationMode All)"),
        ([request("mine", "gpu.example")], 1, "asks for no gpu.nvidia.com or gpu.amd.com"),
        ([request("gpu", count=2), request("gpu-0", "x.example")], 2, "have the names that single GPUs"),
    ],
)
def test_what_cannot_be_aligned_is_joined_and_said(requests: list[Manifest], count: int, why: str) -> None:
    theirs = claim(*requests)
    joined = claims.join(PLAIN, "engine", nics(count), {"main-devices": theirs}.get, align=True)
    devices = joined.template["spec"]["spec"]["devices"]
    assert devices == {"requests": [*requests, *nics(count)]}
    assert why in joined.apart


def test_a_claim_with_as_many_constraints_as_it_may_have_stays_unaligned() -> None:
    many = [{"requests": ["gpu"], "matchAttribute": f"x.example/a{n}"} for n in range(31)]
    joined = join(request("gpu", count=2), nics_=nics(2), constraints=many)
    assert "more than 32 requests or constraints" in joined.apart
    assert joined.template["spec"]["spec"]["devices"]["constraints"] == many


def test_a_long_name_stays_a_label() -> None:
    joined = join(request(63 * "g", count=11), nics_=nics(11))
    assert max(len(name) for name, _, _ in parts(joined)[0]) <= 63


def test_what_is_joined_already_stays_as_it_is() -> None:
    once = join(request("gpu"))
    again = claims.join(pod({"name": "devices"}, devices="copy"), "engine", nics(), {"copy": once.template}.get)
    assert again.template == once.template


# --- a second claim -----------------------------------------------------------------------------------------------

SECOND = {"name": "chat", "namespace": "default"}


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (pod(), "the engine claims nothing by DRA"),
        (pod({"name": "devices"}, devices="not-composed-here"), "no step of this pipeline composes"),
        (pod({"name": "devices"}), "no step of this pipeline composes"),
        (pod({"name": "devices", "request": "gpu"}, devices="gpus"), "sees only request 'gpu'"),
        (pod({"name": "a"}, {"name": "b"}, a="gpus", b="gpus"), "several claims"),
        (pod({"name": "a"}, {"name": "b"}, a="nvme", b="nvme"), "several claims"),
        (pod({"name": "devices"}, devices="old"), "is of resource.k8s.io/v1beta1, not resource.k8s.io/v1"),
        (pod({"name": "devices"}, devices="empty"), "asks for nothing"),
        (pod({"name": "devices"}, devices="flat"), "not in the shape of its API"),
        (pod({"name": "devices"}, devices="full"), "more than 32 devices"),
        (pod({"name": "devices"}, devices="taken"), "has a request 'kv-nic' of its own"),
    ],
)
def test_what_nics_cannot_join(of: Manifest, why: str) -> None:
    old = claim({"name": "gpu", "deviceClassName": GPU, "count": 1})
    found = {
        "gpus": claim(),
        "nvme": claim(request("disk", "nvme.example")),
        "old": {**old, "apiVersion": "resource.k8s.io/v1beta1"},
        "empty": {**old, "spec": None},
        "flat": old,
        "full": claim(request("gpu", count=8), request("efa", "efa.example", 24)),
        "taken": claim(request("gpu"), request("kv-nic", "x.example")),
    }
    with pytest.raises(claims.Apart, match=re.escape(why)):
        claims.join(of, "engine", nics(), found.get, align=True)


def test_nics_join_the_claim_that_has_the_gpus() -> None:
    of = pod({"name": "disk"}, {"name": "gpus"}, disk="nvme", gpus="main-devices")
    found = {"nvme": claim(request("disk", "nvme.example")), "main-devices": claim(FIRST)}
    assert claims.join(of, "engine", nics(), found.get).name == "gpus"


def test_a_claim_of_nics_alone() -> None:
    alone = claims.own(nics(2), SECOND, "why")
    assert schema_errors(alone.template) == []
    assert alone.template["spec"] == {"spec": {"devices": {"requests": nics(2)}}}
    assert alone.template["metadata"]["name"].startswith("chat-nics-")
    assert alone.entry == {"name": "kv-nics", "resourceClaimTemplateName": alone.template["metadata"]["name"]}
    assert claims.is_own(alone.entry, nics(2))
    assert not claims.is_own(alone.entry, nics(1))
    assert not claims.is_own({"name": "kv-nics", "resourceClaimName": "mine"}, nics(2))


# --- what an engine's own claims ask for --------------------------------------------------------------------------


def test_what_can_be_seen_is_counted_by_class() -> None:
    of = pod({"name": "a"}, {"name": "b"}, {"name": "c"}, a="gpus", b="efa", c="unknown")
    found = {"gpus": claim(FIRST, request("x", "efa.example", 2)), "efa": claim(request("efa", "efa.example", 16))}
    assert claims.asked(of, "engine", found.get) == {GPU: 1, "efa.example": 18}
    assert claims.asked(of, "proxy", found.get) == {}


def test_our_own_requests_are_not_the_engines() -> None:
    joined = join(request("gpu"))
    assert claims.asked(pod({"name": "a"}, a="copy"), "engine", {"copy": joined.template}.get) == {}
