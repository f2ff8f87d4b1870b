"""A standalone InferenceCluster."""

from typing import Any

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
