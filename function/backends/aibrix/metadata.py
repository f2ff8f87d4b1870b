"""Where a store's members are written down for its clients: a Redis that is there, or a Valkey of the tier's own.

AIBrix's kvcache-watcher writes them under one key, as the default user, and clients read that every 30 seconds. A
client that finds nothing there fails at start, or never looks again (meta_service/redis_meta_service.py), so the
tier's own Valkey is not ready before there is something.
"""

import base64
from collections.abc import Mapping
from urllib.parse import quote

from function import kube, workloads
from function.api.tier import Metadata, Provision
from function.backends.base import CREDENTIALS, DRAWN, Credential, CredentialError, Part, Tier, given
from function.stores import valkey

PREFIX = "AIBRIX_KV_CACHE_OL_"
# Labels of what AIBrix's controller makes (pkg/constants/kvcache.go).
LABEL_NAME = "kvcache.orchestration.aibrix.ai/name"
LABEL_ROLE = "kvcache.orchestration.aibrix.ai/role"
WATCHER = "kvwatcher"

# By this Service the watcher reaches a Valkey that is not ready yet.
_MEMBERS = "members"
_URL_KEY = "redis-url"
_ENGINE = valkey.User("engine", "~{key} resetchannels -@all +get +ping", "engine-password")
_PROBE = ("valkey-cli", "--no-auth-warning", "--user", "probe", "--pass", "none", "-e")


def of(tier: Tier) -> Metadata | None:
    """Give where the members of the tier's store are written down; None for a store without members."""
    return given(tier.spec.aibrix).metadata


def provisioned(tier: Tier) -> bool:
    """Whether the tier runs the Redis with the members itself."""
    found = of(tier)
    return found is not None and found.redis.provision is not None


def key(tier: Tier) -> str:
    """Name the key that the watcher writes (cmd/kvcache-watcher/main.go)."""
    l2 = given(tier.spec.aibrix).l2
    return "hpkv_cluster_metadata" if l2 and l2.hpkv else "kvcache_nodes"


def secret_name(tier: Tier) -> str | None:
    """Name the Secret with the password; DRAWN for a Valkey of the tier's own, None where there is no password."""
    found = of(tier)
    if found is None:
        return None
    ref = found.redis.secret_ref
    return DRAWN if found.redis.provision else ref.name if ref else None


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the Secret with the watcher's password, and the URL by which engines read.

    Raises:
        CredentialError: it lacks the password, or that is no text.
    """
    redis = given(of(tier)).redis
    if redis.provision:
        use = _use(tier)
        data, source, user, named = use.secret_data(credential), use.version, _ENGINE.name, _ENGINE.password_key
    else:
        ref = given(redis.secret_ref)
        if not credential.data.get(ref.key):
            raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {ref.key!r}")
        data, source, user = {valkey.PASSWORD_KEY: credential.data[ref.key]}, ref.key, ""
        named = valkey.PASSWORD_KEY
    try:
        password = base64.b64decode(data[named]).decode()
    except ValueError:
        raise CredentialError("NotText", "the password of the members' Redis must be UTF-8 text") from None
    url = f"redis://{user}:{quote(password, safe='')}@{address(tier)}"
    data[_URL_KEY] = base64.b64encode(url.encode()).decode()
    return workloads.secret(tier, CREDENTIALS, data, f"{credential.version} {source} {address(tier)}")


def parts(tier: Tier, credential: Credential | None, watcher: Mapping[str, str]) -> list[Part]:
    """Plan the Valkey that the tier runs itself, apart from its Secret; nothing where another one is given.

    Args:
        tier: The tier.
        credential: What was drawn; None while it is not known, when the server has to be held.
        watcher: The labels of the pods that may write.
    """
    provision = given(of(tier)).redis.provision
    if provision is None:
        return []
    port = {valkey.COMPONENT: valkey.PORT}
    clients = [workloads.engines(tier), watcher]
    return [
        *valkey.parts(tier, _use(tier), Provision(memory=provision.memory), credential, clients),
        workloads.service(tier, valkey.COMPONENT, port, headless=True, name=_MEMBERS),
    ]


def address(tier: Tier) -> str:
    """Give the host:port at which engines read."""
    redis = given(of(tier)).redis
    return f"{redis.host}:{redis.port}" if redis.host else f"{tier.host(valkey.COMPONENT)}:{valkey.PORT}"


def reader(tier: Tier) -> list[kube.Manifest]:
    """Write the variables by which engines find the members."""
    url: kube.Manifest = {"name": f"{PREFIX}META_SERVICE_URL"}
    if secret_name(tier) is None:
        url["value"] = f"redis://{address(tier)}"
    else:
        url["valueFrom"] = {"secretKeyRef": {"name": tier.instance, "key": _URL_KEY}}
    names = {"META_SERVICE_BACKEND": "REDIS", "META_SERVICE_CLUSTER_META_KEY": key(tier)}
    return [*workloads.variables({f"{PREFIX}{name}": value for name, value in names.items()}), url]


def writer(tier: Tier) -> list[kube.Manifest]:
    """Write the watcher's variables; later ones of a name win, so these replace what the controller says."""
    redis = given(of(tier)).redis
    at = address(tier) if redis.host else f"{tier.host(_MEMBERS)}:{valkey.PORT}"
    password = {"secretKeyRef": {"name": tier.instance, "key": valkey.PASSWORD_KEY}}
    return [
        {"name": "REDIS_ADDR", "value": at},
        *([{"name": "REDIS_PASSWORD", "valueFrom": password}] if secret_name(tier) is not None else []),
    ]


def _use(tier: Tier) -> valkey.Use:
    """Say who may do what: the watcher speaks by go-redis, in a transaction."""
    name = key(tier)
    users = (
        valkey.User(
            valkey.NOBODY,
            f"~{name} resetchannels -@all +get +set +multi +exec +ping",
            valkey.PASSWORD_KEY,
        ),
        valkey.User(_ENGINE.name, _ENGINE.may.format(key=name), _ENGINE.password_key),
        # It may say any password.
        valkey.User("probe", f"~{name} resetchannels -@all +exists +ping"),
    )
    ready = ("sh", "-c", f'test "$({" ".join(_PROBE)} exists {name})" = 1')
    return valkey.Use(users, alive=(*_PROBE, "ping"), ready=ready, cpu="100m")
