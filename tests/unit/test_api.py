"""What users write is read the same with and without the XRDs' defaults, and what is wrong is said by field."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from function import api
from function.api.cluster import ClusterSpec
from function.api.deployment import DeploymentSpec
from function.api.tier import TierSpec
from function.kube import Manifest
from function.render import load, render

XRDS: Mapping[type[api.Model], Path] = {
    TierSpec: Path("apis/kvoffloadtier.yaml"),
    DeploymentSpec: Path("apis/standalone/modeldeployment.yaml"),
    ClusterSpec: Path("apis/standalone/inferencecluster.yaml"),
}

TIER: Manifest = {
    "inferenceClusterRef": {"name": "eu-h100"},
    "backend": "LMCache",
    "lmcache": {"cpuTierGiBPerNode": 64},
}
DEPLOYMENT: Manifest = {
    "engine": {"name": "vLLM", "image": "vllm/vllm-openai:v0.33.0", "kvCache": {"tierRef": {"name": "shared"}}}
}
CLUSTER: Manifest = {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": "eu-h100"}}}}

GONE: Any = object()
SECRET = "c2VjcmV0LWtleS0" * 30
DISK: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}


def changed(spec: Manifest, **changes: Any) -> Manifest:
    """Change a copy of a spec by paths whose parts are joined by two underscores; GONE takes a field out."""
    result = copy.deepcopy(spec)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is GONE:
            del target[last]
        else:
            target[last] = value
    return result


# --- with and without the XRD's defaults --------------------------------------------------------------------------


def defaulted(value: Any, schema: Manifest) -> Any:
    """Fill in a schema's defaults, as the API server does."""
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for name, field in schema.get("properties", {}).items():
        if name not in result and "default" in field:
            result[name] = copy.deepcopy(field["default"])
        if name in result:
            result[name] = defaulted(result[name], field)
    return result


@functools.cache
def schema_of(model: type[api.Model]) -> Manifest:
    """Find the schema of a model's spec in its XRD."""
    (version,) = load(XRDS[model])[0]["spec"]["versions"]
    schema: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def with_defaults(model: type[api.Model], spec: Manifest) -> Manifest:
    """Fill in the defaults of the XRD of a spec's model."""
    filled: Manifest = defaulted(spec, schema_of(model))
    return filled


def test_the_api_server_fills_in_these() -> None:
    assert with_defaults(
        TierSpec, changed(TIER, lmcache__remote={"redis": {"host": "h", "secretRef": {"name": "s"}}})
    ) == {
        "inferenceClusterRef": {"name": "eu-h100"},
        "backend": "LMCache",
        "targetNamespace": "default",
        "allowedNamespaces": {"from": "All"},
        "lmcache": {
            "cpuTierGiBPerNode": 64,
            "mode": "Auto",
            "ipc": "Isolated",
            "chunkSize": 256,
            "remote": {
                "redis": {
                    "host": "h",
                    "port": 6379,
                    "tls": False,
                    "mode": "Standalone",
                    "secretRef": {
                        "name": "s",
                        "usernameKey": "username",
                        "passwordKey": "password",
                        "onCluster": False,
                    },
                }
            },
        },
        "placement": {"gpuAccess": {"type": "Runtime", "runtimeClassName": "nvidia"}},
        "updateStrategy": {"type": "RollingUpdate"},
    }
    assert with_defaults(DeploymentSpec, DEPLOYMENT) == {
        "replicas": 1,
        "engine": {
            "name": "vLLM",
            "image": "vllm/vllm-openai:v0.33.0",
            "kvCache": {
                "tierRef": {"name": "shared", "namespace": "modelplane-system", "kind": "KVOffloadTier"},
                "onUnavailable": "Wait",
            },
        },
    }
    assert with_defaults(ClusterSpec, CLUSTER) == {
        "cluster": {"source": "Existing", "existing": {"secretRef": {"name": "eu-h100", "key": "kubeconfig"}}}
    }


