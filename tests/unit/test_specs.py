"""Properties of every spec that the API accepts, whatever its fields: steady, distinct, sound."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from function.kube import Manifest
from function.render import Rendered, render
from tests.lint.schemas import schema_errors
from tests.standin import observe
from tests.unit import specs
from tests.unit.test_properties import CLUSTER, SECRET

BACKENDS = sorted(specs.BLOCKS)
# A password, a bucket's credentials, a key of 32 bytes, an authority, and EIC's file: whatever a tier may ask of its
# Secret.
KEYS: Manifest = {
    **SECRET,
    "data": {
        **SECRET["data"],
        "access-key-id": "QUtJQQ==",
        "secret-access-key": "c2VjcmV0",
        "key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        "ca.crt": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==",
        "eic.yaml": "Y2x1c3RlcjogZWljCg==",
    },
}
BEHIND: Manifest = {
    "apiVersion": "modelplane.ai/v1alpha1",
    "kind": "KVOffloadTier",
    "metadata": {"name": "behind", "namespace": "modelplane-system"},
    "spec": {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"},
    },
}
LONGEST_LABEL, LONGEST_STATEFUL_SET = 63, 52

several = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def tier(spec: Manifest, name: str = "shared", namespace: str = "modelplane-system") -> Manifest:
    metadata = {"name": name, "namespace": namespace, "generation": 1}
    return {"apiVersion": "modelplane.ai/v1alpha1", "kind": "KVOffloadTier", "metadata": metadata, "spec": spec}


def required(namespace: str = "modelplane-system") -> list[Manifest]:
    secret, behind = copy.deepcopy((KEYS, BEHIND))
    for manifest in (secret, behind):
        manifest["metadata"]["namespace"] = namespace
    return [CLUSTER, secret, behind]


def composed(spec: Manifest, name: str = "shared", namespace: str = "modelplane-system") -> Rendered:
    rendered = render(tier(spec, name, namespace), [], required(namespace))
    accepted = rendered.condition("Accepted")
    # Shares of a node that come to nothing are told on the composite, and nothing is composed.
    assume(accepted["status"] == "True")
    return rendered


def said(rendered: Rendered) -> list[str]:
    return [f"{r['severity']} {r['message']}" for r in rendered.results]


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@several
def test_a_second_pass_over_its_own_output_changes_nothing(backend: str, data: st.DataObject) -> None:
    spec = data.draw(specs.of_backend(backend))
    first = composed(spec)
    observed = observe(first)
    second = render(first.composite, observed, required())
    assert second.composed == first.composed
    third = render(second.composite, observe(second, observed), required())
    fourth = render(third.composite, observe(third, observed), required())
    assert (fourth.composed, fourth.composite) == (third.composed, third.composite)
    assert said(fourth) == []


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@several
def test_once_everything_runs_a_tier_is_ready(backend: str, data: st.DataObject) -> None:
    spec = data.draw(specs.of_backend(backend))
    assume("tierRef" not in spec.get("hicache", {}).get("l3", {}))
    first = composed(spec)
    second = render(first.composite, observe(first), required())
    states = {c["type"]: c["status"] for c in second.composite["status"]["conditions"]}
    warnings = {"HostNetworkUnprotected", "KeysNotDurable", "EtcdFillsUp", "InsufficientNICs", "LegacyBackend"}
    assert {type_ for type_, status in states.items() if status != "True"} <= warnings
    vineyard = "vineyard" in spec.get("aibrix", {}).get("distributed", {})
    assert states["LegacyBackend"] == ("True" if vineyard else "False")


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@several
def test_every_manifest_is_one_that_kubernetes_takes(backend: str, data: st.DataObject) -> None:
    rendered = composed(data.draw(specs.of_backend(backend)))
    for manifest in rendered.manifests:
        assert schema_errors(manifest) == []
        assert holes(manifest) == []


@given(data=st.data(), backends=st.tuples(st.sampled_from(BACKENDS), st.sampled_from(BACKENDS)))
@several
def test_no_two_tiers_of_a_cluster_meet(data: st.DataObject, backends: tuple[str, str]) -> None:
    names = data.draw(
        st.sampled_from([(("a-b", "c"), ("a", "b-c")), (("n", "x"), ("n", "y")), (("m", "x"), ("n", "x"))])
    )
    (one, other) = (
        composed(data.draw(specs.of_backend(backend)), name, namespace)
        for backend, (namespace, name) in zip(backends, names, strict=True)
    )
    assert landed(one).isdisjoint(landed(other))
    assert pools(one).isdisjoint(pools(other))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), name=st.sampled_from(["x" * 63, "shared.tier" + "x" * 52, "a"]))
@several
def test_every_name_fits_where_it_has_to(backend: str, data: st.DataObject, name: str) -> None:
    rendered = composed(data.draw(specs.of_backend(backend)), name)
    for manifest in rendered.manifests:
        longest = LONGEST_STATEFUL_SET if manifest["kind"] == "StatefulSet" else LONGEST_LABEL
        assert len(manifest["metadata"]["name"]) <= longest
    assert all(len(manifest["metadata"]["name"]) <= LONGEST_LABEL for manifest in rendered.composed.values())


def landed(rendered: Rendered) -> set[tuple[str, str, str]]:
    """Say what a tier puts on the cluster."""
    return {(m["kind"], m["metadata"]["namespace"], m["metadata"]["name"]) for m in rendered.manifests}


def pools(rendered: Rendered) -> set[str]:
    """Say by which ids a tier's masters know their pool."""
    return {
        arg
        for manifest in rendered.manifests
        if manifest["kind"] == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
        for arg in container.get("args", ())
        if arg.startswith("--cluster_id=")
    }


def holes(value: Any, where: str = "") -> list[str]:
    """Find nulls and floats that should be integers: neither may be sent."""
    if isinstance(value, dict):
        return [hole for key, item in value.items() for hole in holes(item, f"{where}.{key}")]
    if isinstance(value, list):
        return [hole for i, item in enumerate(value) for hole in holes(item, f"{where}[{i}]")]
    return [where] if value is None or isinstance(value, float) else []


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@several
def test_every_part_of_a_control_plane_fits_the_restricted_level(backend: str, data: st.DataObject) -> None:
    """As https://kubernetes.io/docs/concepts/security/pod-security-standards has it."""
    rendered = composed(data.draw(specs.of_backend(backend)))
    for manifest in rendered.manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            pod = manifest["spec"]["template"]["spec"]
            assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for volume in pod.get("volumes", ()):
                assert set(volume) - {"name"} <= {"configMap", "emptyDir", "secret", "projected"}
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                confined = container["securityContext"]
                assert confined["allowPrivilegeEscalation"] is False
                assert confined["capabilities"] == {"drop": ["ALL"]}
                assert confined.get("runAsUser", 1) > 0
                assert "privileged" not in confined
