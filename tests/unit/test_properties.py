"""The function is a pure function of its request: same request, same bytes, in whatever order it is told."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from function import fn
from function.kube import Manifest
from function.render import load, render, request
from tests.standin import observe
from tests.unit.builders import NEW, OLD, redis, tier_spec

CLUSTER: Manifest = {
    "apiVersion": "modelplane.ai/v1alpha1",
    "kind": "InferenceCluster",
    "metadata": {"name": "eu-h100"},
    "spec": {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": "eu-h100"}}}},
    "status": {
        "providerConfigRef": {"name": "eu-h100-kubeconfig"},
        "gpuPools": [{"devices": [{"driver": "gpu.nvidia.com", "count": 8}]}],
    },
}
SECRET: Manifest = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "kv", "namespace": "modelplane-system", "uid": "u", "resourceVersion": "1"},
    "data": {"username": "a3Y=", "password": "aHVudGVyMg=="},
}
USAGE: Manifest = {
    "apiVersion": "protection.crossplane.io/v1beta1",
    "kind": "Usage",
    "metadata": {"name": "code", "namespace": "ml"},
    "spec": {
        "of": {
            "apiVersion": "modelplane.ai/v1alpha1",
            "kind": "KVOffloadTier",
            "resourceRef": {"name": "shared", "namespace": "modelplane-system"},
        },
    },
}


def tier(spec: Manifest) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": "shared", "namespace": "modelplane-system", "generation": 3},
        "spec": spec,
    }


def deployment(engine: Manifest, **spec: Any) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "chat", "namespace": "ml", "generation": 1},
        "spec": {"engine": {"name": "vLLM", "kvCache": {"tierRef": {"name": "shared"}}, **engine}, **spec},
    }


DISK: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}
TIERS: st.SearchStrategy[Manifest] = st.sampled_from(
    [
        tier_spec(),
        tier_spec({"mode": "InProcess"}),
        tier_spec({"remote": redis(secretRef={"name": "kv"}), "diskTier": DISK}),
        tier_spec({"remote": redis(secretRef={"name": "kv"}), "mode": "InProcess", "diskTier": DISK}),
        tier_spec({"ipc": "Shared"}, targetNamespace="kv", placement={"nodeSelector": {"a": "1", "b": "2", "c": "3"}}),
        tier_spec({"chunkSize": 1}),
        {},
    ]
)
ENGINES: st.SearchStrategy[Manifest] = st.sampled_from(
    [
        {"image": NEW, "args": ["--model=Q/Q"]},
        {"image": OLD, "args": ["--model=Q/Q", "-tp=4"], "env": [{"name": "PYTHONHASHSEED", "value": "0"}]},
        {"image": NEW, "args": ["--model=/mnt/models", "--quantization=fp8"]},
        {"image": NEW, "command": ["/bin/sh", "-c", "vllm serve Q/Q"]},
        {"image": "vllm/vllm-openai:latest"},
        {"image": ""},
    ]
)


class Moment:
    """A composite, what is observed of it, and what is required: all that a request holds."""

    def __init__(self, composite: Manifest, before: Sequence[Manifest], passes: int) -> None:
        """Let a composite live for some passes, with what is required at that time."""
        self.composite = composite
        self.observed: list[Manifest] = []
        self.required: list[tuple[str, Manifest | None]] = []
        for _ in range(passes):
            rendered = render(self.composite, self.observed, before)
            self.composite = rendered.composite
            self.observed = observe(rendered, self.observed)

    def now(self, spec: Manifest, required: Sequence[Manifest], rounds: int) -> "Moment":
        """Change its spec and what is required, and look it up for some rounds."""
        self.composite = {**self.composite, "spec": spec}
        kinds = {r["kind"]: r for r in required}
        for _ in range(rounds):
            wanted = fn.run(self.request()).requirements.resources
            self.required = [(key, kinds.get(selector.kind)) for key, selector in sorted(wanted.items())]
        return self

    def request(self, *, shuffle: Callable[[list[Any]], None] | None = None) -> fnv1.RunFunctionRequest:
        """Build the request; with `shuffle`, everything in it that has no order is put in another one."""
        composite, observed, required = copy.deepcopy((self.composite, self.observed, self.required))
        if shuffle:
            composite, observed, required = disordered((composite, observed, required), shuffle)
            shuffle(observed)
            shuffle(required)
        return request(composite, observed, required)


def disordered(value: Any, shuffle: Callable[[list[Any]], None]) -> Any:
    """Put the fields of all objects in another order."""
    if isinstance(value, dict):
        items = [(k, disordered(v, shuffle)) for k, v in value.items()]
        shuffle(items)
        return dict(items)
    if isinstance(value, list | tuple):
        return type(value)(disordered(v, shuffle) for v in value)
    return value


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    """Give a tier, an engine or a cluster at some time of its life.

    Since its last pass its spec may have become wrong, and what it requires may have gone, or not be read yet.
    """
    spec, passes, rounds = draw(TIERS), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    spoilt = draw(st.booleans())
    kind = draw(st.sampled_from(["tier", "deployment", "cluster"]))
    if kind == "cluster":
        return Moment(CLUSTER, [], passes).now({} if spoilt else CLUSTER["spec"], [], rounds)
    before = [CLUSTER, SECRET, tier(spec)]
    after = draw(
        st.lists(st.sampled_from([CLUSTER, SECRET, USAGE, tier(spec), tier({})]), unique_by=lambda r: r["kind"])
    )
    composite = deployment(draw(ENGINES), replicas=draw(st.integers(0, 2))) if kind == "deployment" else tier(spec)
    return Moment(composite, before, passes).now({} if spoilt else composite["spec"], after, rounds)


def run(req: fnv1.RunFunctionRequest) -> bytes:
    return fn.run(req).SerializeToString(deterministic=True)


@given(moment=moments())
@settings(max_examples=60, deadline=None)
def test_the_same_request_gives_the_same_bytes(moment: Moment) -> None:
    assert run(moment.request()) == run(moment.request())


@given(moment=moments())
@settings(max_examples=60, deadline=None)
def test_a_request_is_not_changed(moment: Moment) -> None:
    req = moment.request()
    before = req.SerializeToString(deterministic=True)
    fn.run(req)
    assert req.SerializeToString(deterministic=True) == before


@given(moment=moments(), order=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_in_which_things_are_observed_does_not_matter(moment: Moment, order: Any) -> None:
    assert run(moment.request(shuffle=order.shuffle)) == run(moment.request())


@given(moment=moments(), other=moments())
@settings(max_examples=60, deadline=None)
def test_nothing_is_remembered_from_another_request(moment: Moment, other: Moment) -> None:
    before = run(moment.request())
    run(other.request())
    assert run(moment.request()) == before


@given(moment=moments())
@settings(max_examples=60, deadline=None)
def test_what_is_observed_is_never_absent_from_desired_unless_a_fatal_keeps_it(moment: Moment) -> None:
    rsp = fn.run(moment.request())
    keys = {o["metadata"]["annotations"]["crossplane.io/composition-resource-name"] for o in moment.observed}
    assert any(r.severity == fnv1.SEVERITY_FATAL for r in rsp.results) or keys <= set(rsp.desired.resources)


@given(moment=moments())
@settings(max_examples=60, deadline=None)
def test_every_condition_is_said_once_with_a_reason_and_a_message(moment: Moment) -> None:
    rsp = fn.run(moment.request())
    types = [c.type for c in rsp.conditions]
    assert types
    assert len(types) == len(set(types))
    assert all(c.reason and c.message for c in rsp.conditions)
    assert not any("internal error" in r.message for r in rsp.results)


@given(moment=moments())
@settings(max_examples=60, deadline=None)
def test_a_password_is_in_the_delivered_secret_and_nowhere_else(moment: Moment) -> None:
    rsp = fn.run(moment.request())
    told = json_format.MessageToDict(rsp)
    for key, desired in told.get("desired", {}).get("resources", {}).items():
        if key.startswith("credentials-"):
            manifest = desired["resource"]["spec"]["forProvider"]["manifest"]
            assert manifest["kind"] == "Secret"
            del manifest["data"]
    assert "hunter2" not in repr(told)
    assert "aHVudGVy" not in repr(told)


PRINT_ALL = """
import json
from function import render
for name in ("lmcache", "lmcache-current", "lmcache-inprocess"):
    for observed in (False, True):
        for rendered in render.render_example(name, observed=observed).values():
            print(json.dumps(vars(rendered), sort_keys=True))
"""


def test_another_python_gives_the_same_answer() -> None:
    """Python's order of sets is another in each process."""
    said = [
        subprocess.run(
            [sys.executable, "-c", PRINT_ALL],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert b"LMCacheMPConnector" in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("example", ["lmcache", "lmcache-current", "lmcache-inprocess"])
@pytest.mark.parametrize("part", ["tier", "deployment"])
def test_an_example_that_settles_stays_as_it_is(example: str, part: str) -> None:
    folder = Path("examples") / example
    required = [*load(folder / "required.yaml"), *load(folder / "tier.yaml")]
    composite, observed = load(folder / f"{part}.yaml")[0], list[Manifest]()
    rounds = []
    for _ in range(4):
        rendered = render(composite, observed, required)
        composite, observed = rendered.composite, observe(rendered, observed)
        rounds.append(rendered)
    assert rounds[1].composed == rounds[0].composed
    assert rounds[3].composite == rounds[2].composite
    assert rounds[3].composed == rounds[2].composed
    assert rounds[3].results == []
