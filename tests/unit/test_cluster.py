"""A standalone InferenceCluster."""

from typing import Any

import pytest
from google.protobuf import struct_pb2 as structpb

from function import resolve
from function.cluster import View
from function.kube import Manifest
from function.render import render
from tests.unit.stories import Story, state


def cluster(source: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": "gke"},
        "spec": {"cluster": source},
    }


EXISTING = {"source": "Existing", "existing": {"secretRef": {"name": "kubeconfig"}}}


def test_an_existing_cluster_is_reached_by_its_kubeconfig() -> None:
    rendered = render(cluster(EXISTING))
    (config,) = rendered.composed.values()
    assert config["kind"] == "ClusterProviderConfig"
    assert config["spec"]["credentials"] == {
        "source": "Secret",
        "secretRef": {"namespace": "modelplane-system", "name": "kubeconfig", "key": "kubeconfig"},
    }
    assert rendered.composite["status"]["providerConfigRef"] == {"name": config["metadata"]["name"]}


def test_a_local_cluster_is_reached_as_the_provider_itself() -> None:
    (config,) = render(cluster({"source": "Local"})).composed.values()
    assert config["spec"]["credentials"] == {"source": "InjectedIdentity"}


def test_a_wrong_spec_keeps_the_provider_config_and_the_status() -> None:
    story = Story(cluster(EXISTING), [])
    settled = story.settle()
    story.happen()
    story.composite["spec"]["cluster"] = {"source": "Existing"}
    rendered = story.render()
    assert not rendered.fatal
    assert rendered.composed == settled.composed
    assert rendered.composite["status"]["providerConfigRef"] == settled.composite["status"]["providerConfigRef"]
    assert state(rendered, "Accepted") == ("False", "InvalidSpec")


def device(name: str, class_: str | None, count: int | None, driver: str = "x") -> Manifest:
    """Write a pool's device, as Modelplane copies it from the pool's InferenceClass."""
    given = {"deviceClassName": class_, "count": count}
    return {"name": name, "driver": driver, **{key: value for key, value in given.items() if value is not None}}


@pytest.mark.parametrize(
    ("pools", "want"),
    [
        (None, {}),
        ([{"name": "cpu"}], {"cpu": {}}),
        (
            [
                {
                    "name": "h100",
                    "devices": [
                        device("gpu", "gpu.nvidia.com", 8),
                        device("front", "rdma.example", 2),
                        device("back", "rdma.example", 8),
                        device("fabric", None, 4),
                    ],
                },
                {"name": "l40s", "devices": [device("nic", "rdma.example", None)]},
            ],
            {"h100": {"gpu.nvidia.com": 8, "rdma.example": 10}, "l40s": {"rdma.example": 1}},
        ),
    ],
)
def test_pools_say_what_a_node_can_hand_out(pools: list[Manifest] | None, want: Manifest) -> None:
    struct = structpb.Struct()
    struct.update({"status": {"gpuPools": pools} if pools else {}})
    assert View("gke", resolve.Found(resolve.State.PRESENT, struct)).pools == want
