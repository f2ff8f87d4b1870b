"""A Valkey that a tier provisions: one server, which drops what was least used, behind a password that was drawn."""

import base64
import hashlib
from collections.abc import Mapping, Sequence

from function import kube, sizing, workloads
from function.api.tier import Provision
from function.backends.base import CREDENTIALS, DRAWN_AT, Credential, CredentialError, Part, Tier

COMPONENT = "valkey"
PORT = 6379
METRICS_PORT = 9121
USERNAME = "lmcache"
USERNAME_KEY = "username"
PASSWORD_KEY = "password"  # noqa: S105 (a key, no password)

_USER = 999
_EXPORTER = "exporter"
_EXPORTER_USER = 59000
_EXPORTER_KEY = "exporter-password"
_CONFIG = "/etc/valkey"
_CONF = "valkey.conf"
_ACL = "users.acl"
_DATA = "/data"
# A snapshot is written by a fork, whose copy of what changes meanwhile needs as much again.
_SHARE, _SHARE_SAVED = 75, 45
# Whoever is nobody may ask whether it lives, as probes do. No user may do more than its job: LMCache's clients send
# these five commands, the exporter these two. What a version does not know would keep it from starting.
_RULES = f"""\
user default on nopass sanitize-payload resetkeys resetchannels -@all +ping
user {USERNAME} on sanitize-payload ~* resetchannels -@all +get +set +exists +del +ping #{{password}}
user {_EXPORTER} on sanitize-payload resetkeys resetchannels -@all +info +ping #{{exporter}}
"""


def secret_data(credential: Credential) -> dict[str, str]:
    """Make the keys of the store's Secret from a drawn password, the same on every pass.

    Args:
        credential: What was drawn, or what the Secret was observed to hold.

    Returns:
        Base64 by key.

    Raises:
        CredentialError: the Secret was changed by hand, and holds no password any more.
    """
    try:
        password = base64.b64decode(credential.data.get(PASSWORD_KEY, ""), validate=True)
    except ValueError:
        password = b""
    if not password:
        raise CredentialError("KeyMissing", f"the Secret of the tier's Valkey has no readable key {PASSWORD_KEY!r}")
    exporter = hashlib.sha256(b"exporter" + password).hexdigest()
    acl = _RULES.format(password=hashlib.sha256(password).hexdigest(), exporter=kube.digest(exporter))
    return {
        PASSWORD_KEY: credential.data[PASSWORD_KEY],
        DRAWN_AT: credential.version,
        **{key: _encode(text) for key, text in {USERNAME_KEY: USERNAME, _EXPORTER_KEY: exporter, _ACL: acl}.items()},
    }


def rules_version() -> str:
    """Stand for what is in the Secret beside what was drawn."""
    return kube.digest(_RULES)[:12]


def parts(
    tier: Tier, provision: Provision, credential: Credential | None, clients: Sequence[Mapping[str, str]]
) -> list[Part]:
    """Plan the server and what stands around it, apart from its Secret, which is CREDENTIALS and has the tier's name.

    Args:
        tier: The tier.
        provision: What was asked for.
        credential: What was drawn; None while it is not known, when the server has to be held.
        clients: The sets of labels of the pods that may ask it.

    Returns:
        ConfigMap, Service, NetworkPolicy and StatefulSet.
    """
    rules = [workloads.from_pods(clients, [COMPONENT]), *workloads.from_prometheus(tier, ["metrics"])]
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": tier.metadata(COMPONENT, COMPONENT),
        "data": {_CONF: _conf(provision)},
    }
    return [
        Part(f"{COMPONENT}-config", config),
        workloads.service(tier, COMPONENT, {COMPONENT: PORT}),
        workloads.network_policy(tier, COMPONENT, rules, COMPONENT),
        _server(tier, provision, credential.version if credential else ""),
    ]