SPECS: dict[str, tuple[type[api.Model], Manifest]] = {
    "a tier": (TierSpec, TIER),
    "a tier with a disk": (TierSpec, changed(TIER, lmcache__diskTier=DISK)),
    "a tier with Redis": (TierSpec, changed(TIER, lmcache__remote={"redis": {"host": "kv.cache.svc"}})),
    "a tier with credentials": (
        TierSpec,
        changed(TIER, lmcache__remote={"redis": {"host": "kv.cache.svc", "secretRef": {"name": "kv"}}}),
    ),
    "a tier with empty blocks": (
        TierSpec,
        changed(TIER, placement={"gpuAccess": {}}, updateStrategy={}, allowedNamespaces={}, images={}),
    ),
    "a tier with tolerations": (TierSpec, changed(TIER, placement={"tolerations": [{"operator": "Exists"}]})),
    "a tier that says OnDelete": (TierSpec, changed(TIER, updateStrategy={"type": "OnDelete"})),
    "a tier in process": (TierSpec, changed(TIER, lmcache__mode="InProcess", placement={"gpusPerNode": 8})),
    "a tier that says everything otherwise": (
        TierSpec,
        changed(
            TIER,
            targetNamespace="kv",
            allowedNamespaces={"from": "Same"},
            release="2026.11",
            lmcache__ipc="Shared",
            lmcache__chunkSize=512,
            placement={"gpuAccess": {"type": "CDI", "runtimeClassName": ""}},
            updateStrategy={"type": "RollingUpdate", "maxUnavailable": "10%"},
        ),
    ),
    "a deployment": (DeploymentSpec, DEPLOYMENT),
    "a deployment without a tier": (
        DeploymentSpec,
        changed(DEPLOYMENT, engine__kvCache=GONE, inferenceClusterRef={"name": "eu-h100"}),
    ),
    "a deployment with much": (
        DeploymentSpec,
        changed(
            DEPLOYMENT,
            replicas=0,
            engine__args=["--model=Q/Q"],
            engine__env=[{"name": "A"}, {"name": "B", "value": "b"}, {"name": "C", "valueFrom": {"x": {}}}],
            engine__resources={"limits": {"nvidia.com/gpu": 2}, "claims": []},
            engine__kvCache__tierRef__namespace="team",
        ),
    ),
    "a cluster": (ClusterSpec, CLUSTER),
    "a local cluster": (ClusterSpec, {"cluster": {"source": "Local"}}),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_is_read_the_same_with_and_without_the_xrds_defaults(case: str) -> None:
    model, spec = SPECS[case]
    plain, filled = api.parse(model, spec), api.parse(model, with_defaults(model, spec))
    assert plain == filled
    assert plain.model_dump() == filled.model_dump()


@pytest.mark.parametrize("example", ["lmcache", "lmcache-current", "lmcache-inprocess"])
@pytest.mark.parametrize(("part", "model"), [("tier", TierSpec), ("deployment", DeploymentSpec)])
def test_an_example_is_composed_the_same_with_and_without_the_xrds_defaults(
    example: str, part: str, model: type[api.Model]
) -> None:
    folder = Path("examples") / example
    plain = load(folder / f"{part}.yaml")[0]
    filled = {**plain, "spec": with_defaults(model, plain["spec"])}
    required = [*load(folder / "required.yaml"), *load(folder / "tier.yaml")]
    assert filled != plain
    composed = render(plain, [], required).composed
    assert composed
    assert render(filled, [], required).composed == composed


# --- what Crossplane sends ----------------------------------------------------------------------------------------


def test_a_whole_number_may_come_as_a_float() -> None:
    tier = api.parse(TierSpec, changed(TIER, lmcache__cpuTierGiBPerNode=64.0, placement={"gpusPerNode": 8.0}))
    assert tier.lmcache
    assert (tier.lmcache.cpu_tier_gib_per_node, tier.placement.gpus_per_node) == (64, 8)
    assert isinstance(tier.lmcache.cpu_tier_gib_per_node, int)
    strategy = api.parse(TierSpec, changed(TIER, updateStrategy={"maxUnavailable": 2.0})).update_strategy
    assert repr(strategy.max_unavailable) == "2"
    deployment = changed(
        DEPLOYMENT, replicas=3.0, engine__resources={"limits": {"nvidia.com/gpu": 2.0, "memory": "8Gi"}}
    )
    read = api.parse(DeploymentSpec, deployment)
    assert read.replicas == 3
    assert read.engine.resources
    assert read.engine.resources.limits == {"nvidia.com/gpu": "2", "memory": "8Gi"}


def test_a_field_of_a_newer_api_is_none_of_our_business() -> None:
    written = changed(TIER, crossplane={"compositionRef": {"name": "x"}}, lmcache__later=1, placement={"later": {}})
    assert api.parse(TierSpec, written) == api.parse(TierSpec, TIER)


# --- what is wrong ------------------------------------------------------------------------------------------------

REDIS_MODE = (
    "spec.lmcache: remote.redis.tls and remote.redis.mode Cluster need mode InProcess: the agent's Redis adapter "
    "speaks neither"
)
ONE_DISK = "spec.lmcache.diskTier: set exactly one of storageClassName and hostPath"
QUANTITY = "not a positive quantity; write it as 500Gi or 1Ti"


def redis(**fields: Any) -> Manifest:
    return {"redis": {"host": "kv.cache.svc", **fields}}


BACKENDS = "should be 'LMCache', 'Mooncake', 'Nixl' or 'HiCache'"

WRONG_TIERS: dict[str, tuple[Manifest, str]] = {
    "no cache": (
        {"lmcache__cpuTierGiBPerNode": 0},
        "spec.lmcache.cpuTierGiBPerNode (is 0): should be greater than or equal to 1",
    ),
    "a negative cache": (
        {"lmcache__cpuTierGiBPerNode": -64},
        "spec.lmcache.cpuTierGiBPerNode (is -64): should be greater than or equal to 1",
    ),
    "a cache of half GiBs": (
        {"lmcache__cpuTierGiBPerNode": 64.5},
        "spec.lmcache.cpuTierGiBPerNode (is 64.5): should be a valid integer, got a number with a fractional part",
    ),
    "a cache in letters": (
        {"lmcache__cpuTierGiBPerNode": "64"},
        "spec.lmcache.cpuTierGiBPerNode (is '64'): must be a whole number",
    ),
    "a cache that is true": (
        {"lmcache__cpuTierGiBPerNode": True},
        "spec.lmcache.cpuTierGiBPerNode (is True): must be a whole number",
    ),
    "a cache beyond any node": (
        {"lmcache__cpuTierGiBPerNode": 65537},
        "spec.lmcache.cpuTierGiBPerNode (is 65537): should be less than or equal to 65536",
    ),
    "no size of the cache": ({"lmcache__cpuTierGiBPerNode": GONE}, "spec.lmcache.cpuTierGiBPerNode is required"),
    "both kinds of disk": ({"lmcache__diskTier": {**DISK, "hostPath": {"path": "/mnt/kv"}}}, ONE_DISK),
    "no kind of disk": ({"lmcache__diskTier": {"sizePerNode": "1Ti"}}, ONE_DISK),
    "no size of the disk": (
        {"lmcache__diskTier": {"storageClassName": "nvme"}},
        "spec.lmcache.diskTier.sizePerNode is required",
    ),
    "an empty disk": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "0"}},
        f"spec.lmcache.diskTier.sizePerNode (is '0'): {QUANTITY}",
    ),
    "an empty disk in GiB": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "0Gi"}},
        f"spec.lmcache.diskTier.sizePerNode (is '0Gi'): {QUANTITY}",
    ),
    "a negative disk": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "-1Ti"}},
        f"spec.lmcache.diskTier.sizePerNode (is '-1Ti'): {QUANTITY}",
    ),
    "a disk in no unit of Kubernetes": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "1TB"}},
        f"spec.lmcache.diskTier.sizePerNode (is '1TB'): {QUANTITY}",
    ),
    "a disk too small to be limited": (
        {"lmcache__diskTier": {**DISK, "sizePerNode": "1023Mi"}},
        "spec.lmcache.diskTier.sizePerNode (is '1023Mi'): must be at least 1Gi",
    ),
    "a relative path": (
        {"lmcache__diskTier": {"sizePerNode": "1Ti", "hostPath": {"path": "mnt/kv"}}},
        "spec.lmcache.diskTier.hostPath.path (is 'mnt/kv'): must be an absolute path without colons",
    ),
    "a folder of the node in process": (
        {"lmcache__mode": "InProcess", "lmcache__diskTier": {"sizePerNode": "1Ti", "hostPath": {"path": "/mnt/kv"}}},
        "spec.lmcache: diskTier.hostPath needs an agent that empties it; with mode InProcess set "
        "diskTier.storageClassName",
    ),
    "a remote that is nothing": ({"lmcache__remote": {}}, "spec.lmcache.remote.redis is required"),
    "no host": (
        {"lmcache__remote": {"redis": {"port": 6379}}},
        "spec.lmcache.remote.redis: set exactly one of host and provision",
    ),
    "an empty host": (
        {"lmcache__remote": redis(host="")},
        "spec.lmcache.remote.redis.host (is ''): String should have at least 1 character",
    ),
    "a host with a port": (
        {"lmcache__remote": redis(host="kv:6379")},
        "spec.lmcache.remote.redis.host (is 'kv:6379'): must be a host name or an IPv4 address, without a port",
    ),
    "a port that is none": (
        {"lmcache__remote": redis(port=65536)},
        "spec.lmcache.remote.redis.port (is 65536): should be less than or equal to 65535",
    ),
    "another mode of Redis": (
        {"lmcache__remote": redis(mode="Sentinel")},
        "spec.lmcache.remote.redis.mode (is 'Sentinel'): should be 'Standalone' or 'Cluster'",
    ),
    "TLS in letters": (
        {"lmcache__remote": redis(tls="yes")},
        "spec.lmcache.remote.redis.tls (is 'yes'): should be a valid boolean",
    ),
    "TLS with Auto": ({"lmcache__remote": redis(tls=True)}, REDIS_MODE),
    "TLS with Multiprocess": ({"lmcache__mode": "Multiprocess", "lmcache__remote": redis(tls=True)}, REDIS_MODE),
    "a Redis Cluster with Auto": ({"lmcache__remote": redis(mode="Cluster")}, REDIS_MODE),
    "a Redis Cluster with Multiprocess": (
        {"lmcache__mode": "Multiprocess", "lmcache__remote": redis(mode="Cluster")},
        REDIS_MODE,
    ),
    "TLS to a Redis Cluster": (
        {"lmcache__mode": "InProcess", "lmcache__remote": redis(tls=True, mode="Cluster")},
        "spec.lmcache: remote.redis.tls with remote.redis.mode Cluster is not supported by LMCache: choose one",
    ),
    "a Secret without a name": (
        {"lmcache__remote": redis(secretRef={"passwordKey": "p"})},
        "spec.lmcache.remote.redis.secretRef.name is required",
    ),
    "no capacity": (
        {"lmcache__remote": redis(maxCapacityGiB=0)},
        "spec.lmcache.remote.redis.maxCapacityGiB (is 0): should be greater than or equal to 1",
    ),
    "another mode": (
        {"lmcache__mode": "multiprocess"},
        "spec.lmcache.mode (is 'multiprocess'): should be 'Auto', 'Multiprocess' or 'InProcess'",
    ),
    "another ipc": ({"lmcache__ipc": "Host"}, "spec.lmcache.ipc (is 'Host'): should be 'Isolated' or 'Shared'"),
    "too small chunks": (
        {"lmcache__chunkSize": 8},
        "spec.lmcache.chunkSize (is 8): should be a multiple of 16",
    ),
    "an unknown backend": ({"backend": "AIBrix"}, f"spec.backend (is 'AIBrix'): {BACKENDS}"),
    "another backend's block": (
        {"backend": "Mooncake", "mooncake": {"segmentGiBPerNode": 64, "protocol": "TCP"}},
        "spec: spec.lmcache does not go with spec.backend Mooncake; remove it",
    ),
    "no backend": ({"backend": GONE}, "spec.backend is required"),
    "a backend without its block": (
        {"lmcache": GONE},
        "spec: spec.lmcache is required when spec.backend is LMCache",
    ),
    "no cluster": ({"inferenceClusterRef": GONE}, "spec.inferenceClusterRef is required"),
    "a cluster without a name": (
        {"inferenceClusterRef__name": ""},
        "spec.inferenceClusterRef.name (is ''): String should have at least 1 character",
    ),
    "an unknown release": (
        {"release": "2020.01"},
        "spec.release (is '2020.01'): this function knows the releases 2026.11",
    ),
    "a namespace that is none": (
        {"targetNamespace": "Default"},
        "spec.targetNamespace (is 'Default'): must be a namespace's name: lower-case letters, digits and dashes",
    ),
    "namespaces by selector": (
        {"allowedNamespaces": {"from": "Selector"}},
        "spec.allowedNamespaces.from (is 'Selector'): should be 'All' or 'Same'",
    ),
    "no GPUs": (
        {"placement": {"gpusPerNode": 0}},
        "spec.placement.gpusPerNode (is 0): should be greater than or equal to 1",
    ),
    "a toleration of nothing": (
        {"placement": {"tolerations": [{"effect": "NoSchedule"}]}},
        "spec.placement.tolerations.0: a toleration without a key needs operator Exists, and tolerates every taint",
    ),
    "a toleration with a value for Exists": (
        {"placement": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "spec.placement.tolerations.0: a toleration with operator Exists has no value; remove it, or use Equal",
    ),
    "another access to GPUs": (
        {"placement": {"gpuAccess": {"type": "Claim"}}},
        "spec.placement.gpuAccess.type (is 'Claim'): should be 'Runtime' or 'CDI'",
    ),
    "nobody away": (
        {"updateStrategy": {"maxUnavailable": 0}},
        "spec.updateStrategy.maxUnavailable (is 0): must be a number from 1 on or a percentage such as 10%",
    ),
    "more than all away": (
        {"updateStrategy": {"maxUnavailable": "101%"}},
        "spec.updateStrategy.maxUnavailable (is '101%'): must be a number from 1 on or a percentage such as 10%",
    ),
    "half an agent away": (
        {"updateStrategy": {"maxUnavailable": 1.5}},
        "spec.updateStrategy.maxUnavailable (is 1.5): must be a number from 1 on or a percentage such as 10%",
    ),
    "a number with OnDelete": (
        {"updateStrategy": {"type": "OnDelete", "maxUnavailable": 1}},
        "spec.updateStrategy: maxUnavailable goes with type RollingUpdate only; remove it for OnDelete",
    ),
    "an image without a tag": (
        {"images": {"lmcache": "lmcache/standalone"}},
        "spec.images.lmcache (is 'lmcache/standalone'): must be an image that is pinned by a tag or a digest",
    ),
    "several fields": (
        {"backend": "Foo", "lmcache__chunkSize": 1, "inferenceClusterRef": GONE},
        f"spec.inferenceClusterRef is required; spec.backend (is 'Foo'): {BACKENDS}; "
        "spec.lmcache.chunkSize (is 1): should be a multiple of 16",
    ),
}

