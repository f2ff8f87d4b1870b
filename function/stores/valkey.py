"""A Valkey that a tier provisions: one server, which drops what was least used, behind a password that was drawn."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from function import kube, sizing, workloads
from function.api.tier import Provision
from function.backends.base import CREDENTIALS, DRAWN_AT, Credential, CredentialError, Part, Tier

COMPONENT = "valkey"
PORT = 6379
METRICS_PORT = 9121
PASSWORD_KEY = "password"  # noqa: S105 (a key, no password)
NOBODY = "default"

_USER = 999
_EXPORTER_USER = 59000
_CONFIG = "/etc/valkey"
_CONF = "valkey.conf"
_ACL = "users.acl"
_DATA = "/data"
# A snapshot is written by a fork, whose copy of what changes meanwhile needs as much again.
_SHARE, _SHARE_SAVED = 75, 45


@dataclass(frozen=True)
class User:
    """A user of a store: the keys and commands that it may use, as an ACL file says it.

    `password_key` is the key of the store's Secret that holds its password, which is drawn where that is PASSWORD_KEY,
    and made from the drawn one where it is another; empty for a user that needs none. Whoever says no name is NOBODY.
    """

    name: str
    may: str
    password_key: str = ""

    def password(self, drawn: bytes) -> str:
        """Give its password, which is not told by another user's."""
        if self.password_key == PASSWORD_KEY:
            return drawn.decode()
        return hashlib.sha256(self.name.encode() + drawn).hexdigest()

    def rule(self, password: str) -> str:
        """Write its line of an ACL file; what a version does not know would keep the server from starting."""
        words = ["user", self.name, "on", *([] if self.password_key else ["nopass"]), "sanitize-payload", self.may]
        if self.password_key:
            words.append(f"#{hashlib.sha256(password.encode()).hexdigest()}")
        return " ".join(words)


_EXPORTER = User("exporter", "resetkeys resetchannels -@all +info +ping", "exporter-password")


@dataclass(frozen=True)
class Use:
    """What a store is for: who may do what in it, and the commands by which its pod is found alive, and ready.

    `cpu` is what its pod asks for.
    """

    users: Sequence[User]
    alive: Sequence[str] = ("valkey-cli", "-e", "ping")
    ready: Sequence[str] = ("valkey-cli", "-e", "ping")
    cpu: str = "2"

    @property
    def version(self) -> str:
        """Stand for what is in the Secret beside what was drawn."""
        return kube.digest([vars(user) for user in self._all])[:12]

    @property
    def _all(self) -> Sequence[User]:
        return [*self.users, _EXPORTER]

    def secret_data(self, credential: Credential) -> dict[str, str]:
        """Make the keys of the store's Secret from a drawn password, the same on every pass.

        Args:
            credential: What was drawn, or what the Secret was observed to hold.

        Returns:
            Base64 by key.

        Raises:
            CredentialError: the Secret was changed by hand, and holds no password any more.
        """
        try:
            drawn = base64.b64decode(credential.data.get(PASSWORD_KEY, ""), validate=True)
            passwords = {user.name: user.password(drawn) for user in self._all}
        except ValueError:
            drawn, passwords = b"", {}
        if not drawn:
            raise CredentialError("KeyMissing", f"the Secret of the tier's Valkey has no readable key {PASSWORD_KEY!r}")
        acl = "".join(f"{user.rule(passwords[user.name])}\n" for user in self._all)
        return {
            DRAWN_AT: credential.version,
            **{user.password_key: _encode(passwords[user.name]) for user in self._all if user.password_key},
            _ACL: _encode(acl),
        }


def parts(
    tier: Tier, use: Use, provision: Provision, credential: Credential | None, clients: Sequence[Mapping[str, str]]
) -> list[Part]:
    """Plan the server and what stands around it, apart from its Secret, which is CREDENTIALS and has the tier's name.

    Args:
        tier: The tier.
        use: What it is for.
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
        _server(tier, use, provision, credential.version if credential else ""),
    ]


def revision(tier: Tier, use: Use, provision: Provision, version: str = "") -> str:
    """Stand for what restarts the server, with the version of what was drawn where that is known.

    LMCache's resp clients connect once: whoever holds one has to restart with the server.
    """
    return kube.digest(_template(tier, use, provision, version))[:12]


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


def _server(tier: Tier, use: Use, provision: Provision, version: str) -> Part:
    template, lost = _template(tier, use, provision, version), "and what it holds is gone"
    return workloads.stateful_set(
        tier, COMPONENT, template, replicas=1, volume=provision.persistence, lost=lost, after=CREDENTIALS
    )


def _template(tier: Tier, use: Use, provision: Provision, version: str) -> kube.Manifest:
    saved = provision.persistence is not None
    alive, ready = (
        {"exec": {"command": list(command)}, "timeoutSeconds": 5, "periodSeconds": 5}
        for command in (use.alive, use.ready)
    )
    memory = {"memory": provision.memory}
    server = {
        "name": COMPONENT,
        "image": tier.spec.images.valkey or tier.release.valkey_image,
        "command": ["valkey-server", f"{_CONFIG}/{_CONF}"],
        "ports": [{"name": COMPONENT, "containerPort": PORT}],
        "resources": {"requests": {"cpu": use.cpu, **memory}, "limits": memory},
        # It answers once it has read what it saved, which takes its time.
        "startupProbe": alive | {"failureThreshold": 720 if saved else 60},
        "readinessProbe": ready,
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
            kube.ANNOTATION_CONFIG: kube.digest([_conf(provision), use.version, version])[:12],
        },
    }
    return {"metadata": metadata, "spec": pod}


def _exporter(tier: Tier) -> kube.Manifest:
    password = {"secretKeyRef": {"name": tier.instance, "key": _EXPORTER.password_key}}
    settings = {
        "REDIS_ADDR": f"redis://127.0.0.1:{PORT}",
        "REDIS_USER": _EXPORTER.name,
        # Its user may neither ask for settings nor name its connection.
        "REDIS_EXPORTER_CONFIG_COMMAND": "-",
        "REDIS_EXPORTER_SET_CLIENT_NAME": "false",
        # Else whoever reaches it has it send the password anywhere.
        "REDIS_EXPORTER_DISABLE_SCRAPE_ENDPOINT": "true",
    }
    return {
        "name": _EXPORTER.name,
        "image": tier.spec.images.exporter or tier.release.exporter_image,
        "env": [*workloads.variables(settings), {"name": "REDIS_PASSWORD", "valueFrom": password}],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "livenessProbe": {"tcpSocket": {"port": "metrics"}, "periodSeconds": 10},
        "securityContext": {**workloads.CONFINED, "runAsUser": _EXPORTER_USER, "runAsGroup": _EXPORTER_USER},
    }
