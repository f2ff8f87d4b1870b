"""The LMCache backend: what a tier runs, how each engine is attached, and where a password goes."""

import base64
import json
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from function.api import Invalid
from function.backends import of
from function.backends.base import Credential, CredentialError, EnginePatch, Notice, Plan, Site
from function.kube import Manifest
from tests.unit.builders import (
    INSTANCE,
    MIDDLE,
    MODEL,
    NEW,
    OLD,
    UNSEEN,
    attach,
    credential,
    engine,
    env,
    part,
    plan,
    redis,
    refuse,
    tier,
    vouched,
)

LMCACHE_OLD = "lmcache/vllm-openai:v0.3.9.post2"
LMCACHE_MIDDLE = "lmcache/vllm-openai:v0.4.5"
LMCACHE_NEW = "lmcache/vllm-openai:v0.5.6"

DISK: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}
SECRET: Manifest = {"name": "kv-redis-auth"}
DRA: Manifest = {"claims": [{"name": "gpu", "resourceClaimTemplateName": "two-gpus"}]}

AGENT_PARTS = ["connector", "service-account", "service", "network-policy", "agents"]


def agent_template(lmcache: Manifest | None = None, **fields: Any) -> Manifest:
    template: Manifest = part(plan(tier(lmcache, **fields)), "agents").manifest["spec"]["template"]
    return template


def agent(lmcache: Manifest | None = None, **fields: Any) -> Manifest:
    (container,) = agent_template(lmcache, **fields)["spec"]["containers"]
    found: Manifest = container
    return found


def adapters(lmcache: Manifest) -> list[Manifest]:
    flag = "--l2-adapter="
    return [json.loads(a.removeprefix(flag)) for a in agent(lmcache)["args"] if a.startswith(flag)]


def files(lmcache: Manifest | None = None, site: Site | None = None) -> dict[str, Any]:
    """Read what engines mount: YAML and JSON by file name."""
    data = part(plan(tier(lmcache), site or Site(8)), "connector").manifest["data"]
    return {name: yaml.safe_load(text) for name, text in data.items()}


def kv_transfer_config(patch: EnginePatch) -> Any:
    assert not patch.args
    return dict(patch.kv_transfer)


def notices(patch: EnginePatch) -> dict[str, str]:
    return {n.type: n.reason for n in patch.notices}


def from_secret(name: str, key: str, **fields: Any) -> Manifest:
    return {"name": name, "key": key, **fields}


# --- plan: what a tier runs ---------------------------------------------------------------------------------------

PLANS: dict[str, tuple[Manifest, list[str], list[str], bool]] = {
    "Auto": ({}, AGENT_PARTS, [], True),
    "Multiprocess": ({"mode": "Multiprocess"}, AGENT_PARTS, [], True),
    "InProcess": ({"mode": "InProcess"}, ["connector"], [], False),
    "a Redis without credentials": ({"remote": redis()}, AGENT_PARTS, [], True),
    "credentials that are not read": ({"remote": redis(secretRef=SECRET)}, AGENT_PARTS, ["credentials"], True),
    "credentials that are not read, in process": (
        {"mode": "InProcess", "remote": redis(secretRef=SECRET)},
        ["connector"],
        ["credentials"],
        False,
    ),
    "credentials that are there already": (
        {"remote": redis(secretRef={**SECRET, "onCluster": True})},
        AGENT_PARTS,
        [],
        True,
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_tier_runs_what_its_mode_needs(case: str) -> None:
    lmcache, parts, held, agents = PLANS[case]
    planned = plan(tier(lmcache))
    assert sorted(p.name for p in planned.parts) == sorted(parts)
    assert list(planned.held) == held
    assert (planned.part("agents") is not None) == agents


@pytest.mark.parametrize("mode", ["Auto", "Multiprocess", "InProcess"])
def test_credentials_that_are_read_are_one_more_part_and_nothing_is_held(mode: str) -> None:
    lmcache = {"mode": mode, "remote": redis(secretRef=SECRET)}
    without, with_them = plan(tier(lmcache)), plan(tier(lmcache), secret=credential(password="p"))
    assert {p.name for p in with_them.parts} - {p.name for p in without.parts} == {"credentials"}
    assert list(with_them.held) == []


@pytest.mark.parametrize(
    ("secret_ref", "read"),
    [(None, None), (SECRET, "kv-redis-auth"), ({**SECRET, "onCluster": True}, None)],
    ids=["none", "in the tier's namespace", "on the cluster"],
)
def test_a_secret_is_read_only_where_it_has_to_be_copied(secret_ref: Manifest | None, read: str | None) -> None:
    which = tier({"remote": redis(secretRef=secret_ref)} if secret_ref else {"remote": redis()})
    assert of(which.spec).secrets(which).get("credentials") == read


def test_a_tier_is_made_of_these_kinds() -> None:
    which = tier({"remote": redis(secretRef=SECRET)})
    kinds = {
        p.name: (p.manifest["apiVersion"], p.manifest["kind"])
        for p in plan(which, secret=credential(password="p")).parts
    }
    assert kinds == {
        "connector": ("v1", "ConfigMap"),
        "credentials": ("v1", "Secret"),
        "service-account": ("v1", "ServiceAccount"),
        "service": ("v1", "Service"),
        "network-policy": ("networking.k8s.io/v1", "NetworkPolicy"),
        "agents": ("apps/v1", "DaemonSet"),
    }


def test_everything_of_a_tier_has_its_name_and_namespace_and_labels() -> None:
    which = tier({"remote": redis(secretRef=SECRET)}, targetNamespace="kv")
    for planned in plan(which, secret=credential(password="p")).parts:
        metadata = planned.manifest["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (INSTANCE, "kv")
        assert metadata["labels"]["app.kubernetes.io/instance"] == INSTANCE
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "function-kv-offload"


def test_an_engine_reaches_the_agent_of_its_own_node_and_nobody_else_does() -> None:
    planned = plan(tier())
    selector = {"app.kubernetes.io/instance": INSTANCE, "app.kubernetes.io/component": "agent"}
    assert part(planned, "service").manifest["spec"] == {
        "selector": selector,
        "internalTrafficPolicy": "Local",
        "ports": [{"name": "lmcache", "port": 5555, "targetPort": "lmcache"}],
    }
    assert part(planned, "network-policy").manifest["spec"] == {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": {"kv-offload.modelplane.ai/tier": INSTANCE}}}],
                "ports": [{"port": "lmcache", "protocol": "TCP"}],
            }
        ],
    }
    template = part(planned, "agents").manifest["spec"]["template"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert attach(tier(), engine()).labels == {"kv-offload.modelplane.ai/tier": INSTANCE}


# --- plan: the agents ---------------------------------------------------------------------------------------------


def test_an_agent_is_started_with_every_option_whose_default_has_moved() -> None:
    assert agent({"chunkSize": 512})["args"] == [
        "--host=0.0.0.0",
        "--port=5555",
        "--http-host=127.0.0.1",
        "--http-port=8080",
        "--instance-id=$(NODE_NAME)",
        "--l1-size-gb=64",
        "--eviction-policy=LRU",
        "--chunk-size=512",
        "--hash-algorithm=blake3",
        "--worker-reap-timeout-seconds=60",
        "--worker-registration-grace-seconds=86400",
        "--isolated-ipc",
    ]


def test_the_image_is_the_releases_or_the_users() -> None:
    assert agent()["image"] == "lmcache/standalone:v0.5.6"
    assert agent(images={"lmcache": "mirror.example/lmcache:1"})["image"] == "mirror.example/lmcache:1"


def test_an_agent_without_a_disk_needs_no_shell() -> None:
    assert agent()["command"] == ["/opt/venv/bin/lmcache", "server"]
    assert "volumes" not in agent_template()["spec"]
    assert "volumeMounts" not in agent()


@pytest.mark.parametrize("disk", [DISK, {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}], ids=str)
def test_a_disk_is_emptied_before_each_start_since_nothing_recounts_what_it_holds(disk: Manifest) -> None:
    container = agent({"diskTier": disk})
    assert container["command"] == [
        "/bin/sh",
        "-c",
        'rm -rf /var/lib/lmcache/kv && mkdir /var/lib/lmcache/kv && exec /opt/venv/bin/lmcache server "$@"',
        "lmcache",
    ]
    assert container["args"][0] == "--host=0.0.0.0"
    (adapter,) = adapters({"diskTier": disk})
    assert adapter == {
        "type": "fs_native",
        "base_path": "/var/lib/lmcache/kv",
        "use_odirect": True,
        "max_capacity_gb": 921.6,
        "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
    }


def test_a_disk_of_a_storage_class_lives_as_long_as_its_agent() -> None:
    pod = agent_template({"diskTier": DISK})["spec"]
    assert pod["volumes"] == [
        {
            "name": "disk",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": "nvme",
                        "resources": {"requests": {"storage": "1Ti"}},
                    }
                }
            },
        }
    ]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "disk", "mountPath": "/var/lib/lmcache"}]