VERSION = "must be a version, such as 0.33.0"

WRONG_DEPLOYMENTS: dict[str, tuple[Manifest, str]] = {
    "an unknown engine": (
        {"engine__name": "TensorRT"},
        "spec.engine.name (is 'TensorRT'): should be 'vLLM' or 'SGLang'",
    ),
    "no engine": ({"engine": GONE}, "spec.engine is required"),
    "no image": ({"engine__image": GONE}, "spec.engine.image is required"),
    "a version that is a word": ({"engine__version": "latest"}, f"spec.engine.version (is 'latest'): {VERSION}"),
    "a version that is a candidate": ({"engine__version": "0.33rc1"}, f"spec.engine.version (is '0.33rc1'): {VERSION}"),
    "a version that is a number": (
        {"engine__version": 0.33},
        "spec.engine.version (is 0.33): should be a valid string",
    ),
    "neither cluster nor tier": (
        {"engine__kvCache": GONE},
        "spec: inferenceClusterRef is required without engine.kvCache.tierRef, whose cluster it would be",
    ),
    "a cache without a tier": ({"engine__kvCache": {}}, "spec.engine.kvCache.tierRef is required"),
    "a tier without a name": ({"engine__kvCache": {"tierRef": {}}}, "spec.engine.kvCache.tierRef.name is required"),
    "another kind of tier": (
        {"engine__kvCache__tierRef__kind": "HiCacheTier"},
        "spec.engine.kvCache.tierRef.kind (is 'HiCacheTier'): should be 'KVOffloadTier'",
    ),
    "something else than waiting": (
        {"engine__kvCache__onUnavailable": "Fail"},
        "spec.engine.kvCache.onUnavailable (is 'Fail'): should be 'Wait' or 'ServeWithout'",
    ),
    "an empty identity": (
        {"engine__kvCache__identity": ""},
        "spec.engine.kvCache.identity (is ''): String should have at least 1 character",
    ),
    "negative replicas": ({"replicas": -1}, "spec.replicas (is -1): should be greater than or equal to 0"),
    "half a replica": (
        {"replicas": 1.5},
        "spec.replicas (is 1.5): should be a valid integer, got a number with a fractional part",
    ),
    "too many replicas": ({"replicas": 1001}, "spec.replicas (is 1001): should be less than or equal to 1000"),
    "a variable without a name": ({"engine__env": [{"value": "a"}]}, "spec.engine.env.0.name is required"),
    "a variable of two sources": (
        {"engine__env": [{"name": "A", "value": "a", "valueFrom": {"x": {}}}]},
        "spec.engine.env.0: set only one of value and valueFrom",
    ),
    "half a GPU": (
        {"engine__resources": {"limits": {"nvidia.com/gpu": 0.5}}},
        "spec.engine.resources.limits.nvidia.com/gpu (is 0.5): must be a quantity, such as 2 or 64Gi",
    ),
    "a claim of nothing": (
        {"engine__resources": {"claims": [{"name": "gpu"}]}},
        "spec.engine.resources.claims.0.resourceClaimTemplateName is required",
    ),
    "an argument that is a number": (
        {"engine__args": ["-tp", 2]},
        "spec.engine.args.1 (is 2): should be a valid string",
    ),
}

