"""Mooncake: what a tier runs, what agents and engines agree on, and what becomes of it over passes."""

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from function import api, releases, sizing, tier
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import (
    CREDENTIALS,
    Credential,
    CredentialError,
    EnginePatch,
    Part,
    Plan,
    Refusal,
    Site,
    Tier,
)
from function.backends.mooncake.cluster import pool
from function.engines import Engine, pod
from function.fn import run
from function.kube import Manifest
from function.render import Rendered, render, request
from tests.lint.manifests import Context, lint
from tests.lint.schemas import schema_errors
from tests.unit import builders
from tests.unit.stories import Story, messages, specs, state

# sha256("kvtier/modelplane-system/shared") begins with 5d78e, that of .../other with 0cbfc.
SHARED, OTHER = "kvtier-modelplane-system-shared-5d78e", "kvtier-modelplane-system-other-0cbfc"
# sha256("eu-h100") begins with 92996, that of us-h100 with 29c90.
POOL = f"{SHARED}-92996"
MASTER = f"{SHARED}-master.default.svc:50051"
MEMBERS = ";".join(f"{SHARED}-etcd-{i}.{SHARED}-etcd.default.svc:2379" for i in range(3))

HA: Manifest = {"master": {"replicas": 3}}
LOGGED: Manifest = {"master": {"replicas": 3, "oplog": True}}
PROVISIONED: Manifest = {**HA, "etcd": {"provision": {"replicas": 3}}}
GIVEN: Manifest = {**HA, "etcd": {"endpoints": ["http://a.kv:2379", "http://b.kv:2379"]}}
BY_TLS: Manifest = {**HA, "etcd": {"endpoints": ["https://a.kv:2379"], "caSecretRef": {"name": "etcd-ca"}}}
RESOURCE: Manifest = {"extendedResource": {"name": "rdma/hca"}, "agents": {"count": 1}, "engines": {"count": 2}}
CLAIMS: Manifest = {
    "dra": {"deviceClassName": "rdma.example"},
    "agents": {"count": 1},
    "engines": {"count": 2},
}
HOST: Manifest = {**RESOURCE, "hostNetwork": {"firstPort": 21850}}
FABRICS: Sequence[Manifest] = ({}, {"rdma": RESOURCE}, {"rdma": CLAIMS}, {"rdma": HOST})
FOLDER: Manifest = {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"}
CLASS: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}
WITH_DISK: Manifest = {"disk": CLASS}
PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def spec(mooncake: Manifest | None = None, cluster: str = "eu-h100", **fields: Any) -> Manifest:
    """Write a tier's spec: 50 GiB per node, by RDMA where `rdma` is given, else by TCP."""
    transport = {} if "rdma" in fields else {"protocol": "TCP"}
    return {
        "inferenceClusterRef": {"name": cluster},
        "backend": "Mooncake",
        "mooncake": {"segmentGiBPerNode": 50, **transport, **(mooncake or {})},
        **fields,
    }


def tier_of(mooncake: Manifest | None = None, *, name: str = "shared", **fields: Any) -> Tier:
    """Read the tier modelplane-system/`name` with that spec."""
    return Tier("modelplane-system", name, api.parse(TierSpec, spec(mooncake, **fields)), releases.RELEASES["2026.11"])


def credential(**secret: bytes) -> Credential:
    return Credential({key.replace("_", "."): base64.b64encode(v).decode() for key, v in secret.items()}, "uid-1")


def plan(of_tier: Tier, secret: Credential | None = None) -> Plan:
    return of(of_tier.spec).plan(of_tier, Site(), {CREDENTIALS: secret} if secret else {})


def part(of_tier: Tier, name: str) -> Part:
    (found,) = [p for p in plan(of_tier).parts if p.name == name]
    return found


def template(of_tier: Tier, name: str) -> Manifest:
    """The pod's spec of a part."""
    found: Manifest = part(of_tier, name).manifest["spec"]["template"]["spec"]
    return found


def container(of_tier: Tier, name: str) -> Manifest:
    (found,) = template(of_tier, name)["containers"]
    return dict(found)


def shown(variables: Sequence[Manifest]) -> dict[str, str]:
    """Show variables by name: a literal as it is, a field as $path."""
    return {v["name"]: v["value"] if "value" in v else f"${v['valueFrom']['fieldRef']['fieldPath']}" for v in variables}


def engine(*args: str, image: str = "vllm/vllm-openai:v0.33.0", **fields: Any) -> Engine:
    kind, model = ("SGLang", "--model-path") if "sglang" in image else ("vLLM", "--model")
    written = {"name": kind, "image": image, "args": [f"{model}=Qwen/Qwen3-32B", *args], **fields}
    return pod.read(api.parse(EngineSpec, written), namespace="ml", name="chat")


def sglang(*args: str, version: str = "0.5.23", repository: str = "lmsysorg/sglang") -> Engine:
    return engine(*args, image=f"{repository}:v{version}")


def attach(to: Tier, which: Engine) -> EnginePatch:
    return builders.attach(to, which, Site())


def refuse(to: Tier, which: Engine) -> Refusal:
    return builders.refuse(to, which, Site())


def transfer_config(patch: EnginePatch) -> Manifest:
    assert not patch.args
    return dict(patch.kv_transfer)


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mooncake", "segment", "amounts"),
    [
        ({}, "53687091200", {"memory": "54Gi"}),
        ({"segmentGiBPerNode": 1}, "1073741824", {"memory": "5Gi"}),
        (WITH_DISK, "53687091200", {"memory": "56Gi"}),
        ({"hugePages": "2Mi"}, "53687091200", {"memory": "4Gi", "hugepages-2Mi": "50Gi"}),
        ({"hugePages": "1Gi"}, "53687091200", {"memory": "4Gi", "hugepages-1Gi": "50Gi"}),
        ({"hugePages": "1Gi", **WITH_DISK}, "53687091200", {"memory": "6Gi", "hugepages-1Gi": "50Gi"}),
    ],
)
def test_an_agent_has_room_beside_its_segment(mooncake: Manifest, segment: str, amounts: Manifest) -> None:
    store = container(tier_of(mooncake), "agents")
    assert shown(store["env"])["MOONCAKE_GLOBAL_SEGMENT_SIZE"] == segment
    assert store["resources"] == {"requests": {"cpu": "2", **amounts}, "limits": amounts}


@pytest.mark.parametrize(
    ("mooncake", "memory"),
    [
        ({}, {"cacheGiB": 50, "overheadGiB": 4, "requestGiB": 54, "limitGiB": 54}),
        (
            {"hugePages": "2Mi", **WITH_DISK},
            {"cacheGiB": 50, "overheadGiB": 6, "requestGiB": 6, "limitGiB": 6, "hugePagesGiB": 50},
        ),
    ],
)
def test_the_budget_of_a_node_is_told(mooncake: Manifest, memory: Manifest) -> None:
    assert plan(tier_of(mooncake)).memory == memory


def test_a_large_segment_leaves_room_for_its_page_tables() -> None:
    # 8 bytes for each page of 4 KiB: 2 GiB for 1 TiB; huge pages need next to none.
    assert sizing.store_memory(1024, huge_pages=False, disk=False).headroom >= 6
    assert sizing.store_memory(1024, huge_pages=True, disk=False).headroom == 4


@pytest.mark.parametrize(("size", "written"), [("2Mi", "2MB"), ("1Gi", "1GB")])
def test_huge_pages_are_asked_for_as_mooncake_spells_them(size: str, written: str) -> None:
    store = container(tier_of({"hugePages": size}), "agents")
    env = shown(store["env"])
    assert (env["MC_STORE_USE_HUGEPAGE"], env["MC_STORE_HUGEPAGE_SIZE"]) == ("1", written)
    # They are a resource, and no file system.
    assert [m["name"] for m in store["volumeMounts"]] == ["tmp"]


