"""AIBrix's distributed caches: the KVCache, what stands around it, what its controller makes of it, and engines."""

import base64
import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import api, kube, releases
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import Credential, CredentialError, EnginePatch, Invalid, Plan, Site, Tier
from function.fn import run
from function.kube import Manifest
from function.render import Rendered, request
from tests import aibrix
from tests.render.conftest import built
from tests.tools import build, crossplane
from tests.unit import builders, stories
from tests.unit.builders import credential, env, part, plan, refuse
from tests.unit.stories import Story, state
from tests.unit.test_aibrix import OWN, PATCHED
from tests.unit.test_aibrix import engine as vllm

EXAMPLE = "aibrix-distributed"
PASSWORD = "dHJ1bHktcmFuZG9t"
DRAWN = Credential({"password": base64.b64encode(PASSWORD.encode()).decode(), "drawn": "MDEyMw=="}, "MDEyMw==")
NICS: Manifest = {"extendedResource": {"name": "rdma/nics"}, "agents": {"count": 1}, "engines": {"count": 1}}
# sha256("kvtier/modelplane-system/pool") begins with c0066.
INSTANCE, CACHE = "kvtier-modelplane-system-pool-c0066", "kvcache-modelplane-system-pool-"


def tier(name: str = "pool", servers: Manifest | None = None, vineyard: Manifest | None = None, **fields: Any) -> Tier:
    backend = (
        {"infinistore": {"memoryGiBPerReplica": 90, **(servers or {})}}
        if vineyard is None
        else {"vineyard": {"memoryGiBPerReplica": 64, **vineyard}}
    )
    spec: Manifest = {
        "inferenceClusterRef": {"name": "x"},
        "backend": "AIBrix",
        "aibrix": {"distributed": backend},
        **({"rdma": NICS} if vineyard is None else {}),
        **fields,
    }
    return Tier("modelplane-system", name, api.parse(TierSpec, spec), releases.NEWEST)


def to_vineyard(manifest: Manifest) -> None:
    manifest["spec"]["aibrix"]["distributed"] = {"vineyard": {"memoryGiBPerReplica": 64, "replicas": 2}}
    manifest["spec"].pop("rdma")


def planned(*args: Any, secret: Credential | None = DRAWN, **kwargs: Any) -> Plan:
    return plan(tier(*args, **kwargs), secret=secret)


def cache(*args: Any, **kwargs: Any) -> Manifest:
    manifest: Manifest = part(planned(*args, **kwargs), "kvcache").manifest
    return manifest


def server(*args: Any, **kwargs: Any) -> Manifest:
    (container,) = cache(*args, **kwargs)["spec"]["cache"]["template"]["spec"]["containers"]
    found: Manifest = container
    return found


# --- the KVCache --------------------------------------------------------------------------------------------------


def test_a_kvcache_and_what_stands_around_it() -> None:
    made = {p.name: (p.manifest["kind"], p.manifest["metadata"]["name"], p.maker) for p in planned().parts}
    name = made["kvcache"][1]
    assert name.startswith(CACHE)
    assert made == {
        "service-account": ("ServiceAccount", INSTANCE, ""),
        "credentials": ("Secret", INSTANCE, ""),
        "valkey": ("StatefulSet", f"{INSTANCE}-valkey", ""),
        "valkey-config": ("ConfigMap", f"{INSTANCE}-valkey", ""),
        "valkey-service": ("Service", f"{INSTANCE}-valkey", ""),
        "members-service": ("Service", f"{INSTANCE}-members", ""),
        "valkey-network-policy": ("NetworkPolicy", f"{INSTANCE}-valkey", ""),
        "kvcache": ("KVCache", name, ""),
        "infinistore": ("StatefulSet", name, "AIBrix's controller"),
        "infinistore-network-policy": ("NetworkPolicy", f"{INSTANCE}-infinistore", ""),
        "watcher-network-policy": ("NetworkPolicy", f"{INSTANCE}-watcher", ""),
    }