SOURCE = "spec.cluster: existing is required when source is Existing, and wrong otherwise"

WRONG_CLUSTERS: dict[str, tuple[Manifest, str]] = {
    "Existing without a kubeconfig": ({"cluster__existing": GONE}, SOURCE),
    "Local with a kubeconfig": ({"cluster__source": "Local"}, SOURCE),
    "another source": ({"cluster__source": "GKE"}, "spec.cluster.source (is 'GKE'): should be 'Existing' or 'Local'"),
    "no source": ({"cluster__source": GONE}, "spec.cluster.source is required"),
    "no Secret": ({"cluster__existing": {}}, "spec.cluster.existing.secretRef is required"),
    "a Secret without a name": (
        {"cluster__existing": {"secretRef": {}}},
        "spec.cluster.existing.secretRef.name is required",
    ),
    "nothing": ({"cluster": GONE}, "spec.cluster is required"),
}

WRONG: dict[str, tuple[type[api.Model], Manifest, str]] = {
    **{f"tier: {case}": (TierSpec, changed(TIER, **c), said) for case, (c, said) in WRONG_TIERS.items()},
    **{
        f"deployment: {case}": (DeploymentSpec, changed(DEPLOYMENT, **c), said)
        for case, (c, said) in WRONG_DEPLOYMENTS.items()
    },
    **{f"cluster: {case}": (ClusterSpec, changed(CLUSTER, **c), said) for case, (c, said) in WRONG_CLUSTERS.items()},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_answered_by_field_value_and_fix(case: str) -> None:
    model, spec, said = WRONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, spec)
    assert str(caught.value) == said


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_as_wrong_with_the_xrds_defaults(case: str) -> None:
    model, spec, said = WRONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, with_defaults(model, spec))
    assert str(caught.value) == said


