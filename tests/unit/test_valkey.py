"""A Valkey that a tier provisions: what runs, who may do what, and a password that is drawn once."""

import base64
import copy
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from function import tier as composer
from function.api import Invalid
from function.backends import of
from function.backends.base import DRAWN, Credential, CredentialError, EnginePatch, Plan
from function.backends.lmcache import redis as redis_of_lmcache
from function.kube import Manifest
from function.render import Rendered
from tests import examples
from tests.unit.builders import INSTANCE, MIDDLE, NEW, OLD, attach, engine, env, part, plan, redis, tier
from tests.unit.stories import Story, messages, specs, state, tier_story

PASSWORD = "dHJ1bHktcmFuZG9t"
DRAWN_CREDENTIAL = Credential(
    {"password": base64.b64encode(PASSWORD.encode()).decode(), "drawn": "MDEyMw=="}, "MDEyMw=="
)
HOST = f"{INSTANCE}-valkey.default.svc"
SELECTOR = {"app.kubernetes.io/instance": INSTANCE, "app.kubernetes.io/component": "valkey"}
SAVED: Manifest = {"size": "100Gi", "storageClassName": "ssd"}


def provisioned(memory: str = "64Gi", lmcache: Manifest | None = None, **provision: Any) -> Manifest:
    """Write an lmcache block with a Valkey of the tier's own."""
    return {"remote": {"redis": {"provision": {"memory": memory, **provision}}}, **(lmcache or {})}


def planned(lmcache: Manifest | None = None, credential: Credential | None = DRAWN_CREDENTIAL, **fields: Any) -> Plan:
    return plan(tier(lmcache or provisioned(), **fields), secret=credential)


def server(lmcache: Manifest | None = None, **fields: Any) -> Manifest:
    manifest: Manifest = part(planned(lmcache, **fields), "valkey").manifest
    return manifest


def pod(lmcache: Manifest | None = None, **fields: Any) -> Manifest:
    found: Manifest = server(lmcache, **fields)["spec"]["template"]["spec"]
    return found


def conf(lmcache: Manifest) -> str:
    text: str = part(planned(lmcache), "valkey-config").manifest["data"]["valkey.conf"]
    return text


# --- what runs ----------------------------------------------------------------------------------------------------


def test_one_server_stands_behind_a_service_of_its_own() -> None:
    assert {p.name: (p.manifest["kind"], p.manifest["metadata"]["name"]) for p in planned().parts} == {
        "connector": ("ConfigMap", INSTANCE),
        "credentials": ("Secret", INSTANCE),
        "service-account": ("ServiceAccount", INSTANCE),
        "service": ("Service", INSTANCE),
        "network-policy": ("NetworkPolicy", INSTANCE),
        "agents": ("DaemonSet", INSTANCE),
        "valkey": ("StatefulSet", f"{INSTANCE}-valkey"),
        "valkey-config": ("ConfigMap", f"{INSTANCE}-valkey"),
        "valkey-service": ("Service", f"{INSTANCE}-valkey"),
        "valkey-network-policy": ("NetworkPolicy", f"{INSTANCE}-valkey"),
    }
    assert part(planned(), "valkey-service").manifest["spec"] == {
        "selector": SELECTOR,
        "ports": [{"name": "valkey", "port": 6379, "targetPort": "valkey"}],
    }


def test_in_process_there_is_a_server_and_its_account_and_no_agent() -> None:
    names = {p.name for p in planned(provisioned(lmcache={"mode": "InProcess"})).parts}
    assert names == {
        "connector",
        "credentials",
        "service-account",
        "valkey",
        "valkey-config",
        "valkey-service",
        "valkey-network-policy",
    }