def test_ordinary_memory_names_no_huge_pages_at_all() -> None:
    # Mooncake asks whether the variable is there, not what it says.
    env = shown(container(tier_of(), "agents")["env"])
    assert not [name for name in env if "HUGEPAGE" in name]


# --- what agents are told -----------------------------------------------------------------------------------------

AGENT = {
    "MOONCAKE_LOCAL_HOSTNAME": "$status.podIP",
    "LOCAL_HOSTNAME": "$status.podIP",
    "MC_TCP_BIND_ADDRESS": "$status.podIP",
    "MOONCAKE_MASTER": MASTER,
    "MOONCAKE_TE_META_DATA_SERVER": "P2PHANDSHAKE",
    "MOONCAKE_PROTOCOL": "tcp",
    "MOONCAKE_DEVICE": "",
    "MOONCAKE_GLOBAL_SEGMENT_SIZE": "53687091200",
    "MOONCAKE_LOCAL_BUFFER_SIZE": "0",
    "MOONCAKE_ENABLE_CLIENT_HTTP_SERVER": "true",
}
BY_RDMA = {**AGENT, "MOONCAKE_PROTOCOL": "rdma"}
ETCD = f"etcd://{MEMBERS}"


def _ports(env: Mapping[str, str]) -> dict[str, int]:
    return {k: int(v) for k, v in env.items() if k.endswith("_PORT")}


@pytest.mark.parametrize(
    ("mooncake", "fields", "env"),
    [
        ({}, {}, AGENT),
        (
            {"metadata": "HTTP"},
            {},
            {**AGENT, "MOONCAKE_TE_META_DATA_SERVER": f"http://{SHARED}-master.default.svc:8080/metadata"},
        ),
        (
            {},
            {"targetNamespace": "serving"},
            {**AGENT, "MOONCAKE_MASTER": f"{SHARED}-master.serving.svc:50051"},
        ),
        (PROVISIONED, {}, {**AGENT, "MOONCAKE_MASTER": ETCD, "MC_STORE_CLUSTER_ID": POOL}),
        (GIVEN, {}, {**AGENT, "MOONCAKE_MASTER": "etcd://a.kv:2379;b.kv:2379", "MC_STORE_CLUSTER_ID": POOL}),
        (
            BY_TLS,
            {},
            {
                **AGENT,
                "MOONCAKE_MASTER": "etcd://https://a.kv:2379",
                "MC_STORE_CLUSTER_ID": POOL,
                "SSL_CERT_DIR": "/etc/kv-etcd-ca:/etc/ssl/certs",
            },
        ),
        ({}, {"rdma": RESOURCE}, BY_RDMA),
        ({}, {"rdma": CLAIMS}, BY_RDMA),
        ({}, {"rdma": HOST}, BY_RDMA),
        ({}, {"rdma": {**RESOURCE, "gidIndex": 3}}, {**BY_RDMA, "MC_GID_INDEX": "3"}),
        ({}, {"rdma": {**RESOURCE, "gidIndex": 0}}, {**BY_RDMA, "MC_GID_INDEX": "0"}),
        (
            {},
            {"rdma": {**RESOURCE, "netDevices": ["mlx5_0", "mlx5_1"]}},
            {**BY_RDMA, "MOONCAKE_DEVICE": "mlx5_0,mlx5_1"},
        ),
        (
            WITH_DISK,
            {},
            {
                **AGENT,
                "MOONCAKE_OFFLOAD_ENABLED": "true",
                "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": "/var/lib/mooncake/kv",
                "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES": "879609302220",  # 80 % of 1 TiB
                "MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE": "879609302220",
                "MOONCAKE_OFFLOAD_BUCKET_EVICTION_POLICY": "lru",
                "MOONCAKE_OFFLOAD_BUCKET_SIZE_LIMIT_BYTES": "67108864",
                "MOONCAKE_OFFLOAD_LOCAL_BUFFER_SIZE_BYTES": "1342177280",
            },
        ),
    ],
)
def test_an_agent_is_told_all_that_its_pool_agrees_on(mooncake: Manifest, fields: Manifest, env: Manifest) -> None:
    told = shown(container(tier_of(mooncake, **fields), "agents")["env"])
    assert {k: v for k, v in told.items() if k not in _ports(told)} == env


@pytest.mark.parametrize(("fields", "first"), [({}, 23060), ({"rdma": RESOURCE}, 23060), ({"rdma": HOST}, 21850)])
def test_an_agents_ports_are_its_own_and_none_that_mooncake_refuses(fields: Manifest, first: int) -> None:
    store = container(tier_of(**fields), "agents")
    env = shown(store["env"])
    ports = _ports(env)
    low, high = ports["MC_MIN_RPC_PORT"], ports["MC_MAX_RPC_PORT"]
    assert (low, ports["MC_MIN_PRC_PORT"], ports["MC_MAX_PRC_PORT"]) == (first, first, high)
    # Over TCP it takes two of them, at random.
    assert low < high < first + 8
    health = ports["MOONCAKE_CLIENT_HTTP_PORT"]
    assert first <= health < first + 8 and not low <= health <= high
    # Mooncake goes back to its own choice where one of them is among those of outgoing connections.
    assert not [p for p in (low, high) if 32768 <= p <= 60999 or p < 1024]
    assert {health} <= {p["containerPort"] for p in store["ports"]} <= {health, *range(low, high + 1)}


def test_an_agent_is_well_by_its_health_port_since_of_the_others_nobody_knows_which_is_taken() -> None:
    for fields in FABRICS:
        store = container(tier_of(**fields), "agents")
        ports = {p["name"]: p["containerPort"] for p in store["ports"]}
        health = int(shown(store["env"])["MOONCAKE_CLIENT_HTTP_PORT"])
        for probe in ("startupProbe", "livenessProbe"):
            port = store[probe]["tcpSocket"]["port"]
            assert ports.get(port, port) == health, probe
        assert store["readinessProbe"]["httpGet"] == {"path": "/health", "port": "health"}


def test_a_start_that_pins_a_large_segment_is_given_a_quarter_of_an_hour() -> None:
    probe = container(tier_of(), "agents")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 900


def test_sigterm_reaches_the_store_and_leaves_it_time_to_go() -> None:
    agents = template(tier_of(), "agents")
    assert agents["terminationGracePeriodSeconds"] == 60
    (store,) = agents["containers"]
    # No shell between the kubelet and Python.
    assert store["command"][:2] == ["python3", "-c"]
    compile(store["command"][2], "agent", "exec")
    assert "args" not in store


def test_an_agent_starts_no_rest_api() -> None:
    store = container(tier_of(), "agents")
    program = store["command"][2]
    assert "service.MooncakeStoreService.start_http_service = no_rest" in program
    assert 8080 not in [p["containerPort"] for p in store["ports"]]


def test_an_agent_empties_its_folder_and_nothing_else(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program: str = container(tier_of(WITH_DISK), "agents")["command"][2]
    before, _, _ = program.partition("async def")
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "bucket").write_text("old")
    (tmp_path / "other").write_text("kept")
    monkeypatch.setenv("MOONCAKE_OFFLOAD_FILE_STORAGE_PATH", str(tmp_path / "kv"))
    exec(before.replace("import mooncake.mooncake_store_service as service", ""), {})
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["kv", "other"]


def test_agents_are_on_the_nodes_that_engines_follow() -> None:
    placed = tier_of(placement={"nodeSelector": {"pool": "h100"}, "priorityClassName": "infra"})
    agents = template(placed, "agents")
    assert (agents["nodeSelector"], agents["priorityClassName"]) == ({"pool": "h100"}, "infra")
    assert "affinity" not in agents
    assert attach(placed, engine()).node_selector == {"pool": "h100"}


