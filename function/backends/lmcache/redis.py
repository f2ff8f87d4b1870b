"""The Redis behind a tier: its Secret, and how agents and engines are given host and credentials."""

import base64
from urllib.parse import quote

from function import kube
from function.api.tier import Redis
from function.backends.base import CREDENTIALS, Credential, CredentialError, Notice, Part, Tier, given
from function.engines import Engine, versions

URL_KEY = "redis-url"
REMOTE = "LMCACHE_REMOTE_URL"
# A user's value for one of these, beside a URL that holds the password, would publish it.
LEAKS = ("LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE")


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the one copy of the credentials: the keys that are used, and the URL that old LMCache versions need.

    Raises:
        CredentialError: the Secret lacks the password, or holds one that LMCache cannot be given.
    """
    redis, ref = given(tier.spec.lmcache).redis, given(tier.spec.lmcache).secret_ref
    assert redis and ref  # a credential is only read for a Redis with a secretRef
    password = credential.data.get(ref.password_key)
    if not password:
        raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {ref.password_key!r}")
    data = {"password": password}
    username = credential.data.get(ref.username_key)
    if username:
        data["username"] = username
    data[URL_KEY] = _encode(_url_with(redis, _decode(username or ""), _decode(password)))
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": tier.metadata(),
        "type": "Opaque",
        "data": data,
    }
    # The bytes stay out of the part's hash; what else goes into the URL does not.
    version = f"{credential.version} {ref.username_key} {ref.password_key} {url(redis)}"
    return Part(CREDENTIALS, manifest, version=version)


def _decode(data: str) -> str:
    try:
        return base64.b64decode(data).decode()
    except ValueError:
        raise CredentialError("NotText", "the Redis username and password must be UTF-8 text") from None


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def url(redis: Redis, userinfo: str = "") -> str:
    """Write a Redis as LMCache's URL, `userinfo` (user:password@) as given."""
    scheme = "redis-cluster" if redis.mode == "Cluster" else "rediss" if redis.tls else "redis"
    return f"{scheme}://{userinfo}{redis.host}:{redis.port}"


def _url_with(redis: Redis, username: str, password: str) -> str:
    """Write the URL with credentials. redis-py decodes percent signs; LMCache's own parser of a cluster's does not."""
    if redis.mode == "Cluster":
        if "@" in username + password or ":" in username:
            raise CredentialError(
                "NotExpressible",
                "LMCache cannot read a Redis Cluster password with '@', nor a username with '@' or ':'; choose another",
            )
        return url(redis, f"{username}:{password}@")
    return url(redis, f"{quote(username, safe='')}:{quote(password, safe='')}@")


def resp_env(tier: Tier) -> list[kube.Manifest]:
    """Give the credentials to an agent or an engine that speaks resp; nothing for a Redis without any."""
    ref = given(tier.spec.lmcache).secret_ref
    if not ref:
        return []
    name = ref.name if ref.on_cluster else tier.instance
    username = ref.username_key if ref.on_cluster else "username"
    password = ref.password_key if ref.on_cluster else "password"
    return [
        _from_secret("LMCACHE_RESP_USERNAME", name, username, optional=True),
        _from_secret("LMCACHE_RESP_PASSWORD", name, password),
    ]


def _from_secret(env: str, name: str, key: str, *, optional: bool = False) -> kube.Manifest:
    ref: kube.Manifest = {"name": name, "key": key}
    return {"name": env, "valueFrom": {"secretKeyRef": ref | ({"optional": True} if optional else {})}}


def remote_env(tier: Tier, engine: Engine, oldest: versions.Version) -> tuple[list[kube.Manifest], list[Notice]]:
    """Give an in-process engine the Redis and its credentials in the form that its LMCache reads, or say why not."""
    redis, ref = given(tier.spec.lmcache).redis, given(tier.spec.lmcache).secret_ref
    if not redis:
        return [], []
    if not redis.tls and redis.mode == "Standalone" and oldest >= versions.LMCACHE_RESP:
        remote = {"name": REMOTE, "value": f"resp://{redis.host}:{redis.port}"}
        return [remote, *resp_env(tier)], []
    why = None
    if redis.mode == "Cluster" and oldest < versions.LMCACHE_CLUSTER:
        why = (
            f"its LMCache may be {versions.show(oldest)}, which logs the password of a redis-cluster URL it cannot read"
        )
    elif ref and ref.on_cluster and not ref.url_key:
        why = "its LMCache wants a URL; set remote.redis.secretRef.urlKey to the key that holds it"
    elif leaks := ref and [name for name in LEAKS if name in engine.env_names]:
        why = f"its LMCache wants the password in a URL, which {leaks[0]} could publish; remove it from engine.env"
    if why:
        return [], [Notice("RemoteNotAttached", "NoSafeWay", f"the engine runs without the tier's Redis: {why}")]
    if not ref:
        return [{"name": REMOTE, "value": url(redis)}], []
    name = ref.name if ref.on_cluster else tier.instance
    return [
        # These versions log the URL, password and all, at INFO.
        {"name": "LMCACHE_LOG_LEVEL", "value": "WARNING"},
        _from_secret(REMOTE, name, ref.url_key if ref.on_cluster and ref.url_key else URL_KEY),
    ], []
