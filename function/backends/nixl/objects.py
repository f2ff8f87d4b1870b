"""KV in a bucket: how engines find it, and are given its credentials."""

from collections.abc import Mapping

from function import kube, workloads
from function.api.tier import ObjectSecretRef, ObjectStore
from function.backends.base import CREDENTIALS, Credential, CredentialError, Notice, Part, Tier, given
from function.engines import Engine

ACCESS_KEY_ID, SECRET_ACCESS_KEY = "access-key-id", "secret-access-key"
AWS_ENV = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def secret_name(tier: Tier) -> Mapping[str, str]:
    """Name the Secret that has to be read, by its part; none where engines need none, or it is there already."""
    ref = _ref(tier)
    return {CREDENTIALS: ref.name} if ref and not ref.on_cluster else {}


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the one copy of the credentials, both of which have to be there.

    Raises:
        CredentialError: the Secret lacks one of them.
    """
    ref = given(_ref(tier))
    data = {}
    for key, users in ((ACCESS_KEY_ID, ref.access_key_id_key), (SECRET_ACCESS_KEY, ref.secret_access_key_key)):
        if not credential.data.get(users):
            raise CredentialError("KeyMissing", f"Secret {tier.namespace}/{ref.name} has no key {users!r}")
        data[key] = credential.data[users]
    version = f"{credential.version} {ref.access_key_id_key} {ref.secret_access_key_key}"
    return workloads.secret(tier, CREDENTIALS, data, version)


def credentials(tier: Tier) -> list[kube.Manifest]:
    """Give an engine the credentials by the names that Amazon's libraries read; nothing for its pod's own identity."""
    ref = _ref(tier)
    if ref is None:
        return []
    own = ref.on_cluster
    name = ref.name if own else tier.instance
    keys = (ref.access_key_id_key, ref.secret_access_key_key) if own else (ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    return [
        {"name": env, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
        for env, key in zip(AWS_ENV, keys, strict=True)
    ]


def notices(tier: Tier, engine: Engine) -> list[Notice]:
    """Say that an engine has half a pair of credentials of its own, which goes with nothing of the tier's."""
    own = engine.env_names & set(AWS_ENV)
    if _ref(tier) is None or len(own) != 1:
        return []
    (has,) = own
    (lacks,) = set(AWS_ENV) - own
    message = f"engine.env sets {has} and not {lacks}, which stays the tier's: they do not match; set both, or neither"
    return [Notice("UserOverrides", "UserEnv", message)]


def address(store: ObjectStore) -> dict[str, str]:
    """Write where the bucket is, in NIXL's words; vLLM knows no bucket without an endpoint."""
    endpoint = store.endpoint or f"https://s3.{store.region}.amazonaws.com"
    return kube.prune(
        {
            "bucket": store.bucket,
            "endpoint_override": endpoint,
            "scheme": endpoint.partition(":")[0],
            "region": store.region,
        }
    )


def prefix(tier: Tier, engine: Engine) -> str:
    """Name what an engine's keys begin with: no two keyspaces share it, nor two clusters' tiers of one name."""
    cluster = kube.digest(tier.spec.inference_cluster_ref.name)[:5]
    return f"{tier.instance}-{cluster}/{engine.keyspace}"


def _ref(tier: Tier) -> ObjectSecretRef | None:
    storage = given(tier.spec.nixl).storage
    return storage.obj.secret_ref if storage and storage.obj else None