# --- disk ---------------------------------------------------------------------------------------------------------


def test_a_disk_is_a_volume_that_its_user_may_write() -> None:
    agents = template(tier_of(WITH_DISK), "agents")
    (disk,) = [v for v in agents["volumes"] if v["name"] == "disk"]
    assert disk["ephemeral"]["volumeClaimTemplate"]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "nvme",
        "resources": {"requests": {"storage": "1Ti"}},
    }
    assert agents["securityContext"]["fsGroup"] == 65532


def test_a_folder_that_the_kubelet_makes_is_written_by_root() -> None:
    agents = template(tier_of({"disk": FOLDER}), "agents")
    (store,) = agents["containers"]
    assert store["securityContext"]["runAsUser"] == 0
    assert "runAsNonRoot" not in agents["securityContext"]
    (disk,) = [v for v in agents["volumes"] if v["name"] == "disk"]
    assert disk["hostPath"] == {"path": "/mnt/kv", "type": "DirectoryOrCreate"}
    (mount,) = [m for m in store["volumeMounts"] if m["name"] == "disk"]
    assert mount == {"name": "disk", "mountPath": "/var/lib/mooncake", "subPath": SHARED}


# --- masters ------------------------------------------------------------------------------------------------------

ARGS = [
    "--rpc_address=$(POD_IP)",
    "--rpc_port=50051",
    "--metrics_host=$(POD_IP)",
    "--metrics_port=9003",
    "--default_kv_lease_ttl=10000",
]
WATERMARKS = ["--eviction_high_watermark_ratio=0.9", "--eviction_ratio=0.05"]
EARLY = ["--eviction_high_watermark_ratio=0.7", "--eviction_ratio=0.2", "--enable_offload=true"]


def _ha(endpoints: str) -> list[str]:
    return ["--enable_ha=true", f"--etcd_endpoints={endpoints}", f"--cluster_id={POOL}"]


@pytest.mark.parametrize(
    ("mooncake", "args"),
    [
        ({}, [*ARGS, *WATERMARKS]),
        (
            {"metadata": "HTTP"},
            [
                *ARGS,
                *WATERMARKS,
                "--enable_http_metadata_server=true",
                "--http_metadata_server_port=8080",
                "--enable_metadata_cleanup_on_timeout=true",
            ],
        ),
        (WITH_DISK, [*ARGS, *EARLY]),
        (PROVISIONED, [*ARGS, *WATERMARKS, *_ha(MEMBERS)]),
        (GIVEN, [*ARGS, *WATERMARKS, *_ha("a.kv:2379;b.kv:2379")]),
        (BY_TLS, [*ARGS, *WATERMARKS, *_ha("https://a.kv:2379")]),
        ({**PROVISIONED, **WITH_DISK}, [*ARGS, *EARLY, *_ha(MEMBERS)]),
    ],
)
def test_a_master_is_told_exactly_this(mooncake: Manifest, args: list[str]) -> None:
    master = container(tier_of(mooncake), "master")
    assert master["command"] == ["mooncake_master"]
    # Whether keys outlive their master is a choice of its own.
    assert [a for a in master["args"] if a != "--enable_oplog=true"] == args
    assert shown(master["env"])["POD_IP"] == "$status.podIP"


def test_a_log_of_keys_is_for_several_masters_only() -> None:
    assert "--enable_oplog=true" not in container(tier_of(), "master")["args"]
    kept = container(tier_of({**PROVISIONED, **LOGGED}), "master")
    assert "--enable_oplog=true" in kept["args"]


