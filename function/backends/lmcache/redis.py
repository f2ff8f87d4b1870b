"""The Redis behind a tier: its Secret, and how agents and engines are given host and credentials."""

import base64
from dataclasses import dataclass, replace
from urllib.parse import quote

from function import kube, workloads
from function.api.tier import SecretRef
from function.backends.base import CREDENTIALS, Credential, CredentialError, Notice, Part, Tier, given
from function.engines import Engine, table, versions
from function.stores import valkey

URL_KEY = "redis-url"
REMOTE = "LMCACHE_REMOTE_URL"
# A user's value for one of these, beside a URL that holds the password, would publish it.
LEAKS = ("LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE")

_CLUSTER = "redis-cluster"
_USERNAME_KEY = "username"
_USERNAME = "lmcache"
# Whoever is nobody may ask whether it lives, as probes do; LMCache's clients send these five commands.
VALKEY = valkey.Use(
    (
        valkey.User(valkey.NOBODY, "resetkeys resetchannels -@all +ping"),
        valkey.User(_USERNAME, "~* resetchannels -@all +get +set +exists +del +ping", valkey.PASSWORD_KEY),
    )
)


@dataclass(frozen=True)
class Endpoint:
    """Where a tier's Redis is, and the Secret on the inference cluster that holds its credentials.

    `scheme` is that of LMCache's URL. `secret` is empty for a Redis without credentials, `url_key` for a Secret without
    a whole URL. `revision` changes with what restarts a server of the tier's own.
    """

    host: str
    port: int
    scheme: str = "redis"
    secret: str = ""
    username_key: str = _USERNAME_KEY
    password_key: str = valkey.PASSWORD_KEY
    url_key: str = URL_KEY
    revision: str = ""

    @property
    def resp(self) -> bool:
        """Whether LMCache's resp adapter speaks to it: one server, without TLS."""
        return self.scheme == "redis"

    def url(self, userinfo: str = "") -> str:
        """Write LMCache's URL, `userinfo` (user:password@) as given."""
        return f"{self.scheme}://{userinfo}{self.host}:{self.port}"


def endpoint(tier: Tier) -> Endpoint | None:
    """Give the tier's Redis: the user's or the tier's own; None where there is none."""
    redis = given(tier.spec.lmcache).redis
    if redis is None:
        return None
    if redis.provision:
        revision = valkey.revision(tier, VALKEY, redis.provision)
        return Endpoint(tier.host(valkey.COMPONENT), valkey.PORT, secret=tier.instance, revision=revision)
    scheme = _CLUSTER if redis.mode == "Cluster" else "rediss" if redis.tls else "redis"
    found, ref = Endpoint(given(redis.host), redis.port, scheme), redis.secret_ref
    if ref is None:
        return found
    if not ref.on_cluster:
        return replace(found, secret=tier.instance)
    return replace(
        found,
        secret=ref.name,
        username_key=ref.username_key,
        password_key=ref.password_key,
        url_key=ref.url_key or "",
    )


def restarts(tier: Tier) -> list[str]:
    """Say what of a Redis restarts the engines that read it in process: where it is, and a restart of our own."""
    to = endpoint(tier)
    return [to.url() if to else "", *([to.revision] if to and to.revision else [])]


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the one Secret with the credentials: the keys that are used, and the URL that old LMCache versions need.

    Raises:
        CredentialError: the Secret lacks the password, or holds one that LMCache cannot be given.
    """
    to, ref = given(endpoint(tier)), given(tier.spec.lmcache).secret_ref
    if ref:
        data = _copied(tier, ref, credential)
        source = f"{ref.username_key} {ref.password_key}"
    else:
        data = {_USERNAME_KEY: _encode(_USERNAME), **VALKEY.secret_data(credential)}
        source = VALKEY.version
    username, password = (_decode(data.get(key, "")) for key in (_USERNAME_KEY, valkey.PASSWORD_KEY))
    data[URL_KEY] = _encode(_url_with(to, username, password))
    # The bytes stay out of the part's hash; what else goes into them does not.
    return workloads.secret(tier, CREDENTIALS, data, f"{credential.version} {source} {to.url()}")


def _copied(tier: Tier, ref: SecretRef, credential: Credential) -> dict[str, str]:
    password = credential.data.get(ref.password_key)
    if not password:
        raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {ref.password_key!r}")
    username = credential.data.get(ref.username_key)
    return {valkey.PASSWORD_KEY: password} | ({_USERNAME_KEY: username} if username else {})


def _decode(data: str) -> str:
    try:
        return base64.b64decode(data).decode()
    except ValueError:
        raise CredentialError("NotText", "the Redis username and password must be UTF-8 text") from None


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _url_with(to: Endpoint, username: str, password: str) -> str:
    """Write the URL with credentials. redis-py decodes percent signs; LMCache's own parser of a cluster's does not."""
    if to.scheme == _CLUSTER:
        if "@" in username + password or ":" in username:
            raise CredentialError(
                "NotExpressible",
                "LMCache cannot read a Redis Cluster password with '@', nor a username with '@' or ':'; choose another",
            )
        return to.url(f"{username}:{password}@")
    return to.url(f"{quote(username, safe='')}:{quote(password, safe='')}@")


def resp_env(to: Endpoint) -> list[kube.Manifest]:
    """Give the credentials to an agent or an engine that speaks resp; nothing for a Redis without any."""
    if not to.secret:
        return []
    return [
        _from_secret("LMCACHE_RESP_USERNAME", to.secret, to.username_key, optional=True),
        _from_secret("LMCACHE_RESP_PASSWORD", to.secret, to.password_key),
    ]


def _from_secret(env: str, name: str, key: str, *, optional: bool = False) -> kube.Manifest:
    ref: kube.Manifest = {"name": name, "key": key}
    return {"name": env, "valueFrom": {"secretKeyRef": ref | ({"optional": True} if optional else {})}}


def remote_env(tier: Tier, engine: Engine, oldest: versions.Version) -> tuple[list[kube.Manifest], list[Notice]]:
    """Give an in-process engine the Redis and its credentials in the form that its LMCache reads, or say why not."""
    to = endpoint(tier)
    if not to:
        return [], []
    if given(tier.spec.lmcache).encryption:
        return [], [_not_attached("Encrypted", "what lies in it is encrypted, which agents can do and engines cannot")]
    if to.resp and table.LMCACHE_RESP.holds(oldest):
        remote = {"name": REMOTE, "value": f"resp://{to.host}:{to.port}"}
        return [remote, *resp_env(to)], []
    why = None
    if to.scheme == _CLUSTER and not table.LMCACHE_CLUSTER.holds(oldest):
        why = (
            f"its LMCache may be {versions.show(oldest)}, which logs the password of a redis-cluster URL it cannot read"
        )
    elif not to.url_key:
        why = "its LMCache wants a URL; set remote.redis.secretRef.urlKey to the key that holds it"
    elif leaks := to.secret and [name for name in LEAKS if name in engine.env_names]:
        why = f"its LMCache wants the password in a URL, which {leaks[0]} could publish; remove it from engine.env"
    if why:
        return [], [_not_attached("NoSafeWay", why)]
    if not to.secret:
        return [{"name": REMOTE, "value": to.url()}], []
    return [
        # These versions log the URL, password and all, at INFO.
        {"name": "LMCACHE_LOG_LEVEL", "value": "WARNING"},
        _from_secret(REMOTE, to.secret, to.url_key),
    ], []


def _not_attached(reason: str, why: str) -> Notice:
    return Notice("RemoteNotAttached", reason, f"the engine runs without the tier's Redis: {why}")
