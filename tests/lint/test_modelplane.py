"""The manifests for Modelplane are what Kubernetes accepts, and name what the rest of the repository names."""

from pathlib import Path
from typing import Any

import pytest

from function.render import EXAMPLES, load
from tests.lint.schemas import schema_errors

MANIFESTS = load(Path("compositions/modelplane/policy.yaml"))
POLICY = next(m for m in MANIFESTS if m["kind"] == "MutatingAdmissionPolicy")
STABLE = "admissionregistration.k8s.io/v1"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: m["kind"])
def test_kubernetes_takes_them_and_an_older_one_with_the_version_that_the_docs_say(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == STABLE
    assert [error for error in schema_errors(manifest) if not error.endswith("[1.34]")] == []
    beta = {**manifest, "apiVersion": f"{STABLE}beta1"}
    assert [error for error in schema_errors(beta) if "1.34" in error] == []


def test_the_binding_binds_the_policy() -> None:
    (binding,) = (m for m in MANIFESTS if m["kind"] == "MutatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == POLICY["metadata"]["name"]


def test_the_step_that_it_adds_is_the_one_that_it_looks_for_and_calls_the_function_by_its_name() -> None:
    (function,) = (f["metadata"]["name"] for f in load(EXAMPLES / "functions.yaml"))
    condition = next(c for c in POLICY["spec"]["matchConditions"] if c["name"] == "lacks-the-step")
    assert f"functionRef.name == '{function}'" in condition["expression"]
    (mutation,) = POLICY["spec"]["mutations"]
    assert f'functionRef{{name: "{function}"}}' in mutation["jsonPatch"]["expression"]