def test_two_single_masters_are_never_there_at_once() -> None:
    single, three = (part(tier_of(m), "master").manifest["spec"] for m in ({}, PROVISIONED))
    assert (single["replicas"], single["strategy"]) == (1, {"type": "Recreate"})
    assert three["replicas"] == 3
    assert three["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}


@pytest.mark.parametrize(
    ("mooncake", "ready"),
    [
        ({}, {"tcpSocket": {"port": "rpc"}}),
        # A standby does not listen for clients.
        (PROVISIONED, {"httpGet": {"path": "/health", "port": 9003}}),
    ],
)
def test_a_master_is_ready_when_it_listens_and_three_are_when_they_are_well(
    mooncake: Manifest, ready: Manifest
) -> None:
    master = container(tier_of(mooncake), "master")
    probe = master["readinessProbe"]
    assert {k: v for k, v in probe.items() if k in ("tcpSocket", "httpGet")} in (
        ready,
        {"httpGet": {"path": "/health", "port": "metrics"}} if "httpGet" in ready else ready,
    )
    for other in ("startupProbe", "livenessProbe"):
        assert master[other]["httpGet"]["path"] == "/health"
    # Nothing waits for a metadata server that nobody started.
    assert "8080" not in json.dumps([master[p] for p in ("startupProbe", "readinessProbe", "livenessProbe")])


def test_a_standby_learns_before_the_next_master_goes() -> None:
    assert part(tier_of(PROVISIONED), "master").manifest["spec"]["minReadySeconds"] == 30
    assert "minReadySeconds" not in part(tier_of(), "master").manifest["spec"]


def test_one_image_is_for_masters_and_agents_alike() -> None:
    for given, image in (({}, "kvcacheai/mooncake:0.3.13.post1"), ({"mooncake": "own/mooncake:1"}, "own/mooncake:1")):
        pool = tier_of(images=given)
        assert [container(pool, name)["image"] for name in ("master", "agents")] == [image, image]


def test_only_three_have_a_disruption_budget() -> None:
    assert not [p for p in plan(tier_of()).parts if p.manifest["kind"] == "PodDisruptionBudget"]
    budgets = [p.manifest for p in plan(tier_of(PROVISIONED)).parts if p.manifest["kind"] == "PodDisruptionBudget"]
    selected = {b["metadata"]["name"]: b["spec"]["maxUnavailable"] for b in budgets}
    assert selected == {f"{SHARED}-master": 1, f"{SHARED}-etcd": 1}


def test_the_masters_service_has_what_clients_ask() -> None:
    assert part(tier_of(), "master-service").manifest["spec"]["ports"] == [
        {"name": "rpc", "port": 50051, "targetPort": "rpc"}
    ]
    assert part(tier_of({"metadata": "HTTP"}), "master-service").manifest["spec"]["ports"] == [
        {"name": "rpc", "port": 50051, "targetPort": "rpc"},
        {"name": "metadata", "port": 8080, "targetPort": "metadata"},
    ]


def test_asking_for_monitoring_restarts_no_master_and_no_agent() -> None:
    without, with_it = tier_of(), tier_of(monitoring={})
    for name in ("master", "agents"):
        assert part(without, name).manifest == part(with_it, name).manifest


# --- one pool, one name -------------------------------------------------------------------------------------------


def _named(of_tier: Tier) -> set[str]:
    """By which names masters, agents and engines know a pool."""
    args = container(of_tier, "master")["args"]
    told = {a.partition("=")[2] for a in args if a.startswith("--cluster_id")}
    for variables in (
        container(of_tier, "agents")["env"],
        attach(of_tier, engine()).env,
        attach(of_tier, sglang()).env,
    ):
        told.add(shown(variables)["MC_STORE_CLUSTER_ID"])
    return told


def test_masters_agents_and_engines_know_a_pool_by_one_name_and_no_two_tiers_do() -> None:
    shared = tier_of(GIVEN)
    assert _named(shared) == {POOL}
    assert _named(tier_of(GIVEN, name="other")) == {f"{OTHER}-92996"}
    assert _named(tier_of(GIVEN, cluster="us-h100")) == {f"{SHARED}-29c90"}


@pytest.mark.parametrize("mooncake", [{}, {"metadata": "HTTP"}, PROVISIONED, BY_TLS])
@pytest.mark.parametrize("fields", [{}, {"rdma": {**RESOURCE, "netDevices": ["mlx5_0"], "gidIndex": 3}}])
def test_all_of_a_pool_agree(mooncake: Manifest, fields: Manifest) -> None:
    pool = tier_of(mooncake, **fields)
    agent = shown(container(pool, "agents")["env"])
    of_sglang = shown(attach(pool, sglang()).env)
    settings = json.loads(part(pool, "connector").manifest["data"]["mooncake.json"])
    of_vllm = shown(attach(pool, engine()).env)
    for name, key in (
        ("MOONCAKE_MASTER", "master_server_address"),
        ("MOONCAKE_TE_META_DATA_SERVER", "metadata_server"),
        ("MOONCAKE_PROTOCOL", "protocol"),
        ("MOONCAKE_DEVICE", "device_name"),
    ):
        assert agent[name] == of_sglang[name] == settings[key]
    for name in ("MC_STORE_CLUSTER_ID", "MC_GID_INDEX", "SSL_CERT_DIR"):
        assert agent.get(name) == of_sglang.get(name) == of_vllm.get(name)


# --- engines ------------------------------------------------------------------------------------------------------


def test_a_vllm_engine_is_a_pure_client() -> None:
    pool = tier_of()
    patch = attach(pool, engine())
    config = transfer_config(patch)
    prefix = config["kv_connector_extra_config"].pop("cache_prefix")
    assert config == {
        "kv_connector": "MooncakeStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"load_async": True},
    }
    assert len(prefix) == 12
    env = shown(patch.env)
    assert env.keys() == {"MOONCAKE_CONFIG_PATH", "PYTHONHASHSEED"}
    assert env["MOONCAKE_CONFIG_PATH"] == "/etc/kv-offload/mooncake.json"
    assert 0 <= int(env["PYTHONHASHSEED"]) < 2**32  # Python starts with no other
    assert json.loads(part(pool, "connector").manifest["data"]["mooncake.json"]) == {
        "mode": "standalone-store",
        "global_segment_size": 0,
        "local_buffer_size": 134217728,
        "metadata_server": "P2PHANDSHAKE",
        "master_server_address": MASTER,
        "protocol": "tcp",
        "device_name": "",
    }
    # Not optional: it waits for its tier.
    assert patch.volumes == [{"name": "kv-offload", "configMap": {"name": SHARED}}]
    assert patch.mounts == [{"name": "kv-offload", "mountPath": "/etc/kv-offload", "readOnly": True}]
    assert patch.labels == {"kv-offload.modelplane.ai/tier": SHARED}


@pytest.mark.parametrize(
    ("version", "reason", "words"),
    [
        ("0.20.2", "EngineTooOld", "vLLM 0.20.2 has no Mooncake client without memory of its own; use 0.22.0 or newer"),
        ("0.21.0", "EngineTooOld", "vLLM 0.21.0 has no Mooncake client without memory of its own; use 0.22.0 or newer"),
        ("0.10.0", "EngineVersionUnsupported", "0.11.0"),
    ],
)
def test_a_vllm_that_would_read_wrong_kv_is_refused(version: str, reason: str, words: str) -> None:
    refusal = refuse(tier_of(), engine(image=f"vllm/vllm-openai:v{version}"))
    assert refusal.reason == reason
    assert words in refusal.message


def test_an_engine_whose_version_nobody_knows_is_refused() -> None:
    assert refuse(tier_of(), engine(image="vllm/vllm-openai:latest")).reason == "EngineVersionUnknown"


@pytest.mark.parametrize(("version", "prefixed"), [("0.22.0", False), ("0.23.0", False), ("0.24.0", True)])
def test_keys_have_a_prefix_where_vllm_knows_one_and_a_seed_always(version: str, prefixed: bool) -> None:
    patch = attach(tier_of(), engine(image=f"team/vllm:v{version}"))
    assert ("cache_prefix" in transfer_config(patch)["kv_connector_extra_config"]) is prefixed
    assert shown(patch.env)["PYTHONHASHSEED"]
    # Kept for an engine of this version or newer only.
    assert patch.since == ((0, 24, 0) if prefixed else (0, 22, 0))


def _keys(which: Engine) -> tuple[str, ...]:
    """What keeps an engine's keys from others'."""
    patch = attach(tier_of(), which)
    if which.kind.name == "SGLang":
        (extra,) = [a for a in patch.args if a.startswith("--hicache-storage-backend-extra-config=")]
        return (json.loads(extra.partition("=")[2])["extra_backend_tag"],)
    prefix = transfer_config(patch)["kv_connector_extra_config"].get("cache_prefix", "")
    return prefix, shown(patch.env)["PYTHONHASHSEED"]


OLD_VLLM, OLD_SGLANG = "team/vllm:v0.22.0", "team/sglang:v0.5.5"


@pytest.mark.parametrize("image", [OLD_VLLM, "vllm/vllm-openai:v0.33.0", OLD_SGLANG, "lmsysorg/sglang:v0.5.23"])
@pytest.mark.parametrize(
    ("args", "shares"),
    [
        (("--api-key=x",), True),
        (("--tensor-parallel-size=2",), False),  # keys hold a rank, and not of how many
        (("--pipeline-parallel-size=2",), False),
        (("--quantization=fp8",), False),
        (("--kv-cache-dtype=fp8_e5m2",), False),
        (("--dtype=float16",), False),
        (("--revision=abc",), False),
    ],
)
def test_engines_share_keys_only_where_kv_is_the_same(image: str, args: tuple[str, ...], shares: bool) -> None:
    if image == OLD_SGLANG and args == ("--pipeline-parallel-size=2",):
        assert refuse(tier_of(), engine(*args, image=image)).reason == "RanksNotIsolated"
        return
    mine, other = _keys(engine(image=image)), _keys(engine(*args, image=image))
    if shares:
        assert mine == other
    else:
        assert all(a != b for a, b in zip(mine, other, strict=True) if a)


@pytest.mark.parametrize(
    ("image", "attached"),
    [
        ("vllm/vllm-openai:v0.30.0", False),
        ("vllm/vllm-openai:v0.31.0", True),
        ("lmsysorg/sglang:v0.5.19", False),
        ("lmsysorg/sglang:v0.5.20", True),
    ],
)
def test_adapters_are_attached_where_keys_tell_them_apart(image: str, attached: bool) -> None:
    which = engine("--enable-lora", image=image)
    if attached:
        attach(tier_of(), which)
    else:
        assert refuse(tier_of(), which).reason == "LoRANotIsolated"


@pytest.mark.parametrize("version", ["0.5.5", "0.5.23"])
def test_an_sglang_engine_is_a_pure_client(version: str) -> None:
    patch = attach(tier_of(), sglang(version=version, repository="team/sglang"))
    *args, extra = patch.args
    assert args == [
        "--enable-hierarchical-cache",
        "--hicache-ratio=2.0",
        "--hicache-write-policy=write_through",
        "--hicache-io-backend=kernel",
        "--hicache-mem-layout=page_first",
        "--hicache-storage-backend=mooncake",
        "--hicache-storage-prefetch-policy=timeout",
    ]
    flag, _, text = extra.partition("=")
    assert flag == "--hicache-storage-backend-extra-config"
    # With an address in here, SGLang would read none of the variables.
    assert json.loads(text).keys() == {"extra_backend_tag"}
    assert shown(patch.env) == {
        "MOONCAKE_LOCAL_HOSTNAME": "$status.podIP",
        "LOCAL_HOSTNAME": "$status.podIP",
        "MOONCAKE_MASTER": MASTER,
        "MOONCAKE_TE_META_DATA_SERVER": "P2PHANDSHAKE",
        "MOONCAKE_PROTOCOL": "tcp",
        "MOONCAKE_DEVICE": "",
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": "0",
    }


def test_a_decode_engine_gets_nothing() -> None:
    refusal = refuse(tier_of(), sglang("--disaggregation-mode=decode"))
    assert refusal.reason == "DecodeNotAttached"


@pytest.mark.parametrize("mooncake", [{}, PROVISIONED, BY_TLS])
def test_nothing_has_sglang_check_a_master_by_what_may_be_no_host(mooncake: Manifest) -> None:
    assert "MOONCAKE_CHECK_SERVER" not in shown(attach(tier_of(mooncake), sglang()).env)


MOVES: Sequence[tuple[Manifest, Manifest]] = (
    ({}, {}),
    ({"metadata": "HTTP"}, {}),
    (GIVEN, {}),
    ({}, {"rdma": RESOURCE}),
)


@pytest.mark.parametrize("which", [engine(), sglang()])
def test_an_engine_restarts_when_master_or_transport_move(which: Engine) -> None:
    hashes = [attach(tier_of(m, **f), which).annotations["kv-offload.modelplane.ai/connector-hash"] for m, f in MOVES]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("change", [{"segmentGiBPerNode": 99}, {"hugePages": "2Mi"}, {"disk": CLASS}])
def test_an_engine_does_not_restart_for_what_only_agents_read(change: Manifest) -> None:
    for which in (engine(), sglang()):
        assert attach(tier_of(change), which) == attach(tier_of(), which)


def test_an_image_that_nobody_has_looked_into_is_warned_of() -> None:
    for which in (engine(), engine(image="team/vllm:v0.33.0"), sglang(repository="team/sglang")):
        (notice,) = attach(tier_of(), which).notices
        assert (notice.type, notice.reason) == ("EngineImageUnverified", "MooncakeUnknown")
        assert which.image in notice.message
    assert not attach(tier_of(), sglang()).notices


@pytest.mark.parametrize(
    ("which", "image", "held"),
    [
        (engine(image="vllm/vllm-openai:v0.24.0"), {}, "0.3.10"),
        (sglang(version="0.5.16"), {}, "0.3.11"),
        (sglang(), {"mooncake": "team/mooncake:0.3.12"}, "0.3.13"),
        (engine(), {"mooncake": "team/mooncake:0.3.11.post1"}, "0.3.12 or newer"),
    ],
)
def test_an_engine_that_is_not_of_its_masters_release_is_refused(which: Engine, image: Manifest, held: str) -> None:
    refusal = refuse(tier_of(images=image), which)
    assert refusal.reason == "VersionSkew"
    master = image.get("mooncake", "0.3.13").rpartition(":")[2].removesuffix(".post1")
    for words in (f"agents run Mooncake {master}", f"holds {held}", f"take an engine image with Mooncake {master}"):
        assert words in refusal.message
    # Nobody is sent to agents that this function cannot run.
    assert ("spec.images.mooncake" in refusal.message) is (held in ("0.3.13", "0.3.12 or newer"))


def test_an_engine_of_its_masters_release_is_attached_and_so_is_one_of_a_release_that_nobody_knows() -> None:
    assert not attach(tier_of(images={"mooncake": "team/mooncake:0.3.13"}), sglang()).notices
    assert attach(tier_of(images={"mooncake": "team/mooncake:build-7"}), engine(image="vllm/vllm-openai:v0.24.0"))


def test_an_image_that_is_known_to_hold_no_mooncake_is_refused() -> None:
    refusal = refuse(tier_of(), engine(image="lmcache/vllm-openai:v0.5.6", version="0.33.0"))
    assert refusal.reason == "LibraryMissing"
    assert "lmcache/vllm-openai:v0.5.6" in refusal.message


def test_a_patch_survives_its_latch() -> None:
    for fields in FABRICS:
        for which in (engine(), sglang()):
            patch = attach(tier_of(BY_TLS, **fields), which)
            again = EnginePatch.from_json(patch.to_json())
            assert again.to_json() == patch.to_json()
            assert again.holds(which)
            assert not again.holds(engine("--dtype=float16", image=which.image))


# --- who may reach whom -------------------------------------------------------------------------------------------

ENGINES = {"kv-offload.modelplane.ai/tier": SHARED}


def _component(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/instance": SHARED, "app.kubernetes.io/component": name}


def _doors(of_tier: Tier, name: str) -> dict[str, list[Any]]:
    """Who is let in, by port: sets of labels, or None for everybody."""
    policy = part(of_tier, name).manifest["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    found: dict[str, list[Any]] = {}
    for rule in policy.get("ingress", ()):
        who = [f.get("podSelector", f.get("namespaceSelector"))["matchLabels"] for f in rule.get("from", ())] or [None]
        for port in [str(p["port"]) for p in rule.get("ports", ())] or ["*"]:
            found.setdefault(port, []).extend(who)
    return found


def test_the_master_lets_in_its_own_pool() -> None:
    doors = _doors(tier_of({"metadata": "HTTP"}), "master-network-policy")
    own = [ENGINES, _component("agent"), _component("master")]
    assert doors.pop("metrics", []) in ([], [_component("master")])
    assert doors == {"rpc": own, "metadata": own}


def test_prometheus_is_let_in_where_it_is_asked_for() -> None:
    doors = _doors(tier_of(monitoring={}), "master-network-policy")
    assert {"kubernetes.io/metadata.name": "monitoring"} in doors["metrics"]
    assert {"kubernetes.io/metadata.name": "monitoring"} not in doors["rpc"]


def test_agents_let_in_engines_and_each_other() -> None:
    for fields in FABRICS[:2]:
        doors = _doors(tier_of(**fields), "network-policy")
        assert doors
        assert all(who == [ENGINES, _component("agent")] for who in doors.values())
    (rule,) = part(tier_of(), "network-policy").manifest["spec"]["ingress"]
    assert rule["ports"] == [{"port": 23060, "endPort": 23066, "protocol": "TCP"}]
    # Reads from a disk go by a port that nothing can choose.
    assert _doors(tier_of(WITH_DISK), "network-policy") == {"*": [ENGINES, _component("agent")]}


def test_pods_on_the_hosts_network_are_let_in_though_no_labels_tell_them() -> None:
    # A policy sees a node's address there, which may be any.
    pool = tier_of(PROVISIONED, rdma=HOST)
    assert None in _doors(pool, "master-network-policy")["rpc"]
    assert None in _doors(pool, "etcd-network-policy")["client"]
    assert None not in _doors(pool, "etcd-network-policy")["peer"]
    assert None in _doors(tier_of({"metadata": "HTTP"}, rdma=HOST), "master-network-policy")["metadata"]


def test_nobody_else_is_let_in_by_any_policy() -> None:
    for mooncake in ({}, {"metadata": "HTTP"}, PROVISIONED, WITH_DISK):
        for fields in FABRICS[:3]:
            pool = tier_of(mooncake, **fields)
            for found in plan(pool).parts:
                if found.manifest["kind"] == "NetworkPolicy":
                    assert None not in [who for door in _doors(pool, found.name).values() for who in door], found.name


def test_the_etcd_is_for_its_own_masters_and_clients() -> None:
    doors = _doors(tier_of(PROVISIONED), "etcd-network-policy")
    assert doors == {
        "client": [ENGINES, _component("agent"), _component("master"), _component("etcd")],
        "peer": [_component("etcd")],
        "metrics": [_component("etcd")],
    }


# --- Pod Security -------------------------------------------------------------------------------------------------

_RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}


def unrestricted(pod_spec: Manifest) -> list[str]:
    """Say what of a pod breaks the Pod Security level restricted, as pod-security-admission's checks do."""
    found = [f for f in ("hostNetwork", "hostPID", "hostIPC") if pod_spec.get(f)]
    found += [k for v in pod_spec.get("volumes", ()) for k in v if k != "name" and k not in _RESTRICTED_VOLUMES]
    for c in (*pod_spec.get("initContainers", ()), *pod_spec["containers"]):
        own = c.get("securityContext", {})
        merged = {**pod_spec.get("securityContext", {}), **own}
        capabilities = own.get("capabilities", {})
        checks = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser") != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "drop": "ALL" in capabilities.get("drop", ()),
            "add": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
            "hostPort": not any(p.get("hostPort") for p in c.get("ports", ())),
        }
        found += [check for check, passed in checks.items() if not passed]
    return found


BY_NIC = ["runAsNonRoot", "runAsUser", "add"]


@pytest.mark.parametrize(
    ("mooncake", "fields", "levels"),
    [
        ({}, {}, {"master": [], "agents": []}),
        (PROVISIONED, {}, {"master": [], "etcd": [], "agents": []}),
        (WITH_DISK, {}, {"master": [], "agents": []}),
        (BY_TLS, {}, {"master": [], "agents": []}),
        ({"hugePages": "2Mi"}, {}, {"master": [], "agents": []}),
        ({}, {"rdma": RESOURCE}, {"master": [], "agents": BY_NIC}),
        (PROVISIONED, {"rdma": CLAIMS}, {"master": [], "etcd": [], "agents": BY_NIC}),
        ({}, {"rdma": HOST}, {"master": [], "agents": ["hostNetwork", *BY_NIC]}),
        ({"disk": FOLDER}, {}, {"master": [], "agents": ["hostPath", "runAsNonRoot", "runAsUser"]}),
    ],
)
def test_pods_fit_the_restricted_level_but_for_what_nics_and_folders_need(
    mooncake: Manifest, fields: Manifest, levels: Mapping[str, list[str]]
) -> None:
    pool = tier_of(mooncake, **fields)
    workloads = [p.name for p in plan(pool).parts if "template" in p.manifest.get("spec", {})]
    assert {name: unrestricted(template(pool, name)) for name in workloads} == levels
    for name in workloads:
        for c in template(pool, name)["containers"]:
            assert c["securityContext"]["readOnlyRootFilesystem"] is True


def test_an_agent_with_nics_has_one_capability_and_no_more() -> None:
    store = container(tier_of(rdma=RESOURCE), "agents")
    assert store["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


# --- names --------------------------------------------------------------------------------------------------------


def test_the_longest_names_fit_everything_that_is_made_of_them() -> None:
    spec_ = api.parse(TierSpec, spec({**PROVISIONED, **WITH_DISK}, rdma=CLAIMS))
    longest = Tier("n" * 63, "t" * 63, spec_, releases.NEWEST)
    parts = plan(longest).parts
    for found in parts:
        assert len(found.manifest["metadata"]["name"]) <= 63
    (etcd,) = [p.manifest for p in parts if p.manifest["kind"] == "StatefulSet"]
    # Its pods' label controller-revision-hash is its name, a dash, and ten characters.
    assert len(etcd["metadata"]["name"]) <= 52
    hosts = container(longest, "etcd")
    assert hosts["name"] == "etcd"


@pytest.mark.parametrize("mooncake", [PROVISIONED, {**PROVISIONED, **WITH_DISK}])
def test_two_tiers_on_one_cluster_share_no_name(mooncake: Manifest) -> None:
    def names(of_tier: Tier) -> set[tuple[str, str]]:
        return {(p.manifest["kind"], p.manifest["metadata"]["name"]) for p in plan(of_tier).parts}

    one, two = (tier_of(mooncake, name=n, rdma=CLAIMS) for n in ("shared", "other"))
    assert names(one).isdisjoint(names(two))
    assert len(names(one)) == len(plan(one).parts)


# --- a given etcd's authority -------------------------------------------------------------------------------------


def test_an_authority_is_copied_once_and_mounted_by_everybody() -> None:
    pool = tier_of({**BY_TLS, "etcd": {**BY_TLS["etcd"], "caSecretRef": {"name": "etcd-ca", "key": "root.pem"}}})
    assert of(pool.spec).secrets(pool) == {"credentials": "etcd-ca"}
    planned = plan(pool, credential(root_pem=PEM, tls_key=b"never copied"))
    (secret,) = [p for p in planned.parts if p.manifest["kind"] == "Secret"]
    assert secret.manifest["data"] == {"ca.crt": base64.b64encode(PEM).decode()}
    volume = {
        "name": "kv-etcd-ca",
        "secret": {"secretName": SHARED, "items": [{"key": "ca.crt", "path": "ca.crt"}]},
    }
    for name in ("master", "agents"):
        assert volume in template(pool, name)["volumes"]
        mounts = container(pool, name)["volumeMounts"]
        assert {"name": "kv-etcd-ca", "mountPath": "/etc/kv-etcd-ca", "readOnly": True} in mounts
    for which in (engine(), sglang()):
        assert volume in attach(pool, which).volumes


def test_an_authority_on_the_cluster_is_mounted_as_it_is() -> None:
    ref = {"name": "etcd-ca", "key": "root.pem", "onCluster": True}
    pool = tier_of({**BY_TLS, "etcd": {**BY_TLS["etcd"], "caSecretRef": ref}})
    assert of(pool.spec).secrets(pool) == {}
    assert not [p for p in plan(pool).parts if p.manifest["kind"] == "Secret"]
    for volumes in (template(pool, "master")["volumes"], attach(pool, engine()).volumes):
        (volume,) = [v for v in volumes if v["name"] == "kv-etcd-ca"]
        assert volume["secret"] == {"secretName": "etcd-ca", "items": [{"key": "root.pem", "path": "ca.crt"}]}


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ({"tls_crt": PEM}, "KeyMissing"),
        ({"ca_crt": b"\x30\x82 not PEM"}, "NotACertificate"),
    ],
)
def test_an_authority_that_is_none_is_named_and_not_shown(secret: dict[str, bytes], reason: str) -> None:
    with pytest.raises(CredentialError) as e:
        plan(tier_of(BY_TLS), credential(**secret))
    assert e.value.reason == reason
    assert "ca.crt" in str(e.value)
    assert "modelplane-system/etcd-ca" in str(e.value)