def test_the_server_is_this_pod() -> None:
    spec = server()["spec"]
    assert {key: value for key, value in spec.items() if key != "template"} == {
        "replicas": 1,
        "serviceName": f"{INSTANCE}-valkey",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": SELECTOR},
    }
    assert SELECTOR.items() <= spec["template"]["metadata"]["labels"].items()
    ping = {"exec": {"command": ["valkey-cli", "-e", "ping"]}, "timeoutSeconds": 5, "periodSeconds": 5}
    assert spec["template"]["spec"] == {
        "serviceAccountName": INSTANCE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 999,
            "runAsGroup": 999,
            "fsGroup": 999,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "valkey",
                "image": "valkey/valkey:9.1.4",
                "command": ["valkey-server", "/etc/valkey/valkey.conf"],
                "ports": [{"name": "valkey", "containerPort": 6379}],
                "resources": {"requests": {"cpu": "2", "memory": "64Gi"}, "limits": {"memory": "64Gi"}},
                "startupProbe": {**ping, "failureThreshold": 60},
                "readinessProbe": ping,
                "livenessProbe": {"tcpSocket": {"port": "valkey"}, "periodSeconds": 10},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/valkey", "readOnly": True},
                    {"name": "data", "mountPath": "/data"},
                ],
            }
        ],
        "volumes": [
            {
                "name": "config",
                "projected": {
                    "defaultMode": 288,
                    "sources": [
                        {
                            "configMap": {
                                "name": f"{INSTANCE}-valkey",
                                "items": [{"key": "valkey.conf", "path": "valkey.conf"}],
                            }
                        },
                        {"secret": {"name": INSTANCE, "items": [{"key": "users.acl", "path": "users.acl"}]}},
                    ],
                },
            },
            {"name": "data", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def test_the_image_may_be_another() -> None:
    images = {"valkey": "mirror.example/valkey:9", "exporter": "mirror.example/exporter:1"}
    assert [c["image"] for c in pod(images=images, monitoring={})["containers"]] == list(images.values())


def test_the_servers_settings() -> None:
    assert conf(provisioned("64Gi")) == (
        "bind * -::*\n"
        "port 6379\n"
        "protected-mode no\n"
        "aclfile /etc/valkey/users.acl\n"
        "maxclients 10000\n"
        "maxmemory 51539607552\n"
        "maxmemory-policy allkeys-lru\n"
        "lazyfree-lazy-eviction yes\n"
        "dir /data\n"
        "appendonly no\n"
        'save ""\n'
    )


@pytest.mark.parametrize(
    ("memory", "persistence", "maxmemory"),
    [
        ("1Gi", None, 805306368),
        ("100G", None, 75000000000),
        ("1Gi", {}, 483183820),
        ("64Gi", {}, 30923764531),
    ],
)
def test_keys_get_their_share_of_the_pods_memory_in_bytes(
    memory: str, persistence: Manifest | None, maxmemory: int
) -> None:
    block = provisioned(memory) if persistence is None else provisioned(memory, persistence=persistence)
    assert f"\nmaxmemory {maxmemory}\n" in conf(block)


def test_a_server_that_saves_has_a_claim_and_time_to_read_and_write() -> None:
    block = provisioned(persistence=SAVED)
    assert conf(block).endswith("\nsave 900 1\nstop-writes-on-bgsave-error no\n")
    spec = server(block)["spec"]
    assert spec["volumeClaimTemplates"] == [
        {
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "ssd",
                "resources": {"requests": {"storage": "100Gi"}},
            },
        }
    ]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Retain"}
    assert [volume["name"] for volume in spec["template"]["spec"]["volumes"]] == ["config"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 600
    assert spec["template"]["spec"]["containers"][0]["startupProbe"]["failureThreshold"] == 720


def test_it_is_ready_when_its_pod_is_and_waits_for_its_secret() -> None:
    found = part(planned(), "valkey")
    assert "readyReplicas" in found.ready and "updatedReplicas" in found.ready
    assert found.after == "credentials"


# --- who may do what ----------------------------------------------------------------------------------------------


def secret(credential: Credential = DRAWN_CREDENTIAL) -> dict[str, str]:
    manifest = part(planned(credential=credential), "credentials").manifest
    return {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}


def test_each_user_may_send_what_it_has_to_and_nobody_may_do_more() -> None:
    exporter = hashlib.sha256(b"exporter" + PASSWORD.encode()).hexdigest()
    assert secret() == {
        "username": "lmcache",
        "password": PASSWORD,
        "redis-url": f"redis://lmcache:{PASSWORD}@{HOST}:6379",
        "exporter-password": exporter,
        "drawn": "0123",
        "users.acl": (
            "user default on nopass sanitize-payload resetkeys resetchannels -@all +ping\n"
            "user lmcache on sanitize-payload ~* resetchannels -@all +get +set +exists +del +ping "
            f"#{hashlib.sha256(PASSWORD.encode()).hexdigest()}\n"
            "user exporter on sanitize-payload resetkeys resetchannels -@all +info +ping "
            f"#{hashlib.sha256(exporter.encode()).hexdigest()}\n"
        ),
    }


def test_only_agents_and_engines_reach_the_server() -> None:
    assert part(planned(), "valkey-network-policy").manifest["spec"] == {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    {"podSelector": {"matchLabels": {"kv-offload.modelplane.ai/tier": INSTANCE}}},
                    {"podSelector": {"matchLabels": {**SELECTOR, "app.kubernetes.io/component": "agent"}}},
                ],
                "ports": [{"port": "valkey", "protocol": "TCP"}],
            }
        ],
    }