def revision(tier: Tier, provision: Provision, version: str = "") -> str:
    """Stand for what restarts the server, with the version of what was drawn where that is known.

    LMCache's resp clients connect once: whoever holds one has to restart with the server.
    """
    return kube.digest(_template(tier, provision, version))[:12]


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _conf(provision: Provision) -> str:
    saved = provision.persistence is not None
    maxmemory = sizing.quantity(provision.memory) * (_SHARE_SAVED if saved else _SHARE) // 100
    lines = [
        "bind * -::*",
        f"port {PORT}",
        "protected-mode no",
        f"aclfile {_CONFIG}/{_ACL}",
        "maxclients 10000",
        f"maxmemory {maxmemory}",
        "maxmemory-policy allkeys-lru",
        "lazyfree-lazy-eviction yes",
        f"dir {_DATA}",
        "appendonly no",
        # A full disk must not stop the cache.
        *(["save 900 1", "stop-writes-on-bgsave-error no"] if saved else ['save ""']),
    ]
    return "\n".join([*lines, ""])


def _server(tier: Tier, provision: Provision, version: str) -> Part:
    template, lost = _template(tier, provision, version), "and what it holds is gone"
    return workloads.stateful_set(
        tier, COMPONENT, template, replicas=1, volume=provision.persistence, lost=lost, after=CREDENTIALS
    )


def _template(tier: Tier, provision: Provision, version: str) -> kube.Manifest:
    saved = provision.persistence is not None
    ping = {"exec": {"command": ["valkey-cli", "-e", "ping"]}, "timeoutSeconds": 5, "periodSeconds": 5}
    memory = {"memory": provision.memory}
    server = {
        "name": COMPONENT,
        "image": tier.spec.images.valkey or tier.release.valkey_image,
        "command": ["valkey-server", f"{_CONFIG}/{_CONF}"],
        "ports": [{"name": COMPONENT, "containerPort": PORT}],
        "resources": {"requests": {"cpu": "2", **memory}, "limits": memory},
        # It answers once it has read what it saved, which takes its time.
        "startupProbe": ping | {"failureThreshold": 720 if saved else 60},
        "readinessProbe": ping,
        # It may be busy for long, and is not dead then.
        "livenessProbe": {"tcpSocket": {"port": COMPONENT}, "periodSeconds": 10},
        "securityContext": dict(workloads.CONFINED),
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "data", "mountPath": _DATA},
        ],
    }
    config = {
        # The server's group may read it, and nobody else.
        "defaultMode": 0o440,
        "sources": [
            {"configMap": {"name": tier.named(COMPONENT), "items": [{"key": _CONF, "path": _CONF}]}},
            {"secret": {"name": tier.instance, "items": [{"key": _ACL, "path": _ACL}]}},
        ],
    }
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "securityContext": workloads.confined_pod(_USER),
            # It saves once more before it goes.
            "terminationGracePeriodSeconds": 600 if saved else None,
            "containers": [server, *([_exporter(tier)] if workloads.from_prometheus(tier, ["metrics"]) else [])],
            "volumes": [
                {"name": "config", "projected": config},
                *([] if saved else [{"name": "data", "emptyDir": {"sizeLimit": "64Mi"}}]),
            ],
        }
    )
    metadata = {
        "labels": tier.selector(COMPONENT) | kube.MANAGED_BY,
        # It reads its files at start alone.
        "annotations": {
            f"{kube.DOMAIN}/config-hash": kube.digest([_conf(provision), rules_version(), version])[:12],
        },
    }
    return {"metadata": metadata, "spec": pod}


def _exporter(tier: Tier) -> kube.Manifest:
    password = {"secretKeyRef": {"name": tier.instance, "key": _EXPORTER_KEY}}
    settings = {
        "REDIS_ADDR": f"redis://127.0.0.1:{PORT}",
        "REDIS_USER": _EXPORTER,
        # Its user may neither ask for settings nor name its connection.
        "REDIS_EXPORTER_CONFIG_COMMAND": "-",
        "REDIS_EXPORTER_SET_CLIENT_NAME": "false",
        # Else whoever reaches it has it send the password anywhere.
        "REDIS_EXPORTER_DISABLE_SCRAPE_ENDPOINT": "true",
    }
    return {
        "name": _EXPORTER,
        "image": tier.spec.images.exporter or tier.release.exporter_image,
        "env": [*workloads.variables(settings), {"name": "REDIS_PASSWORD", "valueFrom": password}],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "livenessProbe": {"tcpSocket": {"port": "metrics"}, "periodSeconds": 10},
        "securityContext": {**workloads.CONFINED, "runAsUser": _EXPORTER_USER, "runAsGroup": _EXPORTER_USER},
    }