def test_a_secret_that_is_no_base64_is_an_error_with_a_name() -> None:
    with pytest.raises(CredentialError) as e:
        plan(tier_of(BY_TLS), Credential({"ca.crt": "abc"}, "uid-1"))
    assert e.value.reason == "NotACertificate"


# --- over passes --------------------------------------------------------------------------------------------------


def manifest(mooncake: Manifest | None = None, name: str = "shared", **fields: Any) -> Manifest:
    return {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "KVOffloadTier",
        "metadata": {"name": name, "namespace": "modelplane-system"},
        "spec": spec(mooncake, **fields),
    }


def cluster(name: str = "eu-h100") -> Manifest:
    found = render(
        {
            "apiVersion": "modelplane.ai/v1alpha1",
            "kind": "InferenceCluster",
            "metadata": {"name": name},
            "spec": {"cluster": {"source": "Existing", "existing": {"secretRef": {"name": f"{name}-kubeconfig"}}}},
        }
    ).composite
    del found["status"]["conditions"]
    return found


def authority(data: bytes = PEM, key: str = "ca.crt", version: str = "1") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "etcd-ca",
            "namespace": "modelplane-system",
            "uid": "5f0c7d1e-0000-4000-8000-000000000001",
            "resourceVersion": version,
        },
        "data": {key: base64.b64encode(data).decode()},
    }


