"""What an API server makes of our XRDs: it takes them, and it says the right thing to each mistake.

Cases are changes to the smallest valid spec of a kind, by dotted path. All of a kind go through the xrd tool at once.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from function import api
from function.api.cluster import ClusterSpec
from function.api.deployment import DeploymentSpec
from function.api.tier import TierSpec
from function.kube import Manifest
from function.render import EXAMPLES, load
from tests.examples import names
from tests.render.changes import GONE, NOTHING, Changes, changed
from tests.tools import crossplane

TIER, DEPLOYMENT, CLUSTER = "KVOffloadTier", "ModelDeployment", "InferenceCluster"
XRDS = {
    TIER: Path("apis/kvoffloadtier.yaml"),
    DEPLOYMENT: Path("apis/standalone/modeldeployment.yaml"),
    CLUSTER: Path("apis/standalone/inferencecluster.yaml"),
}
SPECS: Mapping[str, type[api.Model]] = {TIER: TierSpec, DEPLOYMENT: DeploymentSpec, CLUSTER: ClusterSpec}

SMALLEST: Mapping[str, Manifest] = {
    TIER: {
        "inferenceClusterRef": {"name": "gke"},
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64},
    },
    DEPLOYMENT: {
        "inferenceClusterRef": {"name": "gke"},
        "engine": {"name": "vLLM", "image": "vllm/vllm-openai:v0.33.0"},
    },
    CLUSTER: {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": "gke"}}}},
}

DISK = "lmcache.diskTier"
REDIS = "lmcache.remote.redis"
HOST = {f"{REDIS}.host": "redis"}
TOLERATIONS = "placement.tolerations"
FROM = {"fieldRef": {"fieldPath": "spec.nodeName"}}
CLAIM = {"name": "gpu", "resourceClaimTemplateName": "h100"}


class Rule(NamedTuple):
    """A CEL rule by kind and message: a spec that it lets pass, and one that it refuses.

    `before` are the changes of the old spec, for a rule about changes.
    """

    kind: str
    message: str
    good: Changes
    bad: Changes
    before: Changes | None = None


RULES = [
    Rule(
        TIER,
        "spec.lmcache is required when spec.backend is LMCache.",
        good={},
        bad={"lmcache": GONE},
    ),
    Rule(
        TIER,
        "spec.inferenceClusterRef.name is immutable, since a tier never moves: delete this tier and create one for the "
        "other cluster.",
        before={},
        good={"lmcache.cpuTierGiBPerNode": 65},
        bad={"inferenceClusterRef.name": "other"},
    ),
    Rule(
        TIER,
        "spec.backend is immutable, since engines would lose their cache: create another tier and point deployments "
        "to it.",
        before={"backend": "Another"},
        good={"backend": "Another"},
        bad={},
    ),
    *(
        Rule(
            TIER,
            "spec.targetNamespace is immutable, since engines mount what lies in it: delete this tier and create "
            "another.",
            before=before,
            good=good,
            bad=bad,
        )
        for before, good, bad in (
            ({"targetNamespace": "serving"}, {"targetNamespace": "serving"}, {"targetNamespace": "other"}),
            ({"targetNamespace": "default"}, {}, {"targetNamespace": "other"}),
            ({}, {"targetNamespace": "default"}, {"targetNamespace": "other"}),
            ({"targetNamespace": "serving"}, {"targetNamespace": "serving", "lmcache.mode": "InProcess"}, {}),
        )
    ),
    Rule(
        TIER,
        "remote.redis.tls needs mode InProcess, since the agent's Redis adapter speaks no TLS: set spec.lmcache.mode "
        "to InProcess, or tls to false.",
        good={**HOST, f"{REDIS}.tls": True, "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.tls": True},
    ),
    Rule(
        TIER,
        "remote.redis.mode Cluster needs mode InProcess, since the agent's Redis adapter speaks to one server: set "
        "spec.lmcache.mode to InProcess.",
        good={**HOST, f"{REDIS}.mode": "Cluster", "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.mode": "Cluster", "lmcache.mode": "Multiprocess"},
    ),
    Rule(
        TIER,
        "diskTier.hostPath needs an agent that empties it: with mode InProcess set diskTier.storageClassName.",
        good={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti", "lmcache.mode": "Multiprocess"},
        bad={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti", "lmcache.mode": "InProcess"},
    ),
    Rule(
        TIER,
        "set exactly one of diskTier.storageClassName and diskTier.hostPath.",
        good={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti"},
        bad={f"{DISK}.sizePerNode": "1Ti"},
    ),
    Rule(
        TIER,
        "set exactly one of diskTier.storageClassName and diskTier.hostPath.",
        good={f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"},
        bad={f"{DISK}.storageClassName": "nvme", f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"},
    ),
    Rule(
        TIER,
        "diskTier.sizePerNode must be a quantity of at least 1Gi, such as 500Gi or 1Ti.",
        good={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1.5T"},
        bad={f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1023Mi"},
    ),
    Rule(
        TIER,
        "LMCache speaks no TLS to a Redis Cluster; set only one of redis.tls and redis.mode Cluster.",
        good={**HOST, f"{REDIS}.tls": True, "lmcache.mode": "InProcess"},
        bad={**HOST, f"{REDIS}.tls": True, f"{REDIS}.mode": "Cluster", "lmcache.mode": "InProcess"},
    ),
    Rule(
        TIER,
        "updateStrategy.maxUnavailable goes with type RollingUpdate only; remove it for OnDelete.",
        good={"updateStrategy.maxUnavailable": 2},
        bad={"updateStrategy.maxUnavailable": 2, "updateStrategy.type": "OnDelete"},
    ),
    *(
        Rule(
            TIER,
            "maxUnavailable must be a number from 1 on or a percentage such as 10%.",
            good={"updateStrategy.maxUnavailable": good},
            bad={"updateStrategy.maxUnavailable": bad},
        )
        for good, bad in ((1, 0), (1000, -1), ("1%", "0%"), ("10%", "10"), ("100%", "101%"), ("99%", "a lot"))
    ),
    *(
        Rule(TIER, message, good={TOLERATIONS: [good]}, bad={TOLERATIONS: [{"operator": "Exists"}, bad]})
        for message, good, bad in (
            (
                "a toleration without a key needs operator Exists, and tolerates every taint.",
                {"operator": "Exists"},
                {"operator": "Equal", "value": "h100"},
            ),
            (
                "a toleration without a key needs operator Exists, and tolerates every taint.",
                {"key": "gpu", "value": "h100"},
                {"effect": "NoSchedule"},
            ),
            (
                "a toleration with operator Exists has no value; remove it, or use Equal.",
                {"key": "gpu", "operator": "Equal", "value": "h100"},
                {"key": "gpu", "operator": "Exists", "value": "h100"},
            ),
            (
                "tolerationSeconds goes with effect NoExecute only.",
                {"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 0},
                {"key": "gpu", "tolerationSeconds": 60},
            ),
        )
    ),
    Rule(
        DEPLOYMENT,
        "set only one of env.value and env.valueFrom.",
        good={"engine.env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": FROM}]},
        bad={"engine.env": [{"name": "A", "value": "a"}, {"name": "B", "value": "b", "valueFrom": FROM}]},
    ),
    Rule(
        DEPLOYMENT,
        "spec.inferenceClusterRef is required without spec.engine.kvCache.tierRef, whose cluster it would be.",
        good={"inferenceClusterRef": GONE, "engine.kvCache.tierRef.name": "shared"},
        bad={"inferenceClusterRef": GONE},
    ),
    *(
        Rule(
            CLUSTER,
            "spec.cluster.existing is required when source is Existing, and not allowed when it is Local.",
            good=good,
            bad=bad,
        )
        for good, bad in (
            ({}, {"cluster.existing": GONE}),
            ({"cluster": {"source": "Local"}}, {"cluster.source": "Local"}),
        )
    ),
    Rule(
        CLUSTER,
        "spec.cluster.source is immutable, since what runs on the cluster would be forgotten: make another "
        "InferenceCluster.",
        before={},
        good={"cluster.existing.secretRef.name": "other"},
        bad={"cluster": {"source": "Local"}},
    ),
]


class Change(NamedTuple):
    """A story about a change that is allowed: the spec before, and after."""

    story: str
    kind: str
    before: Changes
    after: Changes


CHANGES = [
    Change("a tier's cache grows", TIER, {}, {"lmcache.cpuTierGiBPerNode": 128}),
    Change(
        "a tier gets a disk and a Redis",
        TIER,
        {},
        {f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti", **HOST},
    ),
    Change("a tier changes its mode", TIER, {}, {"lmcache.mode": "InProcess"}),
    Change("a tier takes another release", TIER, {"release": "2026.11"}, {"release": "2026.12"}),
    Change(
        "an engine is attached",
        DEPLOYMENT,
        {},
        {"engine.kvCache.tierRef.name": "shared", "inferenceClusterRef": GONE},
    ),
    Change(
        "an engine is detached",
        DEPLOYMENT,
        {"engine.kvCache.tierRef.name": "shared", "inferenceClusterRef": GONE},
        {},
    ),
]


class Mistake(NamedTuple):
    """A spec that is refused by its schema: the field and value, and what is said of the field.

    The function refuses it as well, but for what is `counted` by an API server alone.
    """

    kind: str
    field: str
    value: Any
    says: str
    beside: Changes = NOTHING
    counted: bool = False


# A Redis, a disk, and a Secret to make mistakes in.
SECRET = {**HOST, f"{REDIS}.secretRef.name": "redis"}
CLASS = {f"{DISK}.storageClassName": "nvme", f"{DISK}.sizePerNode": "1Ti"}
FOLDER = {f"{DISK}.hostPath.path": "/mnt/kv", f"{DISK}.sizePerNode": "1Ti"}
TIER_REF = {"engine.kvCache.tierRef.name": "shared"}
RESOURCES = "engine.resources"

REQUIRED = "Required value"
EMPTY = "should be at least 1 chars long"
UNSUPPORTED = "Unsupported value"

MISTAKES = [
    Mistake(TIER, "inferenceClusterRef", GONE, REQUIRED),
    Mistake(TIER, "inferenceClusterRef.name", GONE, REQUIRED),
    Mistake(TIER, "inferenceClusterRef.name", "", EMPTY),
    Mistake(TIER, "inferenceClusterRef.name", 254 * "a", "Too long"),
    Mistake(TIER, "backend", GONE, REQUIRED),
    Mistake(TIER, "backend", "lmcache", UNSUPPORTED),
    Mistake(TIER, "targetNamespace", "", EMPTY),
    Mistake(TIER, "targetNamespace", "a.b", "should match"),
    Mistake(TIER, "targetNamespace", "Serving", "should match"),
    Mistake(TIER, "targetNamespace", 64 * "a", "Too long"),
    Mistake(TIER, "allowedNamespaces.from", "Selector", UNSUPPORTED),
    Mistake(TIER, "release", "", EMPTY),
    Mistake(TIER, "release", 2026.11, "must be of type string"),
    Mistake(TIER, "release", 33 * "1", "Too long"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", GONE, REQUIRED),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 0, "should be greater than or equal to 1"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", -64, "should be greater than or equal to 1"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 65537, "should be less than or equal to 65536"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", "64Gi", "must be of type integer"),
    Mistake(TIER, "lmcache.cpuTierGiBPerNode", 1.5, "must be of type integer"),
    Mistake(TIER, f"{DISK}.sizePerNode", GONE, REQUIRED, CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "-1Ti", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "1 Ti", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "1TB", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", "500m", "should match", CLASS),
    Mistake(TIER, f"{DISK}.sizePerNode", 1000, "must be of type string", CLASS),
    Mistake(TIER, f"{DISK}.storageClassName", "", EMPTY, CLASS),
    Mistake(TIER, f"{DISK}.hostPath.path", GONE, REQUIRED, FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "mnt/kv", "should match", FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "/", "should be at least 2 chars long", FOLDER),
    Mistake(TIER, f"{DISK}.hostPath.path", "/mnt:kv", "should match", FOLDER),
    Mistake(TIER, "lmcache.remote.redis", GONE, REQUIRED, HOST),
    Mistake(TIER, f"{REDIS}.host", GONE, REQUIRED, {f"{REDIS}.port": 6379}),
    Mistake(TIER, f"{REDIS}.host", "", EMPTY),
    Mistake(TIER, f"{REDIS}.host", "redis://redis", "should match"),
    Mistake(TIER, f"{REDIS}.host", "redis:6379", "should match"),
    Mistake(TIER, f"{REDIS}.host", "user@redis", "should match"),
    Mistake(TIER, f"{REDIS}.port", 0, "should be greater than or equal to 1", HOST),
    Mistake(TIER, f"{REDIS}.port", 65536, "should be less than or equal to 65535", HOST),
    Mistake(TIER, f"{REDIS}.port", "6379", "must be of type integer", HOST),
    Mistake(TIER, f"{REDIS}.tls", "true", "must be of type boolean", HOST),
    Mistake(TIER, f"{REDIS}.mode", "Sentinel", UNSUPPORTED, HOST),
    Mistake(TIER, f"{REDIS}.secretRef.name", GONE, REQUIRED, {**SECRET, f"{REDIS}.secretRef.onCluster": True}),
    Mistake(TIER, f"{REDIS}.secretRef.name", "", EMPTY, HOST),
    Mistake(TIER, f"{REDIS}.secretRef.usernameKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.secretRef.passwordKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.secretRef.urlKey", "", EMPTY, SECRET),
    Mistake(TIER, f"{REDIS}.maxCapacityGiB", 0, "should be greater than or equal to 1", HOST),
    Mistake(TIER, f"{REDIS}.maxCapacityGiB", 1048577, "should be less than or equal to 1048576", HOST),
    Mistake(TIER, "lmcache.mode", "Agent", UNSUPPORTED),
    Mistake(TIER, "lmcache.ipc", "Host", UNSUPPORTED),
    Mistake(TIER, "lmcache.chunkSize", 0, "should be greater than or equal to 16"),
    Mistake(TIER, "lmcache.chunkSize", -256, "should be greater than or equal to 16"),
    Mistake(TIER, "lmcache.chunkSize", 16385, "should be less than or equal to 16384"),
    Mistake(TIER, "placement.nodeSelector.pool", True, "must be of type string"),
    Mistake(TIER, "placement.nodeSelector.pool", 64 * "a", "Too long", counted=True),
    Mistake(TIER, "placement.nodeSelector.pool", "a b", "should match", counted=True),
    Mistake(
        TIER, "placement.nodeSelector", {str(i): "" for i in range(17)}, "must have at most 16 items", counted=True
    ),
    Mistake(TIER, TOLERATIONS, 17 * [{"operator": "Exists"}], "must have at most 16 items", counted=True),
    Mistake(TIER, TOLERATIONS, [{"operator": "In"}], UNSUPPORTED),
    Mistake(TIER, TOLERATIONS, [{"effect": "Evict"}], UNSUPPORTED),
    Mistake(TIER, TOLERATIONS, [{"tolerationSeconds": -1}], "should be greater than or equal to 0"),
    Mistake(TIER, "placement.gpuAccess.type", "Device", UNSUPPORTED),
    Mistake(TIER, "placement.priorityClassName", "", EMPTY),
    Mistake(TIER, "placement.gpusPerNode", 0, "should be greater than or equal to 1"),
    Mistake(TIER, "placement.gpusPerNode", 65, "should be less than or equal to 64"),
    Mistake(TIER, "images.lmcache", "lmcache/standalone", "should match"),
    Mistake(TIER, "images.lmcache", "images.example:5000/lmcache/standalone", "should match"),
    Mistake(TIER, "images.lmcache", "", EMPTY),
    Mistake(TIER, "updateStrategy.type", "Recreate", UNSUPPORTED),
    Mistake(TIER, "updateStrategy.maxUnavailable", True, "must be of type integer,string"),
    Mistake(DEPLOYMENT, "engine", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.name", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.name", "TensorRT", UNSUPPORTED),
    Mistake(DEPLOYMENT, "engine.name", "vllm", UNSUPPORTED),
    Mistake(DEPLOYMENT, "engine.image", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "engine.image", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.version", "nightly", "should match"),
    Mistake(DEPLOYMENT, "engine.version", 0.33, "must be of type string"),
    Mistake(DEPLOYMENT, "engine.command", "vllm serve", "must be of type array"),
    Mistake(DEPLOYMENT, "engine.args", [1], "must be of type string"),
    Mistake(DEPLOYMENT, "engine.args", 257 * ["a"], "must have at most 256 items", counted=True),
    Mistake(DEPLOYMENT, "engine.env", [{"value": "x"}], REQUIRED),
    Mistake(DEPLOYMENT, "engine.env", [{"name": "A", "value": 1}], "must be of type string"),
    Mistake(
        DEPLOYMENT,
        "engine.env",
        [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
        "Duplicate value",
        counted=True,
    ),
    Mistake(DEPLOYMENT, f"{RESOURCES}.limits", {"nvidia.com/gpu": 0.5}, "must be of type integer,string"),
    Mistake(DEPLOYMENT, f"{RESOURCES}.claims", [{"name": "gpu"}], REQUIRED),
    Mistake(DEPLOYMENT, f"{RESOURCES}.claims", [CLAIM, CLAIM], "Duplicate value", counted=True),
    Mistake(DEPLOYMENT, "replicas", -1, "should be greater than or equal to 0"),
    Mistake(DEPLOYMENT, "replicas", 1001, "should be less than or equal to 1000"),
    Mistake(DEPLOYMENT, "replicas", "2", "must be of type integer"),
    Mistake(DEPLOYMENT, "inferenceClusterRef.name", GONE, REQUIRED),
    Mistake(DEPLOYMENT, "inferenceClusterRef.name", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef", GONE, REQUIRED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.name", GONE, REQUIRED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.name", "", EMPTY),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.namespace", "", EMPTY, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.tierRef.kind", "Redis", UNSUPPORTED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.onUnavailable", "Fail", UNSUPPORTED, TIER_REF),
    Mistake(DEPLOYMENT, "engine.kvCache.identity", "", EMPTY, TIER_REF),
    Mistake(CLUSTER, "cluster", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.source", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.source", "GKE", UNSUPPORTED),
    Mistake(CLUSTER, "cluster.existing.secretRef", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.existing.secretRef.name", GONE, REQUIRED),
    Mistake(CLUSTER, "cluster.existing.secretRef.name", "", EMPTY),
    Mistake(CLUSTER, "cluster.existing.secretRef.key", "", EMPTY),
]


def resource(kind: str, changes: Changes) -> Manifest:
    """Write the smallest resource of a kind, changed."""
    metadata = {"name": "x"}
    spec = changed(SMALLEST[kind], changes)
    return {"apiVersion": "modelplane.ai/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def case(new: Manifest, old: Manifest | None = None) -> dict[str, Any]:
    """Write a case for the xrd tool; `old` for an update. Its answer is found again by what was asked."""
    return {"name": repr((new, old)), "new": new, "old": old}


def rule_case(rule: Rule, changes: Changes) -> dict[str, Any]:
    """Write the case of a rule's good or bad spec."""
    old = None if rule.before is None else resource(rule.kind, rule.before)
    return case(resource(rule.kind, changes), old)