@pytest.mark.parametrize("mode", ["InProcess"])
@pytest.mark.parametrize("fields", [{"tls": True}, {"mode": "Cluster"}], ids=str)
def test_in_process_redis_may_speak_tls_or_be_a_cluster(mode: str, fields: Manifest) -> None:
    tier = api.parse(TierSpec, changed(TIER, lmcache__mode=mode, lmcache__remote=redis(**fields)))
    assert tier.lmcache
    assert tier.lmcache.redis
    assert (tier.lmcache.redis.tls, tier.lmcache.redis.mode) == (
        fields.get("tls", False),
        fields.get("mode", "Standalone"),
    )


# --- secrets ------------------------------------------------------------------------------------------------------

LONG: dict[str, tuple[type[api.Model], Manifest]] = {
    "the cache": (TierSpec, changed(TIER, lmcache__cpuTierGiBPerNode=SECRET)),
    "the disk": (TierSpec, changed(TIER, lmcache__diskTier={**DISK, "sizePerNode": SECRET})),
    "the path": (TierSpec, changed(TIER, lmcache__diskTier={"sizePerNode": "1Ti", "hostPath": {"path": SECRET}})),
    "the host": (TierSpec, changed(TIER, lmcache__remote=redis(host=f"redis://:{SECRET}@h"))),
    "the port": (TierSpec, changed(TIER, lmcache__remote=redis(port=SECRET))),
    "the mode of Redis": (TierSpec, changed(TIER, lmcache__remote=redis(mode=SECRET))),
    "TLS": (TierSpec, changed(TIER, lmcache__remote=redis(tls=SECRET))),
    "the Secret": (TierSpec, changed(TIER, lmcache__remote=redis(secretRef=SECRET))),
    "the Secret's fields": (TierSpec, changed(TIER, lmcache__remote=redis(secretRef={"password": SECRET}))),
    "Redis": (TierSpec, changed(TIER, lmcache__remote={"redis": SECRET})),
    "the remote": (TierSpec, changed(TIER, lmcache__remote=[SECRET])),
    "the backend": (TierSpec, changed(TIER, backend=SECRET)),
    "the release": (TierSpec, changed(TIER, release=SECRET)),
    "a toleration": (TierSpec, changed(TIER, placement={"tolerations": [{"key": "a", "operator": SECRET}]})),
    "the image": (TierSpec, changed(TIER, images={"lmcache": f"{SECRET} "})),
    "how many may be away": (TierSpec, changed(TIER, updateStrategy={"maxUnavailable": SECRET})),
    "the version": (DeploymentSpec, changed(DEPLOYMENT, engine__version=SECRET)),
    "the identity": (DeploymentSpec, changed(DEPLOYMENT, engine__kvCache__identity=SECRET)),
    "the args": (DeploymentSpec, changed(DEPLOYMENT, engine__args=f"--api-key={SECRET}")),
    "a variable": (DeploymentSpec, changed(DEPLOYMENT, engine__env=[{"name": "A", "value": [SECRET]}])),
    "a variable without a name": (DeploymentSpec, changed(DEPLOYMENT, engine__env=[{"value": SECRET}])),
    "the variables": (DeploymentSpec, changed(DEPLOYMENT, engine__env={"TOKEN": SECRET})),
    "the cluster": (ClusterSpec, changed(CLUSTER, cluster__source=SECRET)),
}