def story(mooncake: Manifest | None = None, *required: Manifest, **fields: Any) -> Story:
    return Story(manifest(mooncake, **fields), [cluster(), *required])


def remote(of_story: Story, kind: str, name: str) -> Manifest:
    """What the cluster shows of a workload, to be changed."""
    for observed in of_story.observed:
        shown_: Manifest = observed["status"]["atProvider"]["manifest"]
        if shown_["kind"] == kind and shown_["metadata"]["name"] == name:
            return shown_
    raise LookupError(kind, name)


@pytest.mark.parametrize(
    ("mooncake", "wanted", "counts"),
    [
        ({}, "1", "master 1/1"),
        (GIVEN, "3", "master 3/3"),
        (PROVISIONED, "6", "etcd 3/3, master 3/3"),
        ({**HA, "etcd": {"provision": {"replicas": 1}}}, "4", "etcd 1/1, master 3/3"),
    ],
)
def test_it_is_ready_when_the_cluster_shows_all_of_it(mooncake: Manifest, wanted: str, counts: str) -> None:
    tale = story(mooncake)
    first = tale.render()
    assert state(first, tier.CONTROL_PLANE_READY) == ("False", "Creating")
    assert first.composite["status"]["controlPlane"] == f"0/{wanted}"
    tale.happen()
    settled = tale.render()
    assert state(settled, tier.CONTROL_PLANE_READY) == ("True", "Ready")
    assert settled.condition(tier.CONTROL_PLANE_READY)["message"] == counts
    status = settled.composite["status"]
    assert (status["controlPlane"], status["agents"]) == (f"{wanted}/{wanted}", "2/2")
    assert "normal: ControlPlaneReady: " + counts in messages(settled)
    tale.happen()
    rsp = run(request(tale.composite, tale.observed, [("cluster", cluster())]))
    assert rsp.desired.composite.ready == 1


