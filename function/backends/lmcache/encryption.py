"""Encryption of what agents put on disk and into Redis: its key, and how agents are given it."""

import base64

from function import kube, workloads
from function.backends.base import Credential, CredentialError, Part, Tier, given

PART = "encryption"

_DIR = "/etc/lmcache-encryption"
_FILE = "key"
_LEAST_BYTES = 32


def secret(tier: Tier, credential: Credential) -> Part:
    """Plan the one copy of the key.

    Raises:
        CredentialError: the Secret lacks the key, or holds one that is too short.
    """
    ref = given(given(tier.spec.lmcache).encryption).secret_ref
    where = f"Secret {tier.namespace}/{ref.name}"
    key = credential.data.get(ref.key)
    if not key:
        raise CredentialError("KeyMissing", f"{where} has no key {ref.key!r}")
    try:
        size = len(base64.b64decode(key, validate=True))
    except ValueError:
        size = 0
    if size < _LEAST_BYTES:
        raise CredentialError(
            "KeyTooShort",
            f"key {ref.key!r} of {where} holds fewer than {_LEAST_BYTES} bytes; put random ones there, as "
            f"`openssl rand {_LEAST_BYTES}` gives",
        )
    return workloads.secret(tier, PART, {_FILE: key}, _version(tier, credential), name=PART)


def serde(tier: Tier) -> kube.Manifest:
    """Write what an L2 adapter is told; empty for a tier that does not encrypt."""
    if not given(tier.spec.lmcache).encryption:
        return {}
    return {"serde": {"type": "aesgcm", "aes_bits": 256, "master_key_path": f"{_DIR}/{_FILE}"}}


def volume(tier: Tier) -> tuple[list[kube.Manifest], list[kube.Manifest]]:
    """Give an agent the key: volumes and mounts. Not optional: an agent without it would write plain KV."""
    encryption = given(tier.spec.lmcache).encryption
    if not encryption:
        return [], []
    ref = encryption.secret_ref
    name, key = (ref.name, ref.key) if ref.on_cluster else (tier.named(PART), _FILE)
    source = {"secretName": name, "items": [{"key": key, "path": _FILE}]}
    mount = {"name": PART, "mountPath": _DIR, "readOnly": True}
    return [{"name": PART, "secret": source}], [mount]


def annotations(tier: Tier, credential: Credential | None) -> dict[str, str]:
    """Let agents restart with a key that changed: they read it at start."""
    return {f"{kube.DOMAIN}/key-hash": kube.digest(_version(tier, credential))[:12]} if credential else {}


def _version(tier: Tier, credential: Credential) -> str:
    return f"{credential.version} {given(given(tier.spec.lmcache).encryption).secret_ref.key}"
