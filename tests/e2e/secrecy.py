"""Looks for the bytes of Secrets wherever they must not be."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from tests.e2e.kube import SECRET, Kube, Manifest

_SHORTEST = 8  # what is shorter is a word that may be anywhere, such as a username
_TOKEN = re.compile(r"\btoken: *[\"']?([\w.~+/=-]+)")


def values(secrets: Iterable[Manifest]) -> Iterator[bytes]:
    """Yield what some Secrets hold, and of a kubeconfig also the tokens in it."""
    for secret in secrets:
        for encoded in secret.get("data", {}).values():
            value = base64.b64decode(encoded)
            yield value
            yield from (token.encode() for token in _TOKEN.findall(value.decode(errors="ignore")))


def spellings(secret: Iterable[bytes]) -> set[str]:
    """Every way in which a secret value may be written: as it is, percent-encoded, in base64."""
    found = set()
    for value in secret:
        if len(value) < _SHORTEST:
            continue
        found.add(base64.b64encode(value).decode())
        text = value.decode(errors="ignore")
        if text.encode() == value and text.isprintable():
            found |= {text, quote(text, safe=""), json.dumps(text)[1:-1]}
    return found


def in_objects(kube: Kube, spelled: set[str]) -> Iterator[str]:
    """Name the objects of a cluster that hold one outside a Secret, or the Object that is documented to carry one."""
    for item in kube.everything():
        if item["kind"] == SECRET.kind:
            continue
        spec = item.get("spec")
        manifest = spec.get("forProvider", {}).get("manifest", {}) if isinstance(spec, dict) else {}
        if item["kind"] == "Object" and manifest.get("kind") == SECRET.kind:
            manifest.pop("data", None)
        text = json.dumps(item)
        if any(json.dumps(secret)[1:-1] in text for secret in spelled):
            yield f"{item['kind']} {item['metadata']['name']}"


def in_logs(files: Iterable[Path], spelled: set[str]) -> Iterator[str]:
    """Name the logs that hold one."""
    for file in files:
        text = file.read_text(errors="replace")
        if any(secret in text for secret in spelled):
            yield file.name