@pytest.mark.parametrize("case", LONG)
def test_a_value_long_enough_to_be_a_secret_is_never_echoed(case: str) -> None:
    model, spec = LONG[case]
    with pytest.raises(api.Invalid) as caught:
        api.parse(model, spec)
    assert SECRET[:15] not in str(caught.value)


@pytest.mark.parametrize(("length", "shown"), [(64, True), (65, False)])
def test_a_value_of_up_to_64_characters_is_shown(length: int, shown: bool) -> None:
    with pytest.raises(api.Invalid) as caught:
        api.parse(TierSpec, changed(TIER, backend="x" * length))
    assert ("x" * length in str(caught.value)) == shown
    assert str(caught.value).endswith(BACKENDS)


# --- what goes into a pod -----------------------------------------------------------------------------------------


def test_a_toleration_and_a_variable_go_into_a_pod_as_they_were_written() -> None:
    tolerations: list[Manifest] = [
        {"key": "a", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0},
        {"operator": "Exists"},
    ]
    tier = api.parse(TierSpec, changed(TIER, placement={"tolerations": tolerations}))
    assert [t.manifest() for t in tier.placement.tolerations] == tolerations
    variables: list[Manifest] = [
        {"name": "A", "value": ""},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": False}}},
        {"name": "C"},
    ]
    deployment = api.parse(DeploymentSpec, changed(DEPLOYMENT, engine__env=variables))
    assert [e.manifest() for e in deployment.engine.env] == variables