def test_a_folder_of_the_node_may_be_another_tiers_as_well() -> None:
    pod = agent_template({"diskTier": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}})["spec"]
    assert pod["volumes"] == [{"name": "disk", "hostPath": {"path": "/mnt/kv", "type": "DirectoryOrCreate"}}]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": "disk", "mountPath": "/var/lib/lmcache", "subPath": INSTANCE}
    ]


REDIS_ADAPTERS: dict[str, tuple[Manifest, Manifest]] = {
    "where it evicts by itself": ({}, {"type": "resp", "host": "kv.cache.svc", "port": 6379}),
    "with a capacity": (
        {"port": 6380, "maxCapacityGiB": 200},
        {
            "type": "resp",
            "host": "kv.cache.svc",
            "port": 6380,
            "max_capacity_gb": 200,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    # Credentials come by env, never in an argument.
    "with credentials": ({"secretRef": SECRET}, {"type": "resp", "host": "kv.cache.svc", "port": 6379}),
}


@pytest.mark.parametrize("case", REDIS_ADAPTERS)
def test_an_agent_speaks_resp_to_redis(case: str) -> None:
    fields, adapter = REDIS_ADAPTERS[case]
    assert adapters({"remote": redis(**fields)}) == [adapter]


def test_the_disk_is_asked_before_redis() -> None:
    assert [a["type"] for a in adapters({"remote": redis(), "diskTier": DISK})] == ["fs_native", "resp"]


AGENT_ENV: list[Manifest] = [
    {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    {"name": "LMCACHE_TRACK_USAGE", "value": "false"},
]
GPU_ENV: list[Manifest] = [
    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
    {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"},
]

CREDENTIALS: dict[str, tuple[Manifest, str, str, str]] = {
    "copied": (SECRET, INSTANCE, "username", "password"),
    "copied from other keys": (
        {**SECRET, "usernameKey": "user", "passwordKey": "pass"},
        INSTANCE,
        "username",
        "password",
    ),
    "there already": ({**SECRET, "onCluster": True}, "kv-redis-auth", "username", "password"),
    "there already, by other keys": (
        {**SECRET, "onCluster": True, "usernameKey": "user", "passwordKey": "pass"},
        "kv-redis-auth",
        "user",
        "pass",
    ),
}


@pytest.mark.parametrize("case", CREDENTIALS)
def test_an_agent_is_given_credentials_by_reference(case: str) -> None:
    secret_ref, name, user, password = CREDENTIALS[case]
    assert agent({"remote": redis(secretRef=secret_ref)})["env"] == [
        *AGENT_ENV,
        *GPU_ENV,
        {
            "name": "LMCACHE_RESP_USERNAME",
            "valueFrom": {"secretKeyRef": {"name": name, "key": user, "optional": True}},
        },
        {"name": "LMCACHE_RESP_PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": password}}},
    ]


def test_an_agent_sees_gpus_by_its_runtime_class() -> None:
    template = agent_template({"remote": redis()})
    assert template["spec"]["runtimeClassName"] == "nvidia"
    assert "annotations" not in template["metadata"]
    assert template["spec"]["containers"][0]["env"] == [*AGENT_ENV, *GPU_ENV]


def test_an_agent_sees_gpus_by_the_nodes_default_runtime() -> None:
    template = agent_template(placement={"gpuAccess": {"runtimeClassName": ""}})
    assert "runtimeClassName" not in template["spec"]
    assert template["spec"]["containers"][0]["env"] == [*AGENT_ENV, *GPU_ENV]


def test_an_agent_sees_gpus_by_cdi() -> None:
    template = agent_template(placement={"gpuAccess": {"type": "CDI"}})
    assert "runtimeClassName" not in template["spec"]
    assert template["metadata"]["annotations"] == {
        "nvidia.cdi.k8s.io/container.lmcache": "management.nvidia.com/gpu=all"
    }
    assert template["spec"]["containers"][0]["env"] == AGENT_ENV


def test_isolated_agents_share_no_folder_and_need_no_root() -> None:
    container = agent({"ipc": "Isolated"})
    assert "--isolated-ipc" in container["args"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "volumeMounts" not in container


def test_shared_agents_and_engines_share_the_nodes_shm_as_one_user() -> None:
    shm = {"name": "kv-shm", "hostPath": {"path": "/dev/shm", "type": "Directory"}}
    mount = {"name": "kv-shm", "mountPath": "/dev/shm"}
    template = agent_template({"ipc": "Shared"})
    container = template["spec"]["containers"][0]
    assert "--isolated-ipc" not in container["args"]
    assert container["securityContext"]["runAsUser"] == 0
    assert template["spec"]["volumes"] == [shm]
    assert container["volumeMounts"] == [mount]
    patch = attach(tier({"ipc": "Shared"}), engine())
    assert shm in patch.volumes
    assert mount in patch.mounts
    assert kv_transfer_config(patch)["kv_connector_extra_config"]["lmcache.mp.isolated_ipc"] is False


def test_an_engine_in_process_shares_no_shm() -> None:
    patch = attach(tier({"ipc": "Shared"}), engine(image=OLD))
    assert [v["name"] for v in patch.volumes] == ["kv-offload"]
    assert [m["name"] for m in patch.mounts] == ["kv-offload"]


ROLLS = (
    " && (object.status.desiredNumberScheduled == 0 || (has(object.status.updatedNumberScheduled)"
    " && object.status.updatedNumberScheduled == object.status.desiredNumberScheduled))"
)
SERVES = (
    "has(object.status) && has(object.status.observedGeneration)"
    " && object.status.observedGeneration >= object.metadata.generation"
    " && object.status.numberReady == object.status.desiredNumberScheduled"
)

STRATEGIES: dict[str, tuple[Manifest, Manifest, str]] = {
    "by default": ({}, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, SERVES + ROLLS),
    "several at once": (
        {"maxUnavailable": "25%"},
        {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%"}},
        SERVES + ROLLS,
    ),
    # When its pods are replaced is up to whoever deletes them, so that is not waited for.
    "when deleted": ({"type": "OnDelete"}, {"type": "OnDelete"}, SERVES),
}


@pytest.mark.parametrize("case", STRATEGIES)
def test_agents_are_ready_when_they_serve_and_where_they_roll_when_all_are_new(case: str) -> None:
    written, strategy, ready = STRATEGIES[case]
    agents = part(plan(tier(updateStrategy=written)), "agents")
    assert agents.manifest["spec"]["updateStrategy"] == strategy
    assert agents.ready == ready


def test_only_agents_have_a_readiness_of_their_own() -> None:
    planned = plan(tier({"remote": redis(secretRef=SECRET)}), secret=credential(password="p"))
    assert [p.name for p in planned.parts if p.ready] == ["agents"]


def test_agents_and_the_engines_that_use_them_run_on_the_same_nodes() -> None:
    pod = agent_template()["spec"]
    patch = attach(tier(), engine())
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [t["matchExpressions"][0]["key"] for t in terms] == [
        "nvidia.com/gpu.present",
        "cloud.google.com/gke-accelerator",
        "modelplane.ai/pool",
    ]
    assert list(patch.affinity) == terms
    assert list(patch.tolerations) == pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert "nodeSelector" not in pod
    assert patch.node_selector == {}


def test_a_placement_of_the_users_replaces_the_default() -> None:
    placement = {
        "nodeSelector": {"pool": "h100"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "priorityClassName": "system-node-critical",
    }
    pod = agent_template(placement=placement)["spec"]
    patch = attach(tier(placement=placement), engine())
    assert pod["nodeSelector"] == patch.node_selector == {"pool": "h100"}
    assert pod["tolerations"] == patch.tolerations == [{"key": "spot", "operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert "affinity" not in pod
    assert list(patch.affinity) == []


@pytest.mark.parametrize("image", [OLD, NEW])
def test_an_engine_follows_its_tier_however_it_is_attached(image: str) -> None:
    patch = attach(tier(placement={"nodeSelector": {"pool": "h100"}}), engine(image=image))
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert (patch.node_selector, list(patch.affinity), list(patch.tolerations)) == ({"pool": "h100"}, [], tolerations)


# --- plan: metrics ------------------------------------------------------------------------------------------------

METRICS: dict[str, tuple[Manifest, bool]] = {
    "nobody asks": ({}, False),
    "somebody asks": ({"monitoring": {}}, True),
    "alerts alone": ({"monitoring": {"podMonitors": False}}, False),
}


@pytest.mark.parametrize("case", METRICS)
def test_agents_serve_metrics_where_they_are_scraped_and_then_no_admin_api(case: str) -> None:
    fields, scraped = METRICS[case]
    container = agent(**fields)
    flags = [a for a in container["args"] if "http" in a or "prometheus" in a]
    if scraped:
        assert container["command"] == ["/opt/venv/bin/python", "-m", "lmcache.v1.multiprocess.server"]
        assert flags == ["--prometheus-port=9090"]
        assert container["ports"] == [
            {"name": "lmcache", "containerPort": 5555},
            {"name": "metrics", "containerPort": 9090},
        ]
    else:
        assert container["command"] == ["/opt/venv/bin/lmcache", "server"]
        assert flags == ["--http-host=127.0.0.1", "--http-port=8080"]
        assert container["ports"] == [{"name": "lmcache", "containerPort": 5555}]
    unscraped = [a for a in agent()["args"] if "http" not in a]
    assert [a for a in container["args"] if a not in flags] == unscraped


def test_a_scraped_agent_empties_its_disk_as_well() -> None:
    assert agent({"diskTier": DISK}, monitoring={})["command"] == [
        "/bin/sh",
        "-c",
        "rm -rf /var/lib/lmcache/kv && mkdir /var/lib/lmcache/kv"
        ' && exec /opt/venv/bin/python -m lmcache.v1.multiprocess.server "$@"',
        "lmcache",
    ]


@pytest.mark.parametrize(
    ("monitoring", "namespace"), [({}, "monitoring"), ({"prometheusNamespace": "prom"}, "prom")], ids=str
)
def test_prometheus_alone_reaches_an_agents_metrics(monitoring: Manifest, namespace: str) -> None:
    engines, prometheus = part(plan(tier(monitoring=monitoring)), "network-policy").manifest["spec"]["ingress"]
    assert engines["ports"] == [{"port": "lmcache", "protocol": "TCP"}]
    assert prometheus == {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}],
        "ports": [{"port": "metrics", "protocol": "TCP"}],
    }


# --- plan: encryption ---------------------------------------------------------------------------------------------

KEY: Manifest = {"secretRef": {"name": "kv-key"}}
ENCRYPTED: Manifest = {"diskTier": DISK, "remote": redis(), "encryption": KEY}
SERDE = {"type": "aesgcm", "aes_bits": 256, "master_key_path": "/etc/lmcache-encryption/key"}
BYTES = "32 bytes, to the letter, and so on"


def key(**secret: str) -> dict[str, Credential]:
    return {"encryption": credential(**(secret or {"key": BYTES}))}


def encrypted(lmcache: Manifest, keys: dict[str, Credential] | None = None) -> Plan:
    which = tier(lmcache)
    return of(which.spec).plan(which, Site(8), key() if keys is None else keys)


def test_every_adapter_of_an_agent_encrypts_or_none_does() -> None:
    assert [a["serde"] for a in adapters(ENCRYPTED)] == [SERDE, SERDE]
    assert all("serde" not in a for a in adapters({"diskTier": DISK, "remote": redis()}))


def test_a_key_is_read_only_where_it_has_to_be_copied() -> None:
    for key_ref, read in ((KEY, "kv-key"), ({"secretRef": {"name": "kv-key", "onCluster": True}}, None)):
        which = tier({"diskTier": DISK, "encryption": key_ref})
        assert of(which.spec).secrets(which).get("encryption") == read


def test_the_key_is_copied_as_it_is_under_a_name_of_ours() -> None:
    ref = {"secretRef": {"name": "kv-key", "key": "aes"}}
    copied = part(encrypted({"diskTier": DISK, "encryption": ref}, key(aes=BYTES, other="x")), "encryption")
    assert copied.manifest["metadata"]["name"] == f"{INSTANCE}-encryption"
    assert (copied.manifest["kind"], copied.manifest["type"]) == ("Secret", "Opaque")
    assert copied.manifest["data"] == {"key": base64.b64encode(BYTES.encode()).decode()}
    assert BYTES not in copied.version


MOUNTED: dict[str, tuple[Manifest, Manifest]] = {
    "copied": (
        {"name": "kv-key", "key": "aes"},
        {"secretName": f"{INSTANCE}-encryption", "items": [{"key": "key", "path": "key"}]},
    ),
    "there already": (
        {"name": "kv-key", "key": "aes", "onCluster": True},
        {"secretName": "kv-key", "items": [{"key": "aes", "path": "key"}]},
    ),
    "there already, by the usual key": (
        {"name": "kv-key", "onCluster": True},
        {"secretName": "kv-key", "items": [{"key": "key", "path": "key"}]},
    ),
}


@pytest.mark.parametrize("case", MOUNTED)
def test_an_agent_does_not_start_without_its_key(case: str) -> None:
    ref, source = MOUNTED[case]
    pod = agent_template({"remote": redis(), "encryption": {"secretRef": ref}})["spec"]
    assert pod["volumes"] == [{"name": "encryption", "secret": source}]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": "encryption", "mountPath": "/etc/lmcache-encryption", "readOnly": True}
    ]


def test_a_key_that_changes_restarts_agents_and_no_hash_of_it_is_shown() -> None:
    def annotations(version: str, **secret: str) -> Any:
        found = encrypted(ENCRYPTED, {"encryption": Credential(key(**secret)["encryption"].data, version)})
        return part(found, "agents").manifest["spec"]["template"]["metadata"]["annotations"]

    assert list(annotations("1")) == ["kv-offload.modelplane.ai/key-hash"]
    assert annotations("1") != annotations("2")
    assert annotations("1") == annotations("1", key=BYTES[::-1])


def test_of_a_key_that_is_on_the_cluster_nothing_is_known() -> None:
    assert (
        "annotations"
        not in agent_template({"diskTier": DISK, "encryption": {"secretRef": {"name": "kv-key", "onCluster": True}}})[
            "metadata"
        ]
    )


def test_agents_stay_as_they_are_while_the_key_is_not_read() -> None:
    assert list(encrypted(ENCRYPTED, {}).held) == ["encryption", "agents"]
    assert encrypted(ENCRYPTED, {}).part("agents") is not None
    assert list(encrypted(ENCRYPTED).held) == []


BAD_KEYS: dict[str, tuple[dict[str, str], str, str]] = {
    "none": ({"other": BYTES}, "KeyMissing", "Secret modelplane-system/kv-key has no key 'key'"),
    "an empty one": ({"key": ""}, "KeyMissing", "Secret modelplane-system/kv-key has no key 'key'"),
    "a short one": (
        {"key": "hunter2" + 24 * "x"},
        "KeyTooShort",
        "key 'key' of Secret modelplane-system/kv-key holds fewer than 32 bytes; put random ones there, as "
        "`openssl rand 32` gives",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_key_that_cannot_be_used_is_told_without_it(case: str) -> None:
    secret, reason, message = BAD_KEYS[case]
    with pytest.raises(CredentialError) as caught:
        encrypted(ENCRYPTED, key(**secret))
    assert (caught.value.reason, str(caught.value)) == (reason, message)


def test_a_key_of_32_bytes_is_long_enough() -> None:
    assert encrypted(ENCRYPTED, key(key=32 * "x")).part("encryption")


@pytest.mark.parametrize("image", [OLD, MIDDLE])
@pytest.mark.parametrize("fields", [{}, {"secretRef": SECRET}], ids=["open", "with credentials"])
def test_an_engine_in_process_puts_nothing_plain_beside_what_is_encrypted(image: str, fields: Manifest) -> None:
    patch = attach(tier({"remote": redis(**fields), "encryption": KEY}), engine(image=image))
    assert not {"LMCACHE_REMOTE_URL", "LMCACHE_RESP_PASSWORD"} & env(patch).keys()
    (notice,) = [n for n in patch.notices if n.type == "RemoteNotAttached"]
    assert (notice.reason, notice.message) == (
        "Encrypted",
        "the engine runs without the tier's Redis: what lies in it is encrypted, which agents can do and engines "
        "cannot",
    )
    (unused,) = [n for n in patch.notices if n.type == "TierUnusedByEngine"]
    assert "Redis" not in unused.message


def test_an_engine_of_an_agent_knows_nothing_of_encryption() -> None:
    assert attach(tier(ENCRYPTED), engine()) == attach(tier({"diskTier": DISK, "remote": redis()}), engine())


REFUSED: dict[str, tuple[Manifest, str]] = {
    "in process": (
        {**ENCRYPTED, "mode": "InProcess"},
        "spec.lmcache: encryption is the agents', and engines in process have none: set mode to Auto or Multiprocess, "
        "or remove encryption",
    ),
    "of nothing": (
        {"encryption": KEY},
        "spec.lmcache: encryption is of what lies on disk and in Redis, memory stays plain: set diskTier or remote, or "
        "remove encryption",
    ),
    "without a Secret": (
        {"diskTier": DISK, "encryption": {}},
        "spec.lmcache.encryption.secretRef is required",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_encryption_is_refused(case: str) -> None:
    lmcache, message = REFUSED[case]
    with pytest.raises(Invalid) as caught:
        tier(lmcache)
    assert str(caught.value) == message


# --- plan: what engines mount -------------------------------------------------------------------------------------

IN_PROCESS_YAML: Manifest = {
    "chunk_size": 256,
    "local_cpu": True,
    "max_local_cpu_size": 2.0,
    "pre_caching_hash_algorithm": "builtin",
    "remote_serde": "naive",
    "save_unfull_chunk": False,
    "lookup_timeout_ms": 3000,
    "blocking_timeout_secs": 10,
}
FILES: dict[str, tuple[Manifest, Manifest]] = {
    "Auto": ({}, {"lmcache.yaml": IN_PROCESS_YAML}),
    "Multiprocess": ({"mode": "Multiprocess"}, {"lmcache.yaml": IN_PROCESS_YAML}),
    "InProcess": ({"mode": "InProcess"}, {"lmcache.yaml": IN_PROCESS_YAML | {"max_local_cpu_size": 8.0}}),
    "InProcess with a disk": (
        {"mode": "InProcess", "diskTier": DISK},
        {
            "lmcache.yaml": IN_PROCESS_YAML
            | {
                "max_local_cpu_size": 8.0,
                "local_disk": "file:///var/lib/lmcache/",
                "max_local_disk_size": 57.6,
            }
        },
    ),
    "Auto with a disk, which is the agent's": (
        {"diskTier": DISK},
        {"lmcache.yaml": IN_PROCESS_YAML},
    ),
    "a chunk size": (
        {"mode": "InProcess", "chunkSize": 1024},
        {"lmcache.yaml": IN_PROCESS_YAML | {"max_local_cpu_size": 8.0, "chunk_size": 1024}},
    ),
    # Its URL comes by env, in the form that each engine reads.
    "a Redis": (
        {"mode": "InProcess", "remote": redis()},
        {"lmcache.yaml": IN_PROCESS_YAML | {"max_local_cpu_size": 8.0}},
    ),
    "a Redis beside agents": (
        {"remote": redis(secretRef=SECRET)},
        {"lmcache.yaml": IN_PROCESS_YAML},
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_what_engines_mount(case: str) -> None:
    lmcache, expected = FILES[case]
    assert files(lmcache) == expected


def test_sizes_are_floats_where_old_lmcache_versions_read_them_as_such() -> None:
    for name in ("max_local_cpu_size", "max_local_disk_size"):
        value = files({"mode": "InProcess", "diskTier": {**DISK, "sizePerNode": "80Gi"}})["lmcache.yaml"][name]
        assert isinstance(value, float), name


# --- attach: who is attached how ----------------------------------------------------------------------------------

MP, V1 = "LMCacheMPConnector", "LMCacheConnectorV1"


# mode, image, further args, spec fields: the connector, and the reasons of warnings; or the refusal's reason.
ATTACHMENTS: list[tuple[str, str, list[str], Manifest, str, dict[str, str]]] = [
    # An engine that speaks to an agent, with a model that the string says all of.
    ("Auto", LMCACHE_NEW, [], {"version": "0.33.0"}, MP, {}),
    ("Auto", NEW, [], {}, MP, {}),
    ("Auto", UNSEEN, [], {}, MP, {"EngineImageUnverified": "LMCacheUnknown"}),
    ("Multiprocess", LMCACHE_NEW, [], {"version": "0.33.0"}, MP, {}),
    ("InProcess", LMCACHE_NEW, [], {"version": "0.33.0"}, V1, {}),
    ("InProcess", NEW, [], {}, V1, {}),
    ("InProcess", UNSEEN, [], {}, V1, {"EngineImageUnverified": "LMCacheUnknown"}),
    # An engine that is too old for an agent.
    ("Auto", LMCACHE_OLD, [], {"version": "0.11.0"}, V1, {"TierUnusedByEngine": "EngineTooOld"}),
    (
        "Auto",
        OLD,
        [],
        {},
        V1,
        {"EngineImageUnverified": "LMCacheUnknown", "TierUnusedByEngine": "EngineTooOld"},
    ),
    ("Auto", LMCACHE_MIDDLE, [], {"version": "0.21.0"}, V1, {"TierUnusedByEngine": "EngineTooOld"}),
    ("Multiprocess", LMCACHE_OLD, [], {"version": "0.11.0"}, "EngineTooOld", {}),
    ("InProcess", LMCACHE_OLD, [], {"version": "0.11.0"}, V1, {}),
    # An image whose LMCache is too old for an agent.
    ("Auto", LMCACHE_MIDDLE, [], {"version": "0.24.0"}, V1, {"TierUnusedByEngine": "LMCacheTooOld"}),
    ("Multiprocess", LMCACHE_MIDDLE, [], {"version": "0.24.0"}, "LMCacheTooOld", {}),
    (
        "Auto",
        "vllm/vllm-openai:v0.24.0",
        [],
        {},
        V1,
        {"EngineImageUnverified": "LMCacheUnknown", "TierUnusedByEngine": "LMCacheTooOld"},
    ),
    ("Multiprocess", "vllm/vllm-openai:v0.33.0-cu129", [], {}, MP, {}),
    ("Multiprocess", "vllm/vllm-openai:v0.32.0-cu129", [], {}, "LMCacheTooOld", {}),
    # Whether it is new enough for an agent is not known.
    ("Auto", "vllm/vllm-openai:v0.32.0", [], {}, MP, {"EngineImageUnverified": "LMCacheUnknown"}),
    ("InProcess", LMCACHE_MIDDLE, [], {"version": "0.24.0"}, V1, {}),
    # A model that the string does not say all of.
    (
        "Auto",
        LMCACHE_NEW,
        ["--quantization=fp8"],
        {"version": "0.33.0"},
        V1,
        {"TierUnusedByEngine": "IdentityNotShared"},
    ),
    ("Multiprocess", LMCACHE_NEW, ["--quantization=fp8"], {"version": "0.33.0"}, "IdentityNotShared", {}),
    ("InProcess", LMCACHE_NEW, ["--quantization=fp8"], {"version": "0.33.0"}, V1, {}),
    (
        "Auto",
        LMCACHE_NEW,
        ["--model=/mnt/models"],
        {"version": "0.33.0"},
        V1,
        {"TierUnusedByEngine": "IdentityNotShared"},
    ),
    ("Multiprocess", LMCACHE_NEW, ["--model=/mnt/models"], {"version": "0.33.0"}, "IdentityNotShared", {}),
    # A model that the user vouches for.
    ("Auto", LMCACHE_NEW, ["--model=/mnt/models"], {"version": "0.33.0", "kvCache": vouched()}, MP, {}),
    ("Multiprocess", LMCACHE_NEW, ["-q", "fp8"], {"version": "0.33.0", "kvCache": vouched()}, MP, {}),
    (
        "Auto",
        LMCACHE_OLD,
        ["-q", "fp8"],
        {"version": "0.11.0", "kvCache": vouched()},
        V1,
        {"TierUnusedByEngine": "EngineTooOld"},
    ),
    # GPUs by DRA.
    (
        "Auto",
        LMCACHE_NEW,
        [],
        {"version": "0.33.0", "resources": DRA},
        V1,
        {"TierUnusedByEngine": "GPUsByDRA"},
    ),
    (
        "Multiprocess",
        LMCACHE_NEW,
        [],
        {"version": "0.33.0", "resources": DRA},
        MP,
        {"MultiprocessForced": "GPUsByDRA"},
    ),
    ("InProcess", LMCACHE_NEW, [], {"version": "0.33.0", "resources": DRA}, V1, {}),
    # What cannot be overridden is told before what can.
    ("Multiprocess", LMCACHE_NEW, ["-q=fp8"], {"version": "0.33.0", "resources": DRA}, "IdentityNotShared", {}),
    ("Multiprocess", LMCACHE_OLD, [], {"version": "0.11.0", "resources": DRA}, "EngineTooOld", {}),
    (
        "Multiprocess",
        LMCACHE_NEW,
        ["-q=fp8"],
        {"version": "0.33.0", "resources": DRA, "kvCache": vouched()},
        MP,
        {"MultiprocessForced": "GPUsByDRA"},
    ),
    # LoRA, in every mode, vouched or not.
    ("Auto", LMCACHE_NEW, ["--enable-lora"], {"version": "0.33.0"}, "LoRANotIsolated", {}),
    ("Multiprocess", LMCACHE_NEW, ["--enable-lora"], {"version": "0.33.0"}, "LoRANotIsolated", {}),
    ("InProcess", LMCACHE_NEW, ["--enable-lora"], {"version": "0.33.0"}, "LoRANotIsolated", {}),
    (
        "Auto",
        LMCACHE_NEW,
        ["--lora-modules", "a=b/c"],
        {"version": "0.33.0", "kvCache": vouched()},
        "LoRANotIsolated",
        {},
    ),
    # Versions.
    ("Auto", "vllm/vllm-openai:latest", [], {}, "EngineVersionUnknown", {}),
    ("InProcess", LMCACHE_NEW, [], {}, "EngineVersionUnknown", {}),
    ("Multiprocess", "vllm/vllm-openai:v0.33.0rc1", [], {}, "EngineVersionUnknown", {}),
    ("Auto", "vllm/vllm-openai:v0.10.2", [], {}, "EngineVersionUnsupported", {}),
    ("InProcess", NEW, [], {"version": "0.10"}, "EngineVersionUnsupported", {}),
]


@pytest.mark.parametrize("case", ATTACHMENTS, ids=lambda c: " ".join((*c[:2], *c[2], *c[3])))
def test_an_engine_is_attached_by_what_it_speaks_or_told_why_not(
    case: tuple[str, str, list[str], Manifest, str, dict[str, str]],
) -> None:
    mode, image, args, fields, outcome, warnings = case
    which, found = tier({"mode": mode}), engine(*args, image=image, **fields)
    if outcome in (MP, V1):
        patch = attach(which, found)
        assert (patch.connector, kv_transfer_config(patch)["kv_connector"]) == (outcome, outcome)
        assert notices(patch) == warnings
        assert patch.tier == "modelplane-system/shared"
    else:
        assert refuse(which, found).reason == outcome


REFUSALS = {
    "unknown": (
        {"image": "company/serving:2"},
        "the version of image 'company/serving:2' cannot be told from its tag; set engine.version, as in 0.33.0",
    ),
    "too old for the table": (
        {"version": "0.10.2"},
        "vLLM 0.10.2 is older than 0.11.0, the oldest that is attached; use that or newer",
    ),
    "too old for an agent": (
        {"image": OLD},
        "vLLM 0.11.0 does not speak multiprocess LMCache (from 0.22.0 on); the tier's mode is Multiprocess, Auto would "
        "attach in process",
    ),
    "LMCache too old": (
        {"image": LMCACHE_MIDDLE, "version": "0.24"},
        "the image holds LMCache 0.4.5, the agent needs 0.5.6; the tier's mode is Multiprocess, Auto would attach in "
        "process",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_was_found_and_what_to_do(case: str) -> None:
    fields, message = REFUSALS[case]
    assert refuse(tier({"mode": "Multiprocess"}), engine(**fields)).message == message


def test_an_engine_that_cannot_use_the_agent_is_told_what_that_costs() -> None:
    which = tier({"diskTier": DISK, "remote": redis()})
    (notice,) = [n for n in attach(which, engine("-tp=4", image=OLD)).notices if n.type == "TierUnusedByEngine"]
    assert notice.message == (
        "vLLM 0.11.0 does not speak multiprocess LMCache (from 0.22.0 on). It is attached in process: 2 GiB x 4 "
        "rank(s) of its own pod's memory, and the Redis; the 64 GiB of the node's agent and its disk of 1Ti it cannot "
        "use. A tier for a fleet of such engines has lmcache.mode InProcess"
    )


def test_an_engine_without_its_tiers_redis_is_not_told_that_it_has_it() -> None:
    patch = attach(tier({"remote": redis(secretRef={**SECRET, "onCluster": True})}), engine(image=OLD))
    assert notices(patch).keys() >= {"RemoteNotAttached", "TierUnusedByEngine"}
    (notice,) = [n for n in patch.notices if n.type == "TierUnusedByEngine"]
    assert "Redis" not in notice.message


def test_an_engine_whose_lmcache_is_not_known_is_told_what_it_needs() -> None:
    def needed(image: str, mode: str) -> str:
        (found,) = [
            n for n in attach(tier({"mode": mode}), engine(image=image)).notices if n.reason == "LMCacheUnknown"
        ]
        return found.message

    for image, mode, version in [
        (UNSEEN, "Auto", "0.5.6"),
        (UNSEEN, "InProcess", "0.4.5"),
        (OLD, "InProcess", "0.3.7"),
    ]:
        assert needed(image, mode) == (
            f"whether image '{image}' holds LMCache {version} or newer, is not known; without it the engine fails at "
            "start. lmcache/vllm-openai images hold the LMCache of their tag"
        )
    assert needed(MIDDLE, "InProcess") == (
        f"image '{MIDDLE}' holds LMCache, but whether it is LMCache 0.4.5 or newer, is not known. "
        "lmcache/vllm-openai images hold the LMCache of their tag"
    )


@pytest.mark.parametrize("mode", ["Auto", "Multiprocess"])
def test_an_engine_and_an_agent_that_are_not_of_one_release_are_kept_apart(mode: str) -> None:
    spec = tier({"mode": mode}, images={"lmcache": "lmcache/standalone:v0.6.0"})
    refusal = refuse(spec, engine(image=LMCACHE_NEW, version="0.33.0"))
    assert refusal.reason == "VersionSkew"
    for word in (
        "LMCache 0.6.0",
        "holds 0.5.6",
        "of one release, or from 0.5.5 to before 0.6.0, since",
        "spec.images.lmcache",
        LMCACHE_NEW,
    ):
        assert word in refusal.message


def test_what_an_agent_runs_is_told_by_its_image_or_not_at_all() -> None:
    own = engine(image=LMCACHE_NEW, version="0.33.0")
    for image in ("team/agent:v0.5.6", "team/agent:build-7", "lmcache/standalone@sha256:" + "0" * 64):
        assert attach(tier({"mode": "Multiprocess"}, images={"lmcache": image}), own).connector == MP
    # In process there is no agent to differ from.
    assert attach(tier(IN_PROCESS, images={"lmcache": "lmcache/standalone:v0.6.0"}), own).connector == V1


# --- attach: the patches ------------------------------------------------------------------------------------------

CONFIG_MOUNT = {"name": "kv-offload", "mountPath": "/etc/kv-offload", "readOnly": True}
CONFIG_VOLUME = {"name": "kv-offload", "configMap": {"name": INSTANCE}}


def test_an_engine_of_an_agent_is_given_its_address_and_recomputes_what_is_lost() -> None:
    patch = attach(tier(targetNamespace="kv"), engine())
    assert kv_transfer_config(patch) == {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "lmcache.mp.host": f"tcp://{INSTANCE}.kv.svc",
            "lmcache.mp.port": "5555",
            "lmcache.mp.isolated_ipc": True,
            "lmcache.mp.heartbeat_interval": 10,
            "lmcache.mp.mq_timeout": 60,
        },
    }
    assert list(patch.env) == [{"name": "LMCACHE_TRACK_USAGE", "value": "false"}]
    assert list(patch.mounts) == [CONFIG_MOUNT]
    assert list(patch.volumes) == [CONFIG_VOLUME]


def test_an_engine_of_an_agent_is_given_no_credentials() -> None:
    patch = attach(tier({"remote": redis(secretRef=SECRET), "diskTier": DISK}), engine())
    assert env(patch) == {"LMCACHE_TRACK_USAGE": "false"}
    assert list(patch.volumes) == [CONFIG_VOLUME]


def test_an_engine_in_process_is_given_a_file_and_its_identitys_seed() -> None:
    patch = attach(tier({"diskTier": DISK}), engine(image=OLD))
    assert kv_transfer_config(patch) == {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    assert env(patch) == {
        "LMCACHE_CONFIG_FILE": "/etc/kv-offload/lmcache.yaml",
        "LMCACHE_USE_EXPERIMENTAL": "True",
        "LMCACHE_TRACK_USAGE": "false",
        "PYTHONHASHSEED": "3545267068",
    }
    assert list(patch.mounts) == [CONFIG_MOUNT]
    # The agent's disk is not shared out.
    assert list(patch.volumes) == [CONFIG_VOLUME]


@pytest.mark.parametrize(
    ("image", "version", "experimental"),
    [
        (OLD, None, True),
        (LMCACHE_OLD, "0.11.0", True),
        (LMCACHE_MIDDLE, "0.11.0", False),
        (MIDDLE, None, False),
        (NEW, None, False),
    ],
)
def test_the_v1_engine_of_old_lmcache_versions_is_asked_for(
    image: str, version: str | None, experimental: bool
) -> None:
    found = engine(image=image, **({"version": version} if version else {}))
    patch = attach(tier({"mode": "InProcess"}), found)
    assert ("LMCACHE_USE_EXPERIMENTAL" in env(patch)) == experimental


@pytest.mark.parametrize(
    ("args", "share"),
    [([], "131072Mi"), (["-tp=2"], "262144Mi"), (["-tp=8"], "1048576Mi"), (["-tp=8", "-pp=2"], "1048576Mi")],
    ids=str,
)
def test_an_engine_in_process_is_given_its_ranks_share_of_the_disk(args: list[str], share: str) -> None:
    patch = attach(tier({"mode": "InProcess", "diskTier": DISK}), engine(*args, image=OLD))
    assert list(patch.mounts) == [CONFIG_MOUNT, {"name": "disk", "mountPath": "/var/lib/lmcache"}]
    assert list(patch.volumes) == [
        CONFIG_VOLUME,
        {
            "name": "disk",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": "nvme",
                        "resources": {"requests": {"storage": share}},
                    }
                }
            },
        },
    ]


@pytest.mark.parametrize("image", [OLD, NEW])
@pytest.mark.parametrize(
    ("lmcache", "restarts"),
    [
        ({"chunkSize": 512}, True),
        ({"cpuTierGiBPerNode": 128}, False),
        ({"remote": redis()}, None),
        ({"diskTier": DISK}, False),
    ],
    ids=str,
)
def test_an_engine_is_restarted_by_what_it_reads_at_start(image: str, lmcache: Manifest, restarts: bool | None) -> None:
    before, after = (attach(tier(block), engine(image=image)).annotations for block in ({}, lmcache))
    assert list(before) == ["kv-offload.modelplane.ai/connector-hash"]
    # Redis is behind the agent, or read by an engine in process itself.
    assert (before != after) == (image == OLD if restarts is None else restarts)


@pytest.mark.parametrize("secret_ref", [None, {"name": "kv-redis-auth"}], ids=["open", "with credentials"])
@pytest.mark.parametrize("fields", [{"host": "other"}, {"port": 7000}], ids=str)
def test_another_redis_restarts_an_engine_in_process_wherever_it_reads_the_url(
    secret_ref: Manifest | None, fields: Manifest
) -> None:
    def hashed(**changes: Any) -> Any:
        remote = redis(**changes, **({"secretRef": secret_ref} if secret_ref else {}))
        return attach(tier({"remote": remote}), engine(image=OLD)).annotations

    assert hashed() != hashed(**fields)


def test_another_password_restarts_nothing() -> None:
    patch = attach(tier({"remote": redis(secretRef=SECRET)}), engine(image=OLD))
    other = attach(tier({"remote": redis(secretRef={**SECRET, "passwordKey": "next"})}), engine(image=OLD))
    assert patch == other


# --- attach: Redis ------------------------------------------------------------------------------------------------

WARNING = "WARNING"
RESP = {
    "LMCACHE_REMOTE_URL": "resp://kv.cache.svc:6379",
    "LMCACHE_RESP_USERNAME": from_secret(INSTANCE, "username", optional=True),
    "LMCACHE_RESP_PASSWORD": from_secret(INSTANCE, "password"),
}
URL = {"LMCACHE_LOG_LEVEL": WARNING, "LMCACHE_REMOTE_URL": from_secret(INSTANCE, "redis-url")}
ON_CLUSTER: Manifest = {**SECRET, "onCluster": True, "usernameKey": "user", "passwordKey": "pass"}
RESP_ON_CLUSTER = {
    "LMCACHE_REMOTE_URL": "resp://kv.cache.svc:6379",
    "LMCACHE_RESP_USERNAME": from_secret("kv-redis-auth", "user", optional=True),
    "LMCACHE_RESP_PASSWORD": from_secret("kv-redis-auth", "pass"),
}
URL_ON_CLUSTER = {"LMCACHE_LOG_LEVEL": WARNING, "LMCACHE_REMOTE_URL": from_secret("kv-redis-auth", "url")}

WITHOUT_URL = "its LMCache wants a URL; set remote.redis.secretRef.urlKey to the key that holds it"
LOGS_CLUSTER = "its LMCache may be 0.3.7, which logs the password of a redis-cluster URL it cannot read"
IN_PROCESS: Manifest = {"mode": "InProcess"}

# How Redis is, the engine's image: what the engine is given, and why it is not.
REMOTES: dict[str, tuple[Manifest, str, Manifest, str]] = {
    "none": ({}, OLD, {}, ""),
    "without credentials, old": (
        {"remote": redis(port=7000)},
        OLD,
        {"LMCACHE_REMOTE_URL": "redis://kv.cache.svc:7000"},
        "",
    ),
    "without credentials, new enough LMCache": (
        {"remote": redis(port=7000)},
        MIDDLE,
        {"LMCACHE_REMOTE_URL": "resp://kv.cache.svc:7000"},
        "",
    ),
    "without credentials, TLS": (
        {**IN_PROCESS, "remote": redis(tls=True)},
        NEW,
        {"LMCACHE_REMOTE_URL": "rediss://kv.cache.svc:6379"},
        "",
    ),
    "without credentials, Cluster": (
        {**IN_PROCESS, "remote": redis(mode="Cluster")},
        NEW,
        {"LMCACHE_REMOTE_URL": "redis-cluster://kv.cache.svc:6379"},
        "",
    ),
    "without credentials, Cluster, old": ({**IN_PROCESS, "remote": redis(mode="Cluster")}, OLD, {}, LOGS_CLUSTER),
    "credentials, old": ({"remote": redis(secretRef=SECRET)}, OLD, URL, ""),
    "credentials, old LMCache": ({"remote": redis(secretRef=SECRET)}, LMCACHE_OLD, URL, ""),
    "credentials, new enough LMCache": ({"remote": redis(secretRef=SECRET)}, MIDDLE, RESP, ""),
    "credentials, in process": ({**IN_PROCESS, "remote": redis(secretRef=SECRET)}, NEW, RESP, ""),
    "credentials, in process, old": ({**IN_PROCESS, "remote": redis(secretRef=SECRET)}, OLD, URL, ""),
    "credentials, the newest LMCache that reads no resp": (
        {"remote": redis(secretRef=SECRET)},
        "lmcache/vllm-openai:v0.4.2",
        URL,
        "",
    ),
    "credentials, the oldest LMCache that reads resp": (
        {"remote": redis(secretRef=SECRET)},
        "lmcache/vllm-openai:v0.4.3",
        RESP,
        "",
    ),
    "credentials, another port": (
        {"remote": redis(secretRef=SECRET, port=7000)},
        MIDDLE,
        RESP | {"LMCACHE_REMOTE_URL": "resp://kv.cache.svc:7000"},
        "",
    ),
    "on the cluster": ({"remote": redis(secretRef=ON_CLUSTER)}, MIDDLE, RESP_ON_CLUSTER, ""),
    "on the cluster, old": ({"remote": redis(secretRef=ON_CLUSTER)}, OLD, {}, WITHOUT_URL),
    "on the cluster with a URL": (
        {"remote": redis(secretRef={**ON_CLUSTER, "urlKey": "url"})},
        OLD,
        URL_ON_CLUSTER,
        "",
    ),
    "on the cluster with a URL, for who does not need it": (
        {"remote": redis(secretRef={**ON_CLUSTER, "urlKey": "url"})},
        MIDDLE,
        RESP_ON_CLUSTER,
        "",
    ),
    # The copy has a key of its own.
    "copied, with a urlKey": ({"remote": redis(secretRef={**SECRET, "urlKey": "url"})}, OLD, URL, ""),
    # resp speaks neither TLS nor Cluster.
    "TLS, old": ({**IN_PROCESS, "remote": redis(secretRef=SECRET, tls=True)}, OLD, URL, ""),
    "TLS, new": ({**IN_PROCESS, "remote": redis(secretRef=SECRET, tls=True)}, NEW, URL, ""),
    "TLS on the cluster": ({**IN_PROCESS, "remote": redis(secretRef=ON_CLUSTER, tls=True)}, NEW, {}, WITHOUT_URL),
    "Cluster, old": ({**IN_PROCESS, "remote": redis(secretRef=SECRET, mode="Cluster")}, OLD, {}, LOGS_CLUSTER),
    "Cluster, the newest LMCache that does not speak it": (
        {**IN_PROCESS, "remote": redis(secretRef=SECRET, mode="Cluster")},
        "lmcache/vllm-openai:v0.3.8",
        {},
        "its LMCache may be 0.3.8, which logs the password of a redis-cluster URL it cannot read",
    ),
    "Cluster, old LMCache that speaks it": (
        {**IN_PROCESS, "remote": redis(secretRef=SECRET, mode="Cluster")},
        LMCACHE_OLD,
        URL,
        "",
    ),
    "Cluster, new": ({**IN_PROCESS, "remote": redis(secretRef=SECRET, mode="Cluster")}, NEW, URL, ""),
    "Cluster on the cluster": (
        {**IN_PROCESS, "remote": redis(secretRef={**ON_CLUSTER, "urlKey": "url"}, mode="Cluster")},
        NEW,
        URL_ON_CLUSTER,
        "",
    ),
}
REDIS_ENV = {"LMCACHE_REMOTE_URL", "LMCACHE_RESP_USERNAME", "LMCACHE_RESP_PASSWORD", "LMCACHE_LOG_LEVEL"}


@pytest.mark.parametrize("case", REMOTES)
def test_an_engine_in_process_is_given_redis_in_the_form_that_it_reads_or_told_why_not(case: str) -> None:
    lmcache, image, given_, why = REMOTES[case]
    version = {"version": "0.11.0"} if image.startswith("lmcache/") else {}
    patch = attach(tier(lmcache), engine(image=image, **version))
    assert patch.connector == V1
    assert {name: value for name, value in env(patch).items() if name in REDIS_ENV} == given_
    said = [n for n in patch.notices if n.type == "RemoteNotAttached"]
    assert said == (
        [Notice("RemoteNotAttached", "NoSafeWay", f"the engine runs without the tier's Redis: {why}")] if why else []
    )


@pytest.mark.parametrize("name", ["LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE"])
@pytest.mark.parametrize("variable", [{"value": "DEBUG"}, {"valueFrom": {"configMapKeyRef": {"name": "c"}}}], ids=str)
@pytest.mark.parametrize(
    "lmcache",
    [
        {"remote": redis(secretRef=SECRET)},
        {"remote": redis(secretRef={**ON_CLUSTER, "urlKey": "url"})},
        {**IN_PROCESS, "remote": redis(secretRef=SECRET, tls=True)},
    ],
    ids=["copied", "on the cluster", "TLS"],
)
def test_a_variable_that_could_publish_a_url_with_a_password_keeps_the_url_away(
    name: str, variable: Manifest, lmcache: Manifest
) -> None:
    patch = attach(tier(lmcache), engine(image=OLD, env=[{"name": name, **variable}]))
    assert "LMCACHE_REMOTE_URL" not in env(patch)
    (notice,) = [n for n in patch.notices if n.type == "RemoteNotAttached"]
    assert notice.message == (
        "the engine runs without the tier's Redis: its LMCache wants the password in a URL, which "
        f"{name} could publish; remove it from engine.env"
    )


def test_such_a_variable_is_no_danger_where_the_password_is_in_no_url() -> None:
    variables = [{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]
    for image, remote in ((MIDDLE, redis(secretRef=SECRET)), (OLD, redis()), (MIDDLE, redis())):
        patch = attach(tier({"remote": remote}), engine(image=image, env=variables))
        assert "RemoteNotAttached" not in notices(patch)
    assert env(attach(tier({"remote": redis(secretRef=SECRET)}), engine(image=MIDDLE, env=variables))).items() >= (
        RESP.items()
    )


# --- the Secret ---------------------------------------------------------------------------------------------------


def delivered(lmcache: Manifest, **secret: str) -> dict[str, str]:
    """Decode the Secret that a tier delivers for a user's Secret."""
    manifest = part(plan(tier(lmcache), secret=credential(**secret)), "credentials").manifest
    assert manifest["type"] == "Opaque"
    return {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}


SECRETS: dict[str, tuple[Manifest, dict[str, str], dict[str, str]]] = {
    "password": (
        {"remote": redis(secretRef=SECRET)},
        {"password": "p"},
        {"password": "p", "redis-url": "redis://:p@kv.cache.svc:6379"},
    ),
    "username and password": (
        {"remote": redis(secretRef=SECRET)},
        {"username": "u", "password": "p"},
        {"username": "u", "password": "p", "redis-url": "redis://u:p@kv.cache.svc:6379"},
    ),
    "only what is used": (
        {"remote": redis(secretRef=SECRET)},
        {"password": "p", "admin": "root", "tls.key": "k"},
        {"password": "p", "redis-url": "redis://:p@kv.cache.svc:6379"},
    ),
    "other keys": (
        {"remote": redis(secretRef={**SECRET, "usernameKey": "user", "passwordKey": "pass"})},
        {"user": "u", "pass": "p", "password": "not this"},
        {"username": "u", "password": "p", "redis-url": "redis://u:p@kv.cache.svc:6379"},
    ),
    "a URL for engines that were attached in process before": (
        {"mode": "Multiprocess", "remote": redis(secretRef=SECRET)},
        {"username": "u", "password": "p"},
        {"username": "u", "password": "p", "redis-url": "redis://u:p@kv.cache.svc:6379"},
    ),
    "in process": (
        {"mode": "InProcess", "remote": redis(secretRef=SECRET, port=7000)},
        {"password": "p"},
        {"password": "p", "redis-url": "redis://:p@kv.cache.svc:7000"},
    ),
    "TLS": (
        {"mode": "InProcess", "remote": redis(secretRef=SECRET, tls=True)},
        {"password": "p"},
        {"password": "p", "redis-url": "rediss://:p@kv.cache.svc:6379"},
    ),
    "Cluster": (
        {"mode": "InProcess", "remote": redis(secretRef=SECRET, mode="Cluster")},
        {"username": "u", "password": "p"},
        {"username": "u", "password": "p", "redis-url": "redis-cluster://u:p@kv.cache.svc:6379"},
    ),
    "every character that a URL may not hold": (
        {"remote": redis(secretRef=SECRET)},
        {"username": "a:b@c", "password": "p@:/%#?&+ é"},
        {
            "username": "a:b@c",
            "password": "p@:/%#?&+ é",
            "redis-url": "redis://a%3Ab%40c:p%40%3A%2F%25%23%3F%26%2B%20%C3%A9@kv.cache.svc:6379",
        },
    ),
    # LMCache's own parser of a cluster's URL decodes nothing.
    "a Cluster's password with all but @": (
        {"mode": "InProcess", "remote": redis(secretRef=SECRET, mode="Cluster")},
        {"password": "p:/%#?"},
        {"password": "p:/%#?", "redis-url": "redis-cluster://:p:/%#?@kv.cache.svc:6379"},
    ),
}


@pytest.mark.parametrize("case", SECRETS)
def test_the_one_copy_holds_what_is_used_and_the_url_that_old_versions_need(case: str) -> None:
    lmcache, secret, expected = SECRETS[case]
    assert delivered(lmcache, **secret) == expected


@given(username=st.text(max_size=12), password=st.text(min_size=1, max_size=24))
@settings(deadline=None)
def test_any_password_comes_back_from_its_url(username: str, password: str) -> None:
    url = delivered({"remote": redis(secretRef=SECRET)}, username=username, password=password)["redis-url"]
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname, parts.port, parts.path) == ("redis", "kv.cache.svc", 6379, "")
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (username, password)


PASSWORD = "hunter2@correct-horse"

BAD_SECRETS: dict[str, tuple[Manifest, dict[str, str], str, str]] = {
    "no password": (
        redis(secretRef=SECRET),
        {"username": PASSWORD},
        "KeyMissing",
        "Secret modelplane-system/kv-redis-auth has no key 'password'",
    ),
    "an empty password": (
        redis(secretRef=SECRET),
        {"password": ""},
        "KeyMissing",
        "Secret modelplane-system/kv-redis-auth has no key 'password'",
    ),
    "a password under another key": (
        redis(secretRef={**SECRET, "passwordKey": "pass"}),
        {"password": PASSWORD},
        "KeyMissing",
        "Secret modelplane-system/kv-redis-auth has no key 'pass'",
    ),
    "a Cluster's password with @": (
        redis(secretRef=SECRET, mode="Cluster"),
        {"password": PASSWORD},
        "NotExpressible",
        "LMCache cannot read a Redis Cluster password with '@', nor a username with '@' or ':'; choose another",
    ),
    "a Cluster's username with @": (
        redis(secretRef=SECRET, mode="Cluster"),
        {"username": "hunter2@a", "password": "p"},
        "NotExpressible",
        "LMCache cannot read a Redis Cluster password with '@', nor a username with '@' or ':'; choose another",
    ),
    "a Cluster's username with a colon": (
        redis(secretRef=SECRET, mode="Cluster"),
        {"username": "hunter2:a", "password": "p"},
        "NotExpressible",
        "LMCache cannot read a Redis Cluster password with '@', nor a username with '@' or ':'; choose another",
    ),
}


@pytest.mark.parametrize("case", BAD_SECRETS)
def test_a_secret_that_cannot_be_used_is_told_by_its_key_and_never_by_a_value(case: str) -> None:
    remote, secret, reason, message = BAD_SECRETS[case]
    with pytest.raises(CredentialError) as caught:
        plan(tier({"mode": "InProcess", "remote": remote}), secret=credential(**secret))
    assert (caught.value.reason, str(caught.value)) == (reason, message)
    assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize("key", ["username", "password"])
@pytest.mark.parametrize("data", ["/w==", "not base64"], ids=["no UTF-8", "no base64"])
def test_a_secret_that_is_no_text_is_told_without_it(key: str, data: str) -> None:
    secret = credential(username="u", password="p")
    broken = type(secret)({**secret.data, key: data}, secret.version)
    with pytest.raises(CredentialError, match=r"^the Redis username and password must be UTF-8 text$") as caught:
        plan(tier({"remote": redis(secretRef=SECRET)}), secret=broken)
    assert caught.value.reason == "NotText"


@given(password=st.text("abcXYZ0189@:/%#", min_size=8, max_size=24))
@settings(deadline=None, max_examples=50)
def test_a_password_is_in_the_secrets_data_and_nowhere_else(password: str) -> None:
    password = f"hunter2{password}"
    planned = plan(tier({"remote": redis(secretRef=SECRET)}), secret=credential(username="u", password=password))
    for p in planned.parts:
        manifest = {k: v for k, v in p.manifest.items() if p.name != "credentials" or k != "data"}
        text = repr((manifest, p.version, p.ready, p.annotations))
        assert "hunter2" not in text
        assert base64.b64encode(b"hunter").decode()[:8] not in text


VERSIONS: dict[str, Manifest] = {
    "the Secret": {},
    "the host": {"host": "other"},
    "the port": {"port": 7000},
    "the username's key": {"secretRef": {**SECRET, "usernameKey": "a"}},
    "the password's key": {"secretRef": {**SECRET, "passwordKey": "a"}},
}


@pytest.mark.parametrize("case", VERSIONS)
def test_the_copy_has_another_version_when_its_bytes_may_be_others(case: str) -> None:
    def version(at: str, **fields: Any) -> str:
        secret = credential(username="u", password="p", a="x")
        which = tier({"remote": redis(**{"secretRef": SECRET, **fields})})
        return part(plan(which, secret=type(secret)(secret.data, at)), "credentials").version

    assert version("1") == version("1")
    assert version("1") != version("2" if case == "the Secret" else "1", **VERSIONS[case])


# --- the latch ----------------------------------------------------------------------------------------------------

LATCHED: dict[str, EnginePatch] = {
    "by an agent": attach(tier({"ipc": "Shared"}), engine()),
    "by an agent, forced": attach(tier({"mode": "Multiprocess"}), engine(resources=DRA)),
    "by an agent on chosen nodes": attach(tier(placement={"nodeSelector": {"a": "b"}}), engine()),
    "in process": attach(tier({"mode": "InProcess", "diskTier": DISK, "remote": redis()}), engine()),
    "in process beside an agent": attach(tier({"remote": redis(secretRef=SECRET)}), engine(image=OLD)),
    "by nothing": EnginePatch(tier="a/b", connector="c"),
}


@pytest.mark.parametrize("case", LATCHED)
def test_a_latch_reads_back_as_it_was_written(case: str) -> None:
    patch = LATCHED[case]
    again = EnginePatch.from_json(patch.to_json())
    assert again.to_json() == patch.to_json()
    for name, value in vars(patch).items():
        read = getattr(again, name)
        assert (list(read) if isinstance(value, list | tuple) else read) == (
            list(value) if isinstance(value, list | tuple) else value
        ), name


def test_a_latch_is_short_where_there_is_little_to_say() -> None:
    assert EnginePatch(tier="a/b", connector="c").to_json() == '{"connector":"c","identity":"","tier":"a/b"}'


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "{}", '{"tier":"a"}', '{"notices":[{}]}', '{"x":1}'])
def test_a_latch_that_we_did_not_write_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        EnginePatch.from_json(text)


def test_a_latch_holds_no_password() -> None:
    which = tier({"remote": redis(secretRef=SECRET)})
    assert "redis-url" in attach(which, engine(image=OLD)).to_json()
    assert MODEL not in attach(which, engine(image=OLD)).to_json()


# --- latch: what an attachment is right for -----------------------------------------------------------------------


HOLDS: dict[str, tuple[Manifest, list[str], Manifest]] = {
    "its engine": ({}, [], {}),
    "its engine in another image": ({}, [], {"image": "vllm/vllm-openai:v0.32.0"}),
    "its engine in the oldest version that speaks to agents": ({}, [], {"image": "team/vllm:v0.22.0"}),
    "its engine in a version that is not known": ({}, [], {"image": "vllm/vllm-openai:latest"}),
    "its engine with a flag that changes no KV": ({}, ["-tp=2", "--enforce-eager"], {}),
    "its engine with a variable": ({}, [], {"env": [{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]}),
    "its engine in process": (IN_PROCESS, [], {"image": "vllm/vllm-openai:v0.24.0"}),
    "its engine in process, with a variable": (
        {**IN_PROCESS, "remote": redis(secretRef=SECRET)},
        [],
        {"env": [{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]},
    ),
}

DOES_NOT_HOLD: dict[str, tuple[Manifest, list[str], Manifest]] = {
    "a version without its connector": ({}, [], {"image": "vllm/vllm-openai:v0.21.0"}),
    "an image whose LMCache is older than its agent's": ({}, [], {"image": "vllm/vllm-openai:v0.24.0"}),
    "an image whose LMCache is newer than its agent's": (
        {},
        [],
        {"image": "lmcache/vllm-openai:v0.6.0", "version": "0.33.0"},
    ),
    "a version without any connector": (IN_PROCESS, [], {"image": "vllm/vllm-openai:v0.10.2"}),
    "another identity": ({}, ["--quantization=fp8"], {}),
    "another identity in process": (IN_PROCESS, ["--quantization=fp8"], {}),
    "another model": ({}, ["--model=Qwen/Qwen3-8B"], {}),
    "a vouched identity": ({}, [], {"kvCache": vouched()}),
    "adapters": ({}, ["--enable-lora"], {}),
    "a variable that could publish its URL": (
        {**IN_PROCESS, "remote": redis(secretRef=SECRET, tls=True)},
        [],
        {"env": [{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]},
    ),
    "another variable that could publish its URL": (
        {**IN_PROCESS, "remote": redis(secretRef=SECRET, tls=True)},
        [],
        {"env": [{"name": "LMCACHE_TRACK_USAGE", "valueFrom": {"x": {}}}]},
    ),
}


@pytest.mark.parametrize("case", HOLDS)
def test_a_latch_holds_for(case: str) -> None:
    lmcache, args, fields = HOLDS[case]
    assert EnginePatch.from_json(attach(tier(lmcache), engine()).to_json()).holds(engine(*args, **fields))


@pytest.mark.parametrize("case", DOES_NOT_HOLD)
def test_a_latch_does_not_hold_for(case: str) -> None:
    lmcache, args, fields = DOES_NOT_HOLD[case]
    assert not EnginePatch.from_json(attach(tier(lmcache), engine()).to_json()).holds(engine(*args, **fields))


@pytest.mark.parametrize(
    ("latched", "in_spec", "gpus"), [(4, None, 4), (None, None, 8), (4, 2, 2), (None, 2, 2)], ids=str
)
def test_the_gpus_that_a_tier_was_first_composed_with_win_over_the_pools_of_now(
    latched: int | None, in_spec: int | None, gpus: int
) -> None:
    which = tier({"mode": "InProcess"}, placement={"gpusPerNode": in_spec} if in_spec else {})
    assert plan(replace(which, gpus_per_node=latched), Site(8)).memory["gpusPerNode"] == gpus


@pytest.mark.parametrize(
    ("mode", "image", "version"),
    [
        ("Multiprocess", "lmcache/vllm-openai:v0.4.5", "0.33.0"),
        ("InProcess", "lmcache/vllm-openai:v0.3.11", "0.33.0"),
        ("InProcess", OLD, None),
    ],
)
def test_a_patch_does_not_hold_for_an_lmcache_that_it_was_not_written_for(
    mode: str, image: str, version: str | None
) -> None:
    which = tier({"mode": mode, "remote": redis(secretRef=SECRET)}, placement={"gpusPerNode": 8})
    patch = attach(which, engine(image=LMCACHE_NEW, version="0.33.0"))
    assert not patch.holds(engine(image=image, **({"version": version} if version else {})))