def test_the_annotation_says_which_and_the_controller_makes_no_store_without_a_password() -> None:
    manifest = cache()
    assert manifest["apiVersion"] == "orchestration.aibrix.ai/v1alpha1"
    assert manifest["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/backend"] == "infinistore"
    assert set(manifest["spec"]) == {"mode", "cache", "service", "watcher"}
    assert [(p["name"], p["port"]) for p in manifest["spec"]["service"]["ports"]] == [
        ("service", 12345),
        ("manage", 8088),
    ]


def test_a_server_holds_what_it_is_told_and_asks_for_a_ninth_more() -> None:
    container = server()
    assert container["args"] == [
        "--service-port=12345",
        "--manage-port=8088",
        "--link-type=Ethernet",
        "--prealloc-size=90",
    ]
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "100Gi", "rdma/nics": "1"},
        "limits": {"memory": "100Gi", "rdma/nics": "1"},
    }


def test_a_server_may_pin_memory_and_be_spared_and_nothing_else() -> None:
    assert server()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK", "SYS_RESOURCE"]},
        "runAsUser": 0,
    }
    pod = cache()["spec"]["cache"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (INSTANCE, False)
    assert not {"hostIPC", "hostNetwork", "hostPID"} & set(pod)


def test_devices_are_named_where_the_tier_names_them() -> None:
    args = server(servers={"linkType": "InfiniBand"}, rdma={**NICS, "netDevices": ["mlx5_1", "mlx5_2"], "gidIndex": 7})[
        "args"
    ]
    assert args[2:] == ["--link-type=IB", "--prealloc-size=90", "--dev-name=mlx5_1", "--hint-gid-index=7"]


def test_nics_by_claim_are_claimed_by_servers() -> None:
    by_claim = {"dra": {"deviceClassName": "nics"}, "agents": {"count": 1}, "engines": {"count": 1}}
    found = planned(rdma=by_claim)
    (template,) = [p.manifest["metadata"]["name"] for p in found.parts if p.manifest["kind"] == "ResourceClaimTemplate"]
    pod = part(found, "kvcache").manifest["spec"]["cache"]["template"]["spec"]
    assert [c["resourceClaimTemplateName"] for c in pod["resourceClaims"]] == [template]


def test_names_fit_whatever_the_controller_puts_behind_them() -> None:
    either: tuple[Manifest | None, ...] = (None, {})
    for vineyard in either:
        found = planned("x" * 63, vineyard=vineyard)
        name = part(found, "kvcache").manifest["metadata"]["name"]
        assert len(f"{name}-headless-service") <= 63 and len(f"{name}-etcd-service") <= 63
        assert len(f"{name}-0123456789") <= 63
        # Its ServiceAccount, with a Role, must not be ours.
        assert name != part(found, "service-account").manifest["metadata"]["name"]


KVCACHES: dict[str, Callable[[], Manifest]] = {
    "infinistore": cache,
    "several servers": lambda: cache(servers={"replicas": 3}),
    "a Redis that is there": lambda: cache(servers={"metadata": {"redis": {"host": "r"}}}, secret=None),
    "vineyard": lambda: cache(vineyard={}),
}


def test_aibrixs_own_definition_takes_every_kvcache() -> None:
    crds, _ = built(build.aibrix_crds, lambda: build.tool("xrd"))
    wrong = cache()
    wrong["spec"]["service"].pop("ports")
    # As AIBrix had it until v0.2.1, and as its documentation of then still has it.
    old = {**copy.deepcopy(cache(vineyard={})), "spec": {"replicas": 1, "service": {"type": "ClusterIP", "port": 9600}}}
    manifests = [*(make() for make in KVCACHES.values()), wrong, old]
    cases = [{"name": str(n), "old": None, "new": manifest} for n, manifest in enumerate(manifests)]
    answer = crossplane.check_xrd(crds / "orchestration.aibrix.ai_kvcaches.yaml", cases)
    assert answer["crdErrors"] == []
    assert [bool(c["errors"] or c["pruned"]) for c in answer["cases"]] == [False] * len(KVCACHES) + [True, True]


# --- who may reach what -------------------------------------------------------------------------------------------


def ingress(name: str, *args: Any, **kwargs: Any) -> list[Any]:
    found: list[Any] = part(planned(*args, **kwargs), name).manifest["spec"].get("ingress", [])
    return found


ENGINES = {"podSelector": {"matchLabels": {kube.LABEL_TIER: INSTANCE}}}


def test_engines_reach_servers_and_nobody_the_port_by_which_they_are_emptied() -> None:
    assert ingress("infinistore-network-policy") == [{"from": [ENGINES], "ports": [{"port": 12345, "protocol": "TCP"}]}]


def test_engines_and_the_watcher_reach_the_list_of_members() -> None:
    name = cache()["metadata"]["name"]
    labels = {"kvcache.orchestration.aibrix.ai/name": name, "kvcache.orchestration.aibrix.ai/role": "kvwatcher"}
    watcher = {"podSelector": {"matchLabels": labels}}
    assert ingress("valkey-network-policy") == [
        {"from": [ENGINES, watcher], "ports": [{"port": "valkey", "protocol": "TCP"}]}
    ]
    assert ingress("watcher-network-policy") == []
    policy = part(planned(), "watcher-network-policy").manifest["spec"]
    assert policy["podSelector"] == watcher["podSelector"]


# --- the list of members ------------------------------------------------------------------------------------------


def secret(*args: Any, with_: Credential = DRAWN, **kwargs: Any) -> dict[str, str]:
    manifest = part(planned(*args, secret=with_, **kwargs), "credentials").manifest
    return {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}


def test_the_watcher_writes_engines_read_and_a_probe_asks_whether_there_is_something() -> None:
    reader = hashlib.sha256(b"engine" + PASSWORD.encode()).hexdigest()
    exporter = hashlib.sha256(b"exporter" + PASSWORD.encode()).hexdigest()

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    assert secret() == {
        "drawn": "0123",
        "password": PASSWORD,
        "engine-password": reader,
        "exporter-password": exporter,
        "redis-url": f"redis://engine:{reader}@{INSTANCE}-valkey.default.svc:6379",
        "users.acl": (
            "user default on sanitize-payload ~kvcache_nodes resetchannels -@all +get +set +multi +exec +ping "
            f"#{digest(PASSWORD)}\n"
            f"user engine on sanitize-payload ~kvcache_nodes resetchannels -@all +get +ping #{digest(reader)}\n"
            "user probe on nopass sanitize-payload ~kvcache_nodes resetchannels -@all +exists +ping\n"
            "user exporter on sanitize-payload resetkeys resetchannels -@all +info +ping "
            f"#{digest(exporter)}\n"
        ),
    }


def test_it_is_not_ready_before_somebody_is_written_down_and_only_the_watcher_reaches_it_then() -> None:
    found = planned()
    (container,) = part(found, "valkey").manifest["spec"]["template"]["spec"]["containers"]
    asks = "valkey-cli --no-auth-warning --user probe --pass none -e"
    assert container["readinessProbe"]["exec"]["command"] == [
        "sh",
        "-c",
        f'test "$({asks} exists kvcache_nodes)" = 1',
    ]
    assert container["startupProbe"]["exec"]["command"] == [*asks.split(), "ping"]
    assert part(found, "members-service").manifest["spec"]["publishNotReadyAddresses"]
    assert "publishNotReadyAddresses" not in part(found, "valkey-service").manifest["spec"]


def watcher(*args: Any, **kwargs: Any) -> list[Any]:
    found: list[Any] = cache(*args, **kwargs)["spec"]["watcher"]["env"]
    return found


def test_the_watcher_is_told_where_to_write_whatever_the_controller_says() -> None:
    password = {"secretKeyRef": {"name": INSTANCE, "key": "password"}}
    assert watcher() == [
        {"name": "REDIS_ADDR", "value": f"{INSTANCE}-members.default.svc:6379"},
        {"name": "REDIS_PASSWORD", "valueFrom": password},
    ]
    # The last of a name wins.
    *_, pod = (m for m in aibrix.made(cache()) if m["metadata"]["name"].endswith("-watcher-pod"))
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert container["env"][-2:] == watcher()


def test_a_redis_that_is_there_is_given_to_both_and_none_is_run() -> None:
    metadata = {"metadata": {"redis": {"host": "redis.kv", "port": 6380, "secretRef": {"name": "auth", "key": "pw"}}}}
    given = credential(pw="p@/w")
    found = planned(servers=metadata, secret=given)
    assert not any("valkey" in p.name or "members" in p.name for p in found.parts)
    assert secret(servers=metadata, with_=given) == {
        "password": "p@/w",
        "redis-url": "redis://:p%40%2Fw@redis.kv:6380",
    }
    assert watcher(servers=metadata, secret=given)[0] == {"name": "REDIS_ADDR", "value": "redis.kv:6380"}
    with pytest.raises(CredentialError, match="Secret modelplane-system/auth has no key 'pw'"):
        planned(servers=metadata, secret=credential(password="x"))
    open_ = {"metadata": {"redis": {"host": "redis.kv"}}}
    assert watcher(servers=open_, secret=None) == [{"name": "REDIS_ADDR", "value": "redis.kv:6379"}]


def test_while_no_password_is_known_what_has_one_stays() -> None:
    found = planned(secret=None)
    assert set(found.held) == {"credentials", "valkey"}


# --- what the controller makes of it ------------------------------------------------------------------------------

OBJECT = "infinistore-vke-h20"


def policies(rendered: Rendered) -> dict[str, list[str]]:
    return {
        key: found["spec"]["managementPolicies"]
        for key, found in rendered.composed.items()
        if "managementPolicies" in found["spec"]
    }


def ready(told: Story) -> bool:
    """Whether Crossplane would call the tier Ready."""
    asked = request(told.composite, told.observed, [("cluster", told.required["InferenceCluster"])])
    return run(asked).desired.composite.ready == fnv1.READY_TRUE


def story(change: Callable[[Manifest], None] | None = None) -> Story:
    return stories.tier_story(change, example=EXAMPLE)


def test_it_is_ready_once_its_controller_has_made_what_it_asks_for() -> None:
    told = story()
    rendered = told.settle()
    assert state(rendered, "ControlPlaneReady") == ("True", "Ready")
    assert rendered.condition("ControlPlaneReady")["message"] == "valkey 1/1, infinistore 3/3"
    assert rendered.composite["status"]["controlPlane"] == "4/4"
    assert rendered.composite["status"]["agents"] == "n/a"
    assert ready(told)


def test_without_a_controller_the_condition_says_so_and_nothing_else_is_blamed() -> None:
    told = story()
    told.render()
    told.happen(controller=False)
    rendered = told.render()
    assert state(rendered, "ControlPlaneReady") == ("False", "NotMade")
    message = rendered.condition("ControlPlaneReady")["message"]
    assert message.startswith("AIBrix's controller has not made StatefulSet kvcache-modelplane-system-infinistore-")
    assert state(rendered, "ClusterReachable") == ("True", "Reachable")
    assert state(rendered, "RolledOut") == ("False", "Applying")
    assert not ready(told)
    told.happen()
    assert ready(told)


def test_without_aibrixs_definitions_the_condition_says_what_is_missing() -> None:
    told = story()
    told.settle()
    (found,) = [o for o in told.observed if o["spec"]["forProvider"]["manifest"]["kind"] == "KVCache"]
    message = 'cannot get object: no matches for kind "KVCache" in version "orchestration.aibrix.ai/v1alpha1"'
    found["status"]["conditions"] = [
        {"type": "Synced", "status": "False", "reason": "ReconcileError", "message": message}
    ]
    rendered = told.render()
    assert state(rendered, "ClusterReachable") == ("False", "ApplyFailed")
    assert "it needs AIBrix on the cluster" in rendered.condition("ClusterReachable")["message"]


def test_what_the_controller_makes_is_looked_at_and_never_taken() -> None:
    told = story()
    looked_at = {OBJECT: ["Observe"]}
    assert policies(told.settle()) == looked_at
    told.observed, kept = told.observed, told.required
    told.required = {}
    # Everything is kept as it is observed.
    assert policies(told.render()) == looked_at
    told.required = kept
    told.composite["spec"]["aibrix"]["distributed"]["infinistore"]["memoryGiBPerReplica"] = "many"
    assert policies(told.render()) == looked_at
    assert kube.ANNOTATION_HASH not in told.render().composed[OBJECT]["spec"]["forProvider"]["manifest"][
        "metadata"
    ].get("annotations", {})


def test_what_the_controller_does_not_apply_is_not_called_rolled_out() -> None:
    told = story()
    told.settle()
    before = copy.deepcopy(told.observed)
    told.composite["spec"]["aibrix"]["distributed"]["infinistore"]["memoryGiBPerReplica"] = 500
    told.render()
    told.happen()
    # It goes on with the template that it had.
    (old,) = [o for o in before if o["metadata"]["annotations"]["crossplane.io/composition-resource-name"] == OBJECT]
    for one in told.observed:
        if one["metadata"]["annotations"]["crossplane.io/composition-resource-name"] == OBJECT:
            one["status"] = old["status"]
    rendered = told.render()
    assert state(rendered, "ControlPlaneReady") == ("False", "NotReady")
    assert "not all of infinistore runs this spec yet" in rendered.condition("ControlPlaneReady")["message"]
    assert state(rendered, "RolledOut") == ("False", "Applying")


@pytest.mark.parametrize("change", [lambda _: None, to_vineyard])
def test_servers_that_the_controller_has_not_added_are_waited_for(change: Callable[[Manifest], None]) -> None:
    """While it is away it says of what it made what it said before."""
    told = story(change)
    told.settle()
    assert ready(told)
    (cache,) = told.composite["spec"]["aibrix"]["distributed"].values()
    cache["replicas"] += 1
    told.render()
    told.happen(controller=False)
    assert not ready(told)
    told.happen()
    assert ready(told)


def test_what_running_servers_claim_by_stays_until_they_claim_by_another() -> None:
    def claiming(manifest: Manifest) -> None:
        manifest["spec"]["rdma"] = {
            "dra": {"deviceClassName": "nics"},
            "agents": {"count": 1},
            "engines": {"count": 1},
        }

    def templates(rendered: Rendered) -> set[str]:
        return {m["metadata"]["name"] for m in rendered.manifests if m["kind"] == "ResourceClaimTemplate"}

    told = story(claiming)
    before = templates(told.settle())
    told.composite["spec"]["rdma"]["agents"]["count"] = 2
    told.render()
    told.happen(controller=False)
    both = templates(told.render())
    assert before < both
    # A person has deleted the StatefulSet.
    told.happen()
    assert templates(told.settle()) == both - before


# --- engines ------------------------------------------------------------------------------------------------------


def attach(to: Tier, *args: str, **fields: Any) -> EnginePatch:
    return builders.attach(to, vllm(*args, **fields))


def test_an_engine_holds_nothing_itself_and_finds_the_servers() -> None:
    engine = vllm()
    patch = builders.attach(tier(), engine)
    found = env(patch)
    assert patch.kv_transfer["kv_connector"] == "AIBrixOffloadingConnectorV1Type3"
    assert {name.removeprefix("AIBRIX_KV_CACHE_OL_"): value for name, value in found.items()} == {
        "VLLM_USE_V1": "1",
        "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
        "L1_CACHE_ENABLED": "0",
        "L2_CACHE_BACKEND": "INFINISTORE",
        "L2_CACHE_NAMESPACE": engine.keyspace,
        "INFINISTORE_CONNECTION_TYPE": "RDMA",
        "INFINISTORE_LINK_TYPE": "Ethernet",
        "META_SERVICE_BACKEND": "REDIS",
        "META_SERVICE_CLUSTER_META_KEY": "kvcache_nodes",
        "META_SERVICE_URL": {"name": INSTANCE, "key": "redis-url"},
    }
    assert (patch.memory, patch.engine_memory) == (0, 0)
    assert (patch.resources, patch.capabilities) == ({"rdma/nics": "1"}, ("IPC_LOCK",))


def test_an_engine_waits_for_the_list_and_for_a_server() -> None:
    (wait,) = attach(tier()).init_containers
    wanted, *targets = wait["command"][5:]
    name = cache()["metadata"]["name"]
    assert wanted == "2"
    assert targets == [f"{INSTANCE}-valkey.default.svc:6379", f"{name}-headless-service.default.svc:12345"]


def test_by_tcp_an_engine_needs_no_nic() -> None:
    patch = attach(tier(servers={"protocol": "TCP"}, rdma={**NICS, "engines": {"count": 0}}), image=OWN)
    assert env(patch)["AIBRIX_KV_CACHE_OL_INFINISTORE_CONNECTION_TYPE"] == "TCP"
    assert (patch.resources, patch.capabilities) == ({}, ())


def test_a_connector_that_the_image_has_not_is_refused_here_too() -> None:
    assert refuse(tier(), vllm(image="team/vllm:v0.22.0")).reason == "EngineTooNew"
    assert refuse(tier(), vllm("--enable-lora")).reason == "LoRANotIsolated"


def test_servers_need_not_be_on_the_nodes_of_engines() -> None:
    by_claim = {"dra": {"deviceClassName": "nics"}, "agents": {"count": 1}, "engines": {"count": 8}}
    to = tier(rdma=by_claim)
    assert not of(to.spec).plan(to, Site(8, pools={"a": {"nics": 8}}), {}).notices
    builders.attach(to, vllm(), Site(8, pools={"a": {"nics": 8}}))
    (notice,) = of(to.spec).plan(to, Site(8, pools={"a": {"nics": 7}}), {}).notices
    assert "rdma.agents.count (is 1) or engines.count (is 8) are more than the 7" in notice.message


# --- Vineyard -----------------------------------------------------------------------------------------------------

LEGACY = "aibrix/vllm-openai:v0.6.1-edb07092-20250118"


def test_vineyards_servers_find_an_etcd_that_exists() -> None:
    found = planned(vineyard={})
    name = part(found, "kvcache").manifest["metadata"]["name"]
    service = part(found, "etcd-clients-service").manifest
    assert service["metadata"]["name"] == f"{name}-etcd-service"
    assert service["spec"] == {
        "selector": {"app.kubernetes.io/instance": INSTANCE, "app.kubernetes.io/component": "etcd"},
        "ports": [{"name": "client", "port": 2379, "targetPort": "client"}],
    }
    assert part(found, "etcd").manifest["spec"]["replicas"] == 3
    # The controller's own members know no others.
    assert "metadata" not in part(found, "kvcache").manifest["spec"]
    (rule, *_) = ingress("etcd-network-policy", vineyard={})
    assert rule["from"] == [
        {
            "podSelector": {
                "matchLabels": {
                    "kvcache.orchestration.aibrix.ai/name": name,
                    "kvcache.orchestration.aibrix.ai/role": "cache",
                }
            }
        }
    ]


@pytest.mark.parametrize(("gib", "written"), [(64, "66Gi"), (1022, "1Ti"), (1023, "1025Gi")])
def test_vineyards_memory_is_written_as_an_api_server_gives_it_back(gib: int, written: str) -> None:
    """The controller's own types write whole Ti, and its Deployment is compared with it."""
    assert cache(vineyard={"memoryGiBPerReplica": gib})["spec"]["cache"]["resources"]["limits"]["memory"] == written
    assert f"'{written}'" in part(planned(vineyard={"memoryGiBPerReplica": gib}), "vineyard").ready


def test_vineyards_engines_share_a_node_as_the_tier_says() -> None:
    to = tier(vineyard={"cpuTierGiBPerNode": 160})
    assert of(to.spec).plan(to, Site(8), {}).memory == {"cacheGiB": 160, "gpusPerNode": 8}
    with pytest.raises(Invalid, match=r"aibrix\.distributed\.vineyard\.cpuTierGiBPerNode"):
        of(to.spec).plan(to, Site(200), {})


def test_vineyards_servers_follow_engines_to_their_nodes() -> None:
    manifest = cache(vineyard={})
    patch = attach(tier(vineyard={}), image=LEGACY)
    workload = manifest["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/pod-affinity-workload"]
    assert patch.labels["model.aibrix.ai/name"] == workload == INSTANCE
    assert "kvcache.orchestration.aibrix.ai/pod-anti-affinity" in manifest["metadata"]["annotations"]
    (volume,) = patch.volumes
    folder = f"/var/run/vineyard-kubernetes/default/{manifest['metadata']['name']}"
    assert volume["hostPath"]["path"] == folder
    made = next(m for m in aibrix.made(manifest) if m["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert made["volumes"][0]["hostPath"]["path"] == folder


def test_an_engine_of_the_one_vllm_that_speaks_to_it() -> None:
    engine = vllm(image=LEGACY, memory="100Gi")
    patch = builders.attach(tier(vineyard={}), engine)
    name = cache(vineyard={})["metadata"]["name"]
    assert env(patch) == {
        "VLLM_USE_VINEYARD_CACHE": "1",
        "VINEYARD_CACHE_CPU_MEM_LIMIT_GB": "80",
        "AIBRIX_LLM_KV_CACHE": "1",
        "AIBRIX_LLM_KV_CACHE_KV_CACHE_NS": engine.keyspace,
        "AIBRIX_LLM_KV_CACHE_CHUNK_SIZE": "16",
        "AIBRIX_LLM_KV_CACHE_SOCKET": "/var/run/vineyard.sock",
        "AIBRIX_LLM_KV_CACHE_RPC_ENDPOINT": f"{name}-rpc:9600",
        "VINEYARD_CACHE_ENABLE_ASYNC_UPDATE": "1",
        "VINEYARD_CACHE_METRICS_ENABLED": "1",
    }
    assert patch.args == ["--enable-prefix-caching"]
    assert not patch.kv_transfer
    assert not attach(tier(vineyard={}), "--enable-prefix-caching", image=LEGACY).args


@pytest.mark.parametrize(
    ("args", "fields", "reason"),
    [
        ([], {"image": PATCHED}, "EngineTooNew"),
        ([], {"image": "team/vllm:v0.6.0"}, "EngineVersionUnsupported"),
        (["--enable-lora"], {"image": LEGACY}, "LoRANotIsolated"),
        (["--nnodes=2", "-tp=16"], {"image": LEGACY}, "GangNotSupported"),
        ([], {"image": LEGACY, "memory": "20Gi"}, "EngineMemoryShort"),
        ([], {"image": LEGACY, "memory": ""}, "EngineMemoryUnknown"),
    ],
)
def test_no_other_engine_is_attached(args: list[str], fields: dict[str, Any], reason: str) -> None:
    assert refuse(tier(vineyard={}), vllm(*args, **fields)).reason == reason


def test_servers_that_wait_for_an_engine_do_not_keep_engines_waiting() -> None:
    told = story(to_vineyard)
    told.render()
    told.happen()
    for one in told.observed:
        remote = one.get("status", {}).get("atProvider", {}).get("manifest", {})
        if remote.get("kind") == "Deployment":
            # Their pods are there, and pending.
            remote["status"] = {"replicas": 2, "updatedReplicas": 2, "unavailableReplicas": 2, "observedGeneration": 1}
    rendered = told.render()
    assert ready(told)
    assert state(rendered, "ControlPlaneReady") == ("True", "WaitsForEngines")
    assert (
        rendered.condition("ControlPlaneReady")["message"] == "etcd 3/3, vineyard 0/2; the others start beside engines"
    )
    assert state(rendered, "LegacyBackend") == ("True", "Vineyard")