def change_case(change: Change) -> dict[str, Any]:
    """Write the case of a change."""
    return case(resource(change.kind, change.after), resource(change.kind, change.before))


def mistake_case(mistake: Mistake) -> dict[str, Any]:
    """Write the case of a mistake."""
    return case(resource(mistake.kind, {**mistake.beside, mistake.field: mistake.value}))


def examples() -> Iterator[tuple[str, Manifest]]:
    """Give all manifests of our kinds in the examples, each with its file."""
    for name in names():
        for file in ("tier", "deployment", "required"):
            for manifest in load(EXAMPLES / name / f"{file}.yaml"):
                if manifest["kind"] in XRDS:
                    yield f"{name}/{file}.yaml", manifest


@cache
def answer(kind: str) -> dict[str, Any]:
    """Ask the xrd tool about a kind's XRD, with every case of this file."""
    cases = [
        *(rule_case(rule, changes) for rule in RULES if rule.kind == kind for changes in (rule.good, rule.bad)),
        *(change_case(change) for change in CHANGES if change.kind == kind),
        *(mistake_case(mistake) for mistake in MISTAKES if mistake.kind == kind),
        *(case(manifest) for _, manifest in examples() if manifest["kind"] == kind),
    ]
    return crossplane.check_xrd(XRDS[kind].resolve(), cases)