MONITORED: dict[str, tuple[Manifest | None, str | None]] = {
    "nobody asks": (None, None),
    "by default": ({}, "monitoring"),
    "from another namespace": ({"prometheusNamespace": "prom"}, "prom"),
    "alerts alone": ({"podMonitors": False}, None),
}


@pytest.mark.parametrize("case", MONITORED)
def test_an_exporter_runs_where_somebody_asks_for_it_and_prometheus_alone_reaches_it(case: str) -> None:
    monitoring, namespace = MONITORED[case]
    fields: dict[str, Any] = {"monitoring": monitoring} if monitoring is not None else {}
    containers = pod(**fields)["containers"]
    rules = part(planned(**fields), "valkey-network-policy").manifest["spec"]["ingress"][1:]
    assert [c["name"] for c in containers] == (["valkey", "exporter"] if namespace else ["valkey"])
    assert rules == (
        [
            {
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}],
                "ports": [{"port": "metrics", "protocol": "TCP"}],
            }
        ]
        if namespace
        else []
    )


def test_the_exporter_is_this_container() -> None:
    assert pod(monitoring={})["containers"][1] == {
        "name": "exporter",
        "image": "oliver006/redis_exporter:v1.88.0",
        "env": [
            {"name": "REDIS_ADDR", "value": "redis://127.0.0.1:6379"},
            {"name": "REDIS_USER", "value": "exporter"},
            {"name": "REDIS_EXPORTER_CONFIG_COMMAND", "value": "-"},
            {"name": "REDIS_EXPORTER_SET_CLIENT_NAME", "value": "false"},
            {"name": "REDIS_EXPORTER_DISABLE_SCRAPE_ENDPOINT", "value": "true"},
            {
                "name": "REDIS_PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": INSTANCE, "key": "exporter-password"}},
            },
        ],
        "ports": [{"name": "metrics", "containerPort": 9121}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "livenessProbe": {"tcpSocket": {"port": "metrics"}, "periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsUser": 59000,
            "runAsGroup": 59000,
        },
    }


# --- agents and engines -------------------------------------------------------------------------------------------

BY_ENV = {
    "LMCACHE_RESP_USERNAME": {"name": INSTANCE, "key": "username", "optional": True},
    "LMCACHE_RESP_PASSWORD": {"name": INSTANCE, "key": "password"},
}


def agents(lmcache: Manifest | None = None, credential: Credential | None = DRAWN_CREDENTIAL) -> Manifest:
    template: Manifest = part(planned(lmcache, credential), "agents").manifest["spec"]["template"]
    return template


def test_agents_speak_to_the_server_with_its_password_and_leave_eviction_to_it() -> None:
    container = agents()["spec"]["containers"][0]
    (adapter,) = (a for a in container["args"] if a.startswith("--l2-adapter="))
    assert json.loads(adapter.partition("=")[2]) == {"type": "resp", "host": HOST, "port": 6379}
    given = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "RESP" in e["name"]}
    assert given == BY_ENV


def test_agents_wait_for_the_server_since_they_connect_once() -> None:
    (wait,) = agents()["spec"]["initContainers"]
    assert wait["command"][0] == "/opt/venv/bin/python"
    assert wait["command"][3:] == [HOST, "6379"]
    compile(wait["command"][2], "wait", "exec")
    assert wait["image"] == agents()["spec"]["containers"][0]["image"]
    assert "initContainers" not in agents({"remote": redis()}, None)["spec"]


ENGINES: dict[str, tuple[str, Manifest]] = {
    "by an agent": (NEW, {}),
    "in process": (MIDDLE, {"LMCACHE_REMOTE_URL": f"resp://{HOST}:6379", **BY_ENV}),
    "in process, with an LMCache that reads URLs": (
        OLD,
        {"LMCACHE_REMOTE_URL": {"name": INSTANCE, "key": "redis-url"}, "LMCACHE_LOG_LEVEL": "WARNING"},
    ),
}


