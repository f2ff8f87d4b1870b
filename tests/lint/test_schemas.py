"""Schemas accept the good set, and refuse what Kubernetes would."""

import importlib.resources
from typing import Any

import pytest

from tests.lint.good import good_set
from tests.lint.schemas import NEWEST, OLDEST, VERSIONS, schema_errors


def test_the_versions_are_ours_and_the_newest_of_the_package() -> None:
    folders = (importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema").iterdir()
    minors = [int(folder.name.split(".")[1]) for folder in folders if folder.name.endswith("-strict")]
    assert VERSIONS == (OLDEST, NEWEST)
    assert f"1.{max(minors)}" == NEWEST


@pytest.mark.parametrize("who", good_set())
def test_the_good_set_is_accepted(who: str) -> None:
    assert schema_errors(good_set()[who]) == []


@pytest.mark.parametrize(
    ("changes", "begins", "says"),
    [
        pytest.param({"specc": {}}, "DaemonSet/lm-agent: manifest", "specc", id="a field is misspelt"),
        pytest.param({"spec": {"selector": {}}}, "DaemonSet/lm-agent: spec", "template", id="a field is missing"),
        pytest.param(
            {"apiVersion": "apps/v2"},
            "DaemonSet/lm-agent: apiVersion",
            "no DaemonSet in apps/v2",
            id="a group has no such version",
        ),
        pytest.param(
            {"apiVersion": "app/v1"},
            "DaemonSet/lm-agent: apiVersion",
            "no DaemonSet in app/v1",
            id="a group is misspelt",
        ),
        pytest.param(
            {"kind": "DeamonSet"}, "DeamonSet/lm-agent: apiVersion", "no DeamonSet in apps/v1", id="a kind is misspelt"
        ),
    ],
)
def test_a_fault_is_told_once_for_all_versions(changes: dict[str, Any], begins: str, says: str) -> None:
    (error,) = schema_errors({**good_set()["DaemonSet/lm-agent"], **changes})
    assert error.startswith(f"{begins}:") and says in error and error.endswith("[1.34, 1.37]")


def test_all_faults_of_a_manifest_are_told() -> None:
    agent = good_set()["DaemonSet/lm-agent"]
    container = agent["spec"]["template"]["spec"]["containers"][0]
    container["imagee"] = "x"
    container["ports"][0]["containerPort"] = "5555"
    assert len(schema_errors(agent)) == 2


def test_a_custom_kind_has_no_schema_here() -> None:
    assert schema_errors({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "spec": 1}) == []