def outcome(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Find the answer to a case."""
    found: dict[str, Any] = next(c for c in answer(asked["new"]["kind"])["cases"] if c["name"] == asked["name"])
    return found


@cache
def schema(kind: str) -> dict[str, Any]:
    """Read the schema of a kind's only version."""
    (version,) = yaml.safe_load(XRDS[kind].read_text())["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def fields(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Walk a schema; gives every part of it with its path."""
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from fields(inner, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            yield from fields(node[key], (*path, "*"))


@cache
def rules(kind: str) -> dict[str, str]:
    """Give a kind's CEL rules: the message of each, and the field it is about."""
    return {
        rule["message"]: ".".join(path)
        for path, node in fields(schema(kind))
        for rule in node.get("x-kubernetes-validations", ())
    }


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("kind", XRDS)
class TestTheAPIServer:
    def test_takes_the_definition_and_the_cost_of_its_rules(self, kind: str) -> None:
        assert answer(kind)["crdErrors"] == []

    def test_is_given_everything_that_the_definition_says(self, kind: str) -> None:
        assert answer(kind)["dropped"] == []


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize(
    ("file", "manifest"), list(examples()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_examples_are_accepted_and_nothing_of_them_is_lost(file: str, manifest: Manifest) -> None:
    found = outcome(case(manifest))
    assert (file, found["errors"], found["pruned"]) == (file, [], [])


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}: {rule.message}")
def test_rule(rule: Rule) -> None:
    assert outcome(rule_case(rule, rule.good))["errors"] == []
    (error,) = outcome(rule_case(rule, rule.bad))["errors"]
    assert re.sub(r"\[\d+\]", ".*", error).startswith(f"{rules(rule.kind)[rule.message]}: Invalid value: ")
    assert error.endswith(f": {rule.message}")


@pytest.mark.parametrize("kind", XRDS)
def test_every_rule_has_a_good_and_a_bad_case(kind: str) -> None:
    assert {rule.message for rule in RULES if rule.kind == kind} == set(rules(kind))


@pytest.mark.parametrize("kind", XRDS)
def test_every_rule_has_a_message_of_its_own(kind: str) -> None:
    written = [rule for _, node in fields(schema(kind)) for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules(kind)) == len(written)


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.story)
def test_it_is_allowed_that(change: Change) -> None:
    assert outcome(change_case(change))["errors"] == []


@pytest.mark.usefixtures("xrd_tool")
@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=lambda mistake: f"{mistake.kind}-{mistake.field}-{str(mistake.value)[:20]}"
)
def test_it_is_refused_that(mistake: Mistake) -> None:
    errors = [e for e in outcome(mistake_case(mistake))["errors"] if not e.startswith("<nil>")]
    assert errors
    # A CEL rule may have its say too.
    assert any(e.startswith(f"spec.{mistake.field}") and mistake.says in e for e in errors), errors


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((rule.kind, rule.bad) for rule in RULES if rule.before is None),
        *((m.kind, {**m.beside, m.field: m.value}) for m in MISTAKES if not m.counted),
    ],
)
def test_the_function_refuses_it_without_an_api_server(kind: str, changes: Changes) -> None:
    with pytest.raises(api.Invalid):
        api.parse(SPECS[kind], resource(kind, changes)["spec"])


@pytest.mark.parametrize(("kind", "changes"), [(rule.kind, rule.good) for rule in RULES if rule.before is None])
def test_the_function_accepts_what_is_good(kind: str, changes: Changes) -> None:
    api.parse(SPECS[kind], resource(kind, changes)["spec"])


@pytest.mark.parametrize("kind", XRDS)
def test_every_field_is_described(kind: str) -> None:
    silent = [path for path, node in fields(schema(kind)) if "*" not in path[-1:] and not node.get("description")]
    assert silent == []