@pytest.mark.parametrize("mooncake", [{}, PROVISIONED, {**WITH_DISK, "metadata": "HTTP"}])
@pytest.mark.parametrize("fields", [{}, {"rdma": CLAIMS}, {"rdma": HOST}])
def test_a_second_pass_changes_nothing(mooncake: Manifest, fields: Manifest) -> None:
    tale = story(mooncake, **fields)
    settled = tale.settle()
    tale.happen()
    again = tale.render()
    assert json.dumps(again.composed, sort_keys=True) == json.dumps(settled.composed, sort_keys=True)
    assert json.dumps(again.composite, sort_keys=True) == json.dumps(settled.composite, sort_keys=True)
    assert messages(again) == []


@pytest.mark.parametrize(
    ("kind", "name", "counts"),
    [
        ("StatefulSet", f"{SHARED}-etcd", "etcd 2/3, master 3/3"),
        ("Deployment", f"{SHARED}-master", "etcd 3/3, master 2/3"),
    ],
)
def test_a_member_that_is_away_is_told(kind: str, name: str, counts: str) -> None:
    tale = story(PROVISIONED)
    tale.settle()
    tale.happen()
    remote(tale, kind, name)["status"]["readyReplicas"] = 2
    for observed in tale.observed:
        if observed["spec"]["forProvider"]["manifest"]["kind"] == kind:
            observed["status"]["conditions"][0].update(status="False", reason="Unavailable")
    rendered = tale.render()
    assert state(rendered, tier.CONTROL_PLANE_READY) == ("False", "NotReady")
    assert rendered.condition(tier.CONTROL_PLANE_READY)["message"] == counts
    assert rendered.composite["status"]["controlPlane"] == "5/6"
    assert state(rendered, tier.AGENTS_READY) == ("True", "AllReady")
    # What runs stays as it is.
    tale.happen()
    assert specs(tale.render()) == specs(rendered)


def test_a_cluster_that_is_gone_takes_nothing_with_it() -> None:
    tale = story(PROVISIONED)
    settled = tale.settle()
    tale.happen()
    del tale.required["InferenceCluster"]
    assert specs(tale.render()) == specs(settled)


def test_a_cluster_that_is_not_read_yet_takes_nothing_with_it() -> None:
    tale = story(PROVISIONED)
    settled = tale.settle()
    tale.happen()
    rsp = run(request(tale.composite, tale.observed, []))
    assert set(rsp.desired.resources) == set(settled.composed)


def test_an_invalid_spec_takes_nothing_with_it_and_hides_no_warning() -> None:
    ephemeral = {**LOGGED, "etcd": {"provision": {"replicas": 1, "ephemeral": True}}}
    tale = story(ephemeral)
    settled = tale.settle()
    tale.happen()
    tale.composite["spec"]["mooncake"]["segmentGiBPerNode"] = 0
    rendered = tale.render()
    assert state(rendered, tier.ACCEPTED) == ("False", "InvalidSpec")
    assert specs(rendered) == specs(settled)
    assert rendered.composite["status"]["controlPlane"] == "4/4"
    assert rendered.condition(tier.KEYS_NOT_DURABLE)["status"] != "False"


def test_an_authority_that_is_missing_keeps_a_new_tier_from_being_whole() -> None:
    tale = story(BY_TLS)
    rendered = tale.render()
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "SecretNotFound")
    assert not [m for m in rendered.manifests if m["kind"] == "Secret"]
    tale.required["Secret"] = authority()
    tale.happen()
    settled = tale.settle()
    assert state(settled, tier.CREDENTIALS_RESOLVED) == ("True", "Resolved")
    (secret,) = [m for m in settled.manifests if m["kind"] == "Secret"]
    assert secret["data"] == {"ca.crt": base64.b64encode(PEM).decode()}


def test_agents_that_could_not_start_again_stay_as_they_are() -> None:
    tale = story(GIVEN)
    settled = tale.settle()
    tale.happen()
    tale.composite["spec"]["mooncake"] = spec(BY_TLS)["mooncake"]
    rendered = tale.render()
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "SecretNotFound")
    assert specs(rendered)["agents-eu-h100"] == specs(settled)["agents-eu-h100"]
    assert state(rendered, tier.ROLLED_OUT)[0] == "False"


def test_an_authority_that_goes_stays_where_it_was_copied() -> None:
    tale = story(BY_TLS, authority())
    settled = tale.settle()
    tale.happen()
    del tale.required["Secret"]
    rendered = tale.render()
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", "SecretNotFound")
    assert "the copy on the cluster stays" in rendered.condition(tier.CREDENTIALS_RESOLVED)["message"]
    assert specs(rendered).keys() == specs(settled).keys()
    (secret,) = [m for m in rendered.manifests if m["kind"] == "Secret"]
    assert secret["data"] == {"ca.crt": base64.b64encode(PEM).decode()}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (authority(key="tls.crt", version="2"), "KeyMissing"),
        (authority(b"no certificate", version="2"), "NotACertificate"),
    ],
)
def test_an_authority_that_breaks_stays_as_it_was_copied(wrong: Manifest, reason: str) -> None:
    tale = story(BY_TLS, authority())
    tale.settle()
    tale.happen()
    tale.required["Secret"] = copy.deepcopy(wrong)
    rendered = tale.render()
    assert state(rendered, tier.CREDENTIALS_RESOLVED) == ("False", reason)
    (secret,) = [m for m in rendered.manifests if m["kind"] == "Secret"]
    assert secret["data"] == {"ca.crt": base64.b64encode(PEM).decode()}
    assert {"Deployment", "DaemonSet"} <= {m["kind"] for m in rendered.manifests}


def test_an_authority_that_is_rotated_reaches_the_cluster_and_no_hash_shows_it() -> None:
    tale = story(BY_TLS, authority())
    settled = tale.settle()
    tale.happen()
    renewed = PEM.replace(b"MIIB", b"MIIC")
    tale.required["Secret"] = authority(renewed, version="2")
    rendered = tale.render()
    (secret,) = [m for m in rendered.manifests if m["kind"] == "Secret"]
    assert secret["data"] == {"ca.crt": base64.b64encode(renewed).decode()}
    (before,) = [m for m in settled.manifests if m["kind"] == "Secret"]
    hashed = "kv-offload.modelplane.ai/hash"
    assert secret["metadata"]["annotations"][hashed] != before["metadata"]["annotations"][hashed]


