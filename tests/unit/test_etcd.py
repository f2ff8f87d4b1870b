"""The etcd that a tier provisions: one member or three that form one cluster, and the script that writes its file."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from function import api, kube, releases
from function.api.tier import EtcdProvision, TierSpec
from function.backends.base import Part, Tier
from function.kube import Manifest
from function.stores import etcd

# sha256("kvtier/modelplane-system/shared") begins with 5d78e.
NAME = "kvtier-modelplane-system-shared-5d78e-etcd"
CLIENTS = [{"app": "master"}, {"app": "engine"}]


def tier(namespace: str = "modelplane-system", name: str = "shared", **provision: Any) -> Tier:
    """Read a tier that provisions an etcd."""
    spec = {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Mooncake",
        "mooncake": {
            "segmentGiBPerNode": 50,
            "protocol": "TCP",
            "master": {"replicas": 3},
            "etcd": {"provision": provision},
        },
    }
    return Tier(namespace, name, api.parse(TierSpec, spec), releases.RELEASES["2026.11"])


def provision(of_tier: Tier) -> EtcdProvision:
    assert of_tier.spec.mooncake
    assert of_tier.spec.mooncake.etcd
    assert of_tier.spec.mooncake.etcd.provision
    return of_tier.spec.mooncake.etcd.provision


def parts(of_tier: Tier) -> dict[str, Part]:
    return {p.name: p for p in etcd.parts(of_tier, provision(of_tier), CLIENTS)}


def members(of_tier: Tier) -> Manifest:
    found: Manifest = parts(of_tier)["etcd"].manifest["spec"]
    return found


def pod(of_tier: Tier) -> Manifest:
    found: Manifest = members(of_tier)["template"]["spec"]
    return found


# --- what runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "names"),
    [
        (1, ["etcd-service", "etcd-network-policy", "etcd"]),
        (3, ["etcd-service", "etcd-network-policy", "etcd", "etcd-budget"]),
    ],
)
def test_only_several_members_have_a_disruption_budget(replicas: int, names: list[str]) -> None:
    assert list(parts(tier(replicas=replicas))) == names


def test_three_members_are_what_you_get_without_asking() -> None:
    assert members(tier())["replicas"] == 3


def test_members_start_together_since_they_are_ready_only_together() -> None:
    spec = members(tier())
    assert spec["podManagementPolicy"] == "Parallel"
    service = parts(tier())["etcd-service"].manifest
    assert spec["serviceName"] == service["metadata"]["name"] == NAME
    assert service["spec"]["clusterIP"] == "None"
    # They find each other before any of them is ready.
    assert service["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize(
    ("asked", "claim"),
    [
        ({}, {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Gi"}}}),
        (
            {"volume": {"size": "32Gi", "storageClassName": "gp3"}},
            {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "gp3",
                "resources": {"requests": {"storage": "32Gi"}},
            },
        ),
    ],
)
def test_each_member_has_a_volume_that_goes_with_the_tier(asked: Manifest, claim: Manifest) -> None:
    spec = members(tier(**asked))
    assert spec["volumeClaimTemplates"] == [{"metadata": {"name": "data"}, "spec": claim}]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Retain"}
    assert "data" not in [v["name"] for v in pod(tier(**asked))["volumes"]]


def test_ephemeral_members_have_none() -> None:
    spec = members(tier(replicas=1, ephemeral=True))
    assert "volumeClaimTemplates" not in spec
    assert "persistentVolumeClaimRetentionPolicy" not in spec
    (data,) = [v for v in pod(tier(replicas=1, ephemeral=True))["volumes"] if v["name"] == "data"]
    assert data == {"name": "data", "emptyDir": {"sizeLimit": "8Gi"}}


@pytest.mark.parametrize(
    ("asked", "quota"),
    [
        ({}, 6012954214),
        ({"replicas": 1, "ephemeral": True}, 6012954214),
        ({"volume": {"size": "1Gi"}}, 751619276),
        ({"volume": {"size": "10G"}}, 7000000000),
        ({"volume": {"size": "100Gi"}}, 8589934592),  # etcd's own advice for the most
    ],
)
def test_a_member_raises_its_alarm_before_its_volume_is_full(asked: Manifest, quota: int) -> None:
    configure, *_ = pod(tier(**asked))["initContainers"]
    values = {e["name"]: e.get("value") for e in configure["env"]}
    assert values["QUOTA"] == str(quota)


def test_a_member_is_alive_while_it_listens_and_ready_with_a_majority() -> None:
    (member,) = pod(tier())["containers"]
    assert member["command"] == ["etcd", "--config-file=/etc/kv-etcd/etcd.yaml"]
    assert member["readinessProbe"]["httpGet"] == {"path": "/health", "port": "client"}
    # Without a majority a restart of this one would not help.
    for probe in ("startupProbe", "livenessProbe"):
        assert member[probe]["tcpSocket"] == {"port": "client"}


def test_members_rather_share_no_node() -> None:
    (preferred,) = pod(tier())["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert preferred["podAffinityTerm"]["labelSelector"]["matchLabels"] == members(tier())["selector"]["matchLabels"]


@pytest.mark.parametrize(("replicas", "count"), [(1, 1), (3, 3)])
def test_clients_are_given_every_member_by_its_own_name(replicas: int, count: int) -> None:
    of_tier = tier(replicas=replicas)
    assert etcd.endpoints(of_tier, provision(of_tier)) == [f"{NAME}-{i}.{NAME}.default.svc:2379" for i in range(count)]


@pytest.mark.parametrize(
    ("namespace", "name"), [("modelplane-system", "shared"), ("n" * 63, "t" * 63), ("a", "b." * 31 + "c")]
)
def test_a_members_label_of_its_revision_fits(namespace: str, name: str) -> None:
    named = parts(tier(namespace, name))["etcd"].manifest["metadata"]["name"]
    assert len(f"{named}-{'x' * 10}") <= 63
    assert named.endswith("-etcd")
    assert not set(named) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_images_are_the_releases_unless_they_are_given() -> None:
    of_tier = tier()
    assert pod(of_tier)["containers"][0]["image"] == "gcr.io/etcd-development/etcd:v3.6.16"
    assert pod(of_tier)["initContainers"][0]["image"] == "busybox:1.37.0"


# --- its file, written by the script itself -----------------------------------------------------------------------


# How a member is asked whom it knows.
LIST = "2379/v3/cluster/member/list"


def configure(
    of_tier: Tier, tmp_path: Path, *, well: Sequence[str] = (), added: bool = False, member: int = 0
) -> tuple[Manifest, list[str]]:
    """Run a member's init container, with sh and a wget that reaches only the hosts of `well`.

    They know this member as one that runs, or, once it was `added`, as one that never started and so has no name.

    Returns:
        The file that it wrote, and the URLs that it asked for.
    """
    (container,) = pod(of_tier)["initContainers"]
    fields = {"metadata.name": f"{NAME}-{member}", "status.podIP": f"10.0.0.{member}"}
    env = {
        e["name"]: e["value"] if "value" in e else fields[e["valueFrom"]["fieldRef"]["fieldPath"]]
        for e in container["env"]
    }
    env = {name: value.replace("$(POD_NAME)", fields["metadata.name"]) for name, value in env.items()}
    known = [
        {
            "ID": str(i),
            **({} if added and i == member else {"name": f"{NAME}-{i}"}),
            "peerURLs": [f"http://{_host(i)}:2380"],
        }
        for i in range(3)
    ]
    (tmp_path / "answer").write_text(kube.compact({"header": {"cluster_id": "1"}, "members": known}))
    fake = tmp_path / "bin"
    fake.mkdir()
    asked = tmp_path / "asked"
    asked.touch()
    (fake / "wget").write_text(
        "#!/bin/sh\n"
        f'for last; do :; done\necho "$last" >> {asked}\n'
        f'case "$last" in {"|".join(f"http://{host}:{LIST}" for host in well) or "none"})\n'
        f"cat {tmp_path}/answer; exit 0;; esac\n"
        "exit 1\n"
    )
    (fake / "wget").chmod(0o755)
    command = [word.replace("/etc/kv-etcd", str(tmp_path)) for word in container["command"]]
    assert command[:2] == ["sh", "-c"]
    subprocess.run(command, env={**env, "PATH": f"{fake}:{os.environ['PATH']}"}, check=True, timeout=10)
    written: Manifest = yaml.safe_load((tmp_path / "etcd.yaml").read_text())
    return written, asked.read_text().split()


def _host(member: int) -> str:
    return f"{NAME}-{member}.{NAME}.default.svc"


def test_the_file_says_who_it_is_and_who_the_others_are(tmp_path: Path) -> None:
    written, asked = configure(tier(), tmp_path, member=1)
    assert asked == [f"http://{_host(i)}:{LIST}" for i in range(3)]
    assert written == {
        "name": f"{NAME}-1",
        "data-dir": "/var/lib/etcd/data",
        "listen-peer-urls": "http://10.0.0.1:2380",
        "listen-client-urls": "http://10.0.0.1:2379",
        "listen-metrics-urls": "http://10.0.0.1:2381",
        "initial-advertise-peer-urls": f"http://{_host(1)}:2380",
        "advertise-client-urls": f"http://{_host(1)}:2379",
        "initial-cluster": ",".join(f"{NAME}-{i}=http://{_host(i)}:2380" for i in range(3)),
        "initial-cluster-token": NAME,
        "initial-cluster-state": "new",
        "enable-grpc-gateway": True,
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": 6012954214,
    }


def test_a_single_member_is_a_cluster_of_its_own(tmp_path: Path) -> None:
    written, _ = configure(tier(replicas=1), tmp_path)
    assert written["initial-cluster"] == f"{NAME}-0=http://{_host(0)}:2380"
    assert written["initial-cluster-state"] == "new"


@pytest.mark.parametrize("well", [[], [0], [1], [0, 1]], ids=str)
def test_a_member_that_nobody_removed_says_that_it_founds_a_cluster(tmp_path: Path, well: list[int]) -> None:
    """If it had its data, etcd does not care; if it has lost them, etcd refuses it, since it could vote twice."""
    written, _ = configure(tier(), tmp_path, well=[_host(i) for i in well], member=2)
    assert written["initial-cluster-state"] == "new"


@pytest.mark.parametrize("well", [[0], [1], [0, 1]], ids=str)
def test_a_member_that_was_removed_and_added_joins(tmp_path: Path, well: list[int]) -> None:
    written, _ = configure(tier(), tmp_path, well=[_host(i) for i in well], added=True, member=2)
    assert written["initial-cluster-state"] == "existing"


def test_a_members_data_is_in_its_volume_and_its_file_where_it_reads_it() -> None:
    (container,), (init,) = pod(tier())["containers"], pod(tier())["initContainers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts == {"config": "/etc/kv-etcd", "data": "/var/lib/etcd"}
    assert {m["name"]: m["mountPath"] for m in init["volumeMounts"]} == {"config": "/etc/kv-etcd"}


def test_what_is_listened_on_is_declared() -> None:
    (container,) = pod(tier())["containers"]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {
        "client": 2379,
        "peer": 2380,
        "metrics": 2381,
    }
