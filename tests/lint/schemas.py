"""Kubernetes' own schemas, from the kubernetes-validate package, asked directly.

The package's `validate` reads 1.8 MB of JSON on every call and stops at the first error. Here each version is read
once, every error is told, and a manifest already judged is not judged again.
"""

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry, Resource

OLDEST = "1.34"
NEWEST = "1.37"
VERSIONS = (OLDEST, NEWEST)
"""The Kubernetes versions every manifest must satisfy: the oldest we support and the newest the package knows."""

_SCHEMAS = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"


class _Kind(NamedTuple):
    """A kind as a manifest names it."""

    api_version: str
    kind: str


class _Release(NamedTuple):
    """The schemas of one Kubernetes version, and where in them each kind is."""

    registry: "Registry[Any]"
    refs: Mapping[_Kind, str]

    @property
    def groups(self) -> set[str]:
        """The API groups that this Kubernetes serves itself; the core group is the empty string."""
        return {_group(kind.api_version) for kind in self.refs}


def schema_errors(manifest: Mapping[str, Any]) -> list[str]:
    """Takes a manifest; returns `Kind/name: field: what is wrong [versions]`, or nothing when every version accepts it.

    Unknown fields are errors. Kinds of groups that Kubernetes does not serve itself have no schema here and pass.
    """
    versions: dict[str, list[str]] = {}
    text = json.dumps(manifest, sort_keys=True)
    for version in VERSIONS:
        for error in dict.fromkeys(_errors(version, text)):
            versions.setdefault(error, []).append(version)
    return [f"{error} [{', '.join(where)}]" for error, where in versions.items()]


@lru_cache(maxsize=4096)
def _errors(version: str, text: str) -> tuple[str, ...]:
    """Takes a version and a manifest as JSON; returns its errors under that version."""
    manifest = json.loads(text)
    kind = _Kind(str(manifest.get("apiVersion")), str(manifest.get("kind")))
    subject = f"{kind.kind}/{manifest.get('metadata', {}).get('name')}"
    validator = _validator(version, kind)
    if validator is None:
        return tuple(_unknown(version, kind, subject))
    return tuple(
        f"{subject}: {'.'.join(map(str, error.absolute_path)) or 'manifest'}: {error.message}"
        for error in validator.iter_errors(manifest)
    )


def _unknown(version: str, kind: _Kind, subject: str) -> Iterator[str]:
    """Takes a kind without a schema; yields an error, unless its group is one that only custom resources have."""
    group = _group(kind.api_version)
    if "." not in group or group in _release(version).groups:
        yield f"{subject}: apiVersion: Kubernetes has no {kind.kind} in {kind.api_version}"


@cache
def _validator(version: str, kind: _Kind) -> Validator | None:
    """Takes a version and a kind; returns the kind's strict validator, or None when that version has no such kind."""
    release = _release(version)
    ref = release.refs.get(kind)
    return None if ref is None else Draft202012Validator({"$ref": ref}, registry=release.registry)


@cache
def _release(version: str) -> _Release:
    """Takes a version; returns its strict schemas, read once in a process."""
    contents = json.loads((_SCHEMAS / f"v{version}.0-local-strict" / "_definitions.json").read_text(encoding="utf-8"))
    definitions: Resource[Any] = Resource.from_contents(contents)
    refs = {
        _Kind("/".join(filter(None, (gvk["group"], gvk["version"]))), gvk["kind"]): f"{contents['$id']}#/$defs/{name}"
        for name, schema in contents["$defs"].items()
        for gvk in schema.get("x-kubernetes-group-version-kind", ())
    }
    registry: Registry[Any] = definitions @ Registry()
    return _Release(registry, refs)


def _group(api_version: str) -> str:
    """Takes an apiVersion; returns its group."""
    return api_version.rpartition("/")[0]