@pytest.mark.parametrize("case", ENGINES)
def test_an_engine_is_given_the_server_in_the_form_that_it_reads(case: str) -> None:
    image, expected = ENGINES[case]
    found = env(attach(tier(provisioned()), engine(image=image)))
    names = {"LMCACHE_REMOTE_URL", "LMCACHE_RESP_USERNAME", "LMCACHE_RESP_PASSWORD", "LMCACHE_LOG_LEVEL"}
    assert {name: value for name, value in found.items() if name in names} == expected


def test_an_engine_that_would_publish_the_url_gets_none() -> None:
    patch = attach(tier(provisioned()), engine(image=OLD, env=[{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]))
    assert "RemoteNotAttached" in {notice.type for notice in patch.notices}
    assert "LMCACHE_REMOTE_URL" not in env(patch)


# --- what restarts the server, and who restarts with it -----------------------------------------------------------

CHANGES: dict[str, tuple[Manifest, Manifest]] = {
    "its memory": (provisioned("65Gi"), {}),
    "its image": (provisioned(), {"images": {"valkey": "valkey/valkey:9.1.5"}}),
    "its exporter": (provisioned(), {"monitoring": {}}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_restarts_the_server_restarts_those_who_would_not_connect_again(case: str) -> None:
    lmcache, fields = CHANGES[case]

    def templates(block: Manifest, **more: Any) -> tuple[Any, Any, Any]:
        found = plan(tier(block, **more), secret=DRAWN_CREDENTIAL)
        patch = attach(tier(block, **more), engine(image=MIDDLE))
        server_, agents_ = (part(found, name).manifest["spec"]["template"] for name in ("valkey", "agents"))
        return server_, agents_["metadata"]["annotations"], patch.annotations

    for before, after in zip(templates(provisioned()), templates(lmcache, **fields), strict=True):
        assert before != after


def test_another_password_restarts_server_and_agents_and_shows_no_hash_of_it() -> None:
    other = Credential({**DRAWN_CREDENTIAL.data, "drawn": "NDU2Nw=="}, "NDU2Nw==")
    same_version = Credential({**DRAWN_CREDENTIAL.data, "password": "eA=="}, DRAWN_CREDENTIAL.version)

    def annotations(credential: Credential) -> list[Manifest]:
        found = planned(credential=credential)
        templates = [part(found, name).manifest["spec"]["template"] for name in ("valkey", "agents")]
        return [template["metadata"]["annotations"] for template in templates]

    for one, another in zip(annotations(DRAWN_CREDENTIAL), annotations(other), strict=True):
        assert one != another
    assert annotations(same_version) == annotations(DRAWN_CREDENTIAL)


def test_an_agent_of_another_redis_has_no_mark_of_a_server() -> None:
    assert "annotations" not in agents({"remote": redis()}, None)["metadata"]


# --- the password -------------------------------------------------------------------------------------------------


def test_a_password_is_asked_for_and_no_secret_is_read() -> None:
    which = tier(provisioned())
    assert of(which.spec).secrets(which) == {"credentials": DRAWN}


def test_the_secret_comes_out_of_what_it_holds() -> None:
    first = part(planned(), "credentials")
    again = part(planned(credential=Credential(first.manifest["data"], DRAWN_CREDENTIAL.version)), "credentials")
    assert again == first


def test_other_rules_reach_the_cluster_and_restart_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> tuple[str, Any]:
        found = planned()
        return part(found, "credentials").version, part(found, "valkey").manifest["spec"]["template"]["metadata"]

    before = seen()
    users = [replace(user, may=user.may.replace("+del", "+del +unlink")) for user in redis_of_lmcache.VALKEY.users]
    monkeypatch.setattr(redis_of_lmcache, "VALKEY", replace(redis_of_lmcache.VALKEY, users=users))
    assert all(now != then for now, then in zip(seen(), before, strict=True))


@pytest.mark.parametrize("data", [{}, {"password": ""}, {"password": "no base64"}], ids=str)
def test_a_secret_that_was_changed_by_hand_is_said(data: dict[str, str]) -> None:
    with pytest.raises(CredentialError) as caught:
        planned(credential=Credential({**data, "drawn": "MDEyMw=="}, "MDEyMw=="))
    assert caught.value.reason == "KeyMissing"


def test_without_its_password_the_server_and_the_agents_are_held() -> None:
    found = planned(credential=None)
    assert list(found.held) == ["credentials", "valkey", "agents"]
    assert {"valkey", "agents"} <= {p.name for p in found.parts}
    assert list(planned(provisioned(lmcache={"mode": "InProcess"}), None).held) == ["credentials", "valkey"]


def story() -> Story:
    """Begin the story of a tier with a Valkey of its own."""

    def change(t: Manifest) -> None:
        t["spec"]["lmcache"]["remote"] = {"redis": {"provision": {"memory": "64Gi"}}}

    begun = tier_story(change)
    del begun.required["Secret"]
    return begun


SECRET, VALKEY, AGENTS = (f"{name}-gke-h200-prod" for name in ("credentials", "valkey", "agents"))


def data(rendered: Rendered) -> dict[str, str]:
    found: dict[str, str] = rendered.composed[SECRET]["spec"]["forProvider"]["manifest"]["data"]
    return found


def test_a_password_is_drawn_at_first_sight_and_stays() -> None:
    life = story()
    first = life.render()
    assert state(first, composer.CREDENTIALS_RESOLVED) == ("True", "Resolved")
    assert first.composite["status"]["secretGenerated"] is True
    assert len(base64.b64decode(data(first)["password"])) == 43
    life.happen()
    second = life.render()
    assert second.composed == first.composed
    assert second.composite["status"]["controlPlane"] == "1/1"
    assert state(second, composer.CONTROL_PLANE_READY) == ("True", "Ready")
    assert state(second, composer.ROLLED_OUT) == ("True", "RolledOut")
    life.happen()
    third = life.render()
    assert (third.composed, third.composite, messages(third)) == (second.composed, second.composite, [])


def test_a_secret_whose_mark_somebody_removed_is_kept_and_said() -> None:
    life = story()
    before = life.settle()
    life.happen()
    for manifest in life.observed:
        manifest["spec"]["forProvider"]["manifest"].get("data", {}).pop("drawn", None)
    rendered = life.render()
    assert state(rendered, composer.CREDENTIALS_RESOLVED) == ("False", "PasswordLost")
    assert data(rendered)["password"] == data(before)["password"]
    assert {key: specs(rendered)[key] for key in (VALKEY, AGENTS)} == {
        key: specs(before)[key] for key in (VALKEY, AGENTS)
    }


def test_two_tiers_draw_two_passwords() -> None:
    assert data(story().render()) != data(story().render())


def test_until_the_server_is_ready_the_tier_is_not() -> None:
    life = story()
    life.render()
    life.happen(ready=0)
    rendered = life.render()
    assert state(rendered, composer.CONTROL_PLANE_READY) == ("False", "NotReady")
    assert rendered.condition(composer.CONTROL_PLANE_READY)["message"] == "valkey 0/1"


def test_a_spec_that_changes_keeps_the_password() -> None:
    life = story()
    before = life.settle()
    life.happen()
    life.composite["spec"]["lmcache"]["remote"]["redis"]["provision"]["memory"] = "128Gi"
    after = life.render()
    assert data(after) == data(before)
    assert specs(after)[SECRET] == specs(before)[SECRET]
    assert specs(after)[VALKEY] != specs(before)[VALKEY]


def lose() -> tuple[Story, Rendered]:
    """Settle a tier, and delete the Object that holds its Secret."""
    life = story()
    before = life.settle()
    life.happen()
    life.observed = [o for o in life.observed if not o["metadata"]["name"].startswith("kvtier-lmcache-h200-credential")]
    return life, before


def test_a_password_that_is_lost_is_never_drawn_again_by_itself() -> None:
    life, before = lose()
    for _ in range(2):
        lost = life.render()
        assert not lost.fatal
        assert state(lost, composer.CREDENTIALS_RESOLVED) == ("False", "PasswordLost")
        assert SECRET not in lost.composed
        assert {key: spec for key, spec in specs(before).items() if key != SECRET} == specs(lost)
        assert lost.composite["status"]["secretGenerated"] is True
        life.happen()


def test_while_it_is_lost_what_depends_on_it_stays_as_it_is() -> None:
    life, before = lose()
    life.composite["spec"]["lmcache"]["cpuTierGiBPerNode"] = 128
    lost = life.render()
    assert specs(lost)[AGENTS] == specs(before)[AGENTS]
    assert state(lost, composer.ROLLED_OUT) == ("False", "Held")
    assert lost.condition(composer.ROLLED_OUT)["message"] == (
        "These stay as they are until a Secret is there: agents, valkey"
    )


def test_what_the_message_says_draws_another_and_restarts_server_and_agents() -> None:
    life, before = lose()
    said = life.render().condition(composer.CREDENTIALS_RESOLVED)["message"]
    assert '-p \'{"status":{"secretGenerated":false}}\'' in said
    life.composite["status"]["secretGenerated"] = False
    again = life.render()
    assert data(again)["password"] != data(before)["password"]
    assert again.composite["status"]["secretGenerated"] is True
    for key in (VALKEY, AGENTS):
        was, now = (
            r.composed[key]["spec"]["forProvider"]["manifest"]["spec"]["template"]["metadata"]["annotations"]
            for r in (before, again)
        )
        assert was != now


def test_another_secret_that_is_too_bad_to_use_loses_no_password() -> None:
    life = story()
    before = life.settle()
    life.happen()
    key = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k", "namespace": "modelplane-system"}}
    life.required["Secret"] = {**key, "data": {"key": "c2hvcnQ="}}
    life.composite["spec"]["lmcache"]["encryption"] = {"secretRef": {"name": "k"}}
    rendered = life.render()
    assert state(rendered, composer.CREDENTIALS_RESOLVED) == ("False", "KeyTooShort")
    assert {k: specs(rendered)[k] for k in (SECRET, VALKEY, AGENTS)} == {
        k: specs(before)[k] for k in (SECRET, VALKEY, AGENTS)
    }


def test_an_unresolved_cluster_draws_nothing_that_counts() -> None:
    life = story()
    del life.required["InferenceCluster"]
    rendered = life.render()
    assert rendered.composed == {}
    assert "secretGenerated" not in rendered.composite["status"]


def test_a_redis_of_the_users_gives_way_to_a_drawn_password() -> None:
    life = tier_story()
    life.settle()
    life.happen()
    theirs = base64.b64encode(examples.PASSWORD.encode()).decode()
    life.composite["spec"]["lmcache"]["remote"] = {"redis": {"provision": {"memory": "64Gi"}}}
    rendered = life.render()
    assert data(rendered)["password"] != theirs
    assert data(rendered)["drawn"]
    life.happen()
    assert data(life.render()) == data(rendered)


def test_a_drawn_password_gives_way_to_a_redis_of_the_users_and_is_forgotten() -> None:
    life = story()
    drawn = data(life.settle())["password"]
    life.happen()
    life.composite["spec"]["lmcache"]["remote"] = {"redis": {"host": "kv.cache.svc"}}
    rendered = life.render()
    assert not {SECRET, VALKEY} & set(rendered.composed)
    assert "secretGenerated" not in rendered.composite["status"]
    life.happen()
    life.composite["spec"]["lmcache"]["remote"] = {"redis": {"provision": {"memory": "64Gi"}}}
    assert data(life.render())["password"] != drawn


def test_nothing_but_the_secret_shows_what_was_drawn() -> None:
    life = story()
    life.composite["spec"]["monitoring"] = {}
    for _ in range(3):
        rendered = life.render()
        shown = copy.deepcopy(rendered.composed)
        held = shown.pop(SECRET)
        values = held["spec"]["forProvider"]["manifest"].pop("data")
        everything = json.dumps([rendered.composite, shown, held, rendered.results])
        for key in ("password", "exporter-password", "users.acl", "redis-url", "drawn"):
            for form in (values[key], base64.b64decode(values[key]).decode()):
                assert form not in everything
        password = base64.b64decode(values["password"])
        for digest in (hashlib.sha256(password).hexdigest(), hashlib.sha256(values["password"].encode()).hexdigest()):
            assert digest[:12] not in everything
        life.happen()


def test_a_patch_of_an_engine_holds_no_password() -> None:
    patch = attach(tier(provisioned()), engine(image=OLD))
    assert EnginePatch.from_json(patch.to_json()).to_json() == patch.to_json()
    assert "redis://" not in patch.to_json()


# --- what users may write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["1Mi", "1023Mi", "0", "", "-1Gi", "many"])
def test_memory_is_a_quantity_of_at_least_a_gibibyte(memory: str) -> None:
    with pytest.raises(Invalid, match=r"spec\.lmcache\.remote\.redis\.provision\.memory"):
        tier(provisioned(memory))


def test_defaults_of_persistence_are_the_same_with_and_without_the_xrds() -> None:
    written, defaulted = (
        server(provisioned(persistence=volume))["spec"]["volumeClaimTemplates"] for volume in ({}, {"size": "8Gi"})
    )
    assert written == defaulted