@pytest.mark.parametrize(
    ("mooncake", "fields", "warnings"),
    [
        ({}, {}, set()),
        ({}, {"rdma": RESOURCE}, set()),
        ({}, {"rdma": HOST}, {"HostNetworkUnprotected"}),
        # Another master that leads knows no key.
        (PROVISIONED, {}, {"KeysNotDurable"}),
        (GIVEN, {}, {"KeysNotDurable"}),
        ({**PROVISIONED, **LOGGED}, {}, {"EtcdFillsUp"}),
        ({**GIVEN, **LOGGED}, {}, {"EtcdFillsUp"}),
        (
            {**LOGGED, "etcd": {"provision": {"replicas": 1, "ephemeral": True}}},
            {},
            {"EtcdFillsUp", "KeysNotDurable"},
        ),
    ],
)
def test_what_a_tier_costs_is_a_warning(mooncake: Manifest, fields: Manifest, warnings: set[str]) -> None:
    rendered = story(mooncake, **fields).settle()
    types = {"HostNetworkUnprotected", "KeysNotDurable", "EtcdFillsUp"}
    assert {t for t in types if rendered.condition(t)["status"] == "True"} == warnings
    assert {t for t in types if rendered.condition(t)["status"] == "False"} == types - warnings


def test_a_tier_whose_nics_no_node_has_says_so_and_is_composed() -> None:
    tale = story(rdma=CLAIMS)
    devices = [{"name": "nic", "driver": "x", "deviceClassName": "rdma.example", "count": 2}]
    tale.required["InferenceCluster"]["status"]["gpuPools"] = [{"name": "h100", "devices": devices}]
    rendered = tale.settle()
    assert state(rendered, "InsufficientNICs") == ("True", "MoreThanANodeHas")
    assert state(rendered, "Accepted")[0] == "True"
    assert [m for m in rendered.manifests if m["kind"] == "DaemonSet"]


def test_the_warning_of_the_hosts_network_names_its_ports() -> None:
    rendered = story(rdma=HOST).render()
    assert "21850" in rendered.condition("HostNetworkUnprotected")["message"]
    assert [m for m in messages(rendered) if m.startswith("warning: HostNetworkUnprotected")]


def test_a_cluster_without_dra_says_what_to_set_instead() -> None:
    tale = story(rdma=CLAIMS)
    tale.render()
    tale.happen()
    text = 'no matches for kind "ResourceClaimTemplate" in version "resource.k8s.io/v1"'
    for observed in tale.observed:
        if observed["spec"]["forProvider"]["manifest"]["kind"] == "ResourceClaimTemplate":
            del observed["status"]["atProvider"]
            observed["status"]["conditions"][1].update(status="False", reason="ReconcileError", message=text)
    rendered = tale.render()
    found = rendered.condition(tier.CLUSTER_REACHABLE)
    assert found["status"] == "False"
    assert "spec.rdma.extendedResource" in found["message"]
    assert text in found["message"]


def test_two_tiers_on_one_cluster_never_meet() -> None:
    fields: Manifest = {"rdma": CLAIMS}
    one, two = (Story(manifest(PROVISIONED, name=n, **fields), [cluster()]).render() for n in ("shared", "other"))

    def objects(rendered: Rendered) -> set[str]:
        return {o["metadata"]["name"] for o in rendered.composed.values()}

    def manifests(rendered: Rendered) -> set[tuple[str, str]]:
        return {(m["kind"], m["metadata"]["name"]) for m in rendered.manifests}

    assert objects(one).isdisjoint(objects(two))
    assert manifests(one).isdisjoint(manifests(two))


def test_a_tier_on_the_hosts_network_listens_where_it_is_told() -> None:
    def ports(first: int) -> set[int]:
        pool = tier_of(rdma={**RESOURCE, "hostNetwork": {"firstPort": first}})
        store = container(pool, "agents")
        told = {int(v) for k, v in shown(store["env"]).items() if k.endswith("_PORT")}
        return told | {p["containerPort"] for p in store["ports"]}

    assert ports(21850) <= set(range(21850, 21858))
    assert ports(21850).isdisjoint(ports(21858))


@pytest.mark.parametrize("first", [1023, 10241, 29993, 30000, 32768, 50060, 60999])
def test_a_first_port_that_could_not_be_had_is_refused(first: int) -> None:
    with pytest.raises(api.Invalid, match="firstPort"):
        tier_of(rdma={**RESOURCE, "hostNetwork": {"firstPort": first}})


def test_a_restart_of_the_only_master_is_told_before_it_happens() -> None:
    tale = story()
    tale.settle()
    tale.happen()
    tale.composite["spec"]["images"] = {"mooncake": "kvcacheai/mooncake:0.3.14"}
    rendered = tale.render()
    assert "master" in rendered.composite["status"]["pendingDisruption"]


# --- what lands is sound ------------------------------------------------------------------------------------------

VARIANTS: Sequence[tuple[Manifest, Manifest]] = [
    *((m, {}) for m in ({}, {"metadata": "HTTP"}, WITH_DISK, {"disk": FOLDER}, PROVISIONED, GIVEN, BY_TLS)),
    ({"hugePages": "2Mi"}, {"rdma": RESOURCE}),
    ({"hugePages": "1Gi", **WITH_DISK}, {"rdma": CLAIMS}),
    ({**HA, "etcd": {"provision": {"replicas": 1, "ephemeral": True}}}, {"rdma": CLAIMS, "monitoring": {}}),
    (PROVISIONED, {"rdma": {**HOST, "gidIndex": 3, "netDevices": ["mlx5_0"]}}),
    ({}, {"monitoring": {}, "targetNamespace": "serving"}),
]


@pytest.mark.parametrize(("mooncake", "fields"), VARIANTS)
@pytest.mark.parametrize(
    "spec_of_engine",
    [
        {"name": "vLLM", "image": "vllm/vllm-openai:v0.33.0", "args": ["--model=Qwen/Qwen3-32B"]},
        {"name": "SGLang", "image": "lmsysorg/sglang:v0.5.23", "args": ["--model-path=Qwen/Qwen3-32B"]},
    ],
    ids=["vLLM", "SGLang"],
)
def test_tier_and_engine_are_sound_together(mooncake: Manifest, fields: Manifest, spec_of_engine: Manifest) -> None:
    pool = manifest(mooncake, **fields)
    deployment = {
        "apiVersion": "modelplane.ai/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "chat", "namespace": "ml"},
        "spec": {"engine": {**spec_of_engine, "kvCache": {"tierRef": {"name": "shared"}}}},
    }
    required = [cluster(), authority()]
    runs, serves = render(pool, (), required), render(deployment, (), [*required, pool])
    assert serves.condition("TierAttached")["status"] == "True"
    manifests = [*runs.manifests, *serves.manifests]
    assert [error for m in manifests for error in schema_errors(m)] == []
    on_host = "hostNetwork" in fields.get("rdma", {})
    # What runs on the host's network has no labels that a policy could name.
    excused = "is open to everybody" if on_host else "\0"
    assert [f for f in lint(manifests, Context()) if excused not in f] == []


def test_a_log_that_outlives_its_tier_is_not_another_ones() -> None:
    """A log in an etcd that is there already tells of keys that are long gone once the tier is made anew."""
    given_etcd = {"master": {"replicas": 3, "oplog": True}, "etcd": {"endpoints": ["http://etcd.kv:2379"]}}
    provisioned = {"master": {"replicas": 3, "oplog": True}, "etcd": {"provision": {}}}
    for etcd, differs in ((given_etcd, True), (provisioned, False), ({**given_etcd, "master": {"replicas": 3}}, False)):
        one, other = (replace(tier_of(etcd), uid=uid) for uid in ("uid-1", "uid-2"))
        assert (pool(one) != pool(other)) is differs
