"""Rules on any manifest: its metadata, its data, its values."""

import base64
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from decimal import Decimal

from tests.lint.grammar import (
    DATA_KEY,
    DNS_LABEL,
    LABEL_VALUE,
    SERVICE_NAME,
    STATEFUL_NAME,
    SUBDOMAIN,
    key_objection,
    quantity,
)
from tests.lint.model import Bundle, Node, field, namespace, repeated, subject

_MAX_ANNOTATIONS = 256 * 1024
_MAX_DATA = 1024 * 1024
_MAX_PORT = 65535
_SHORTEST_CORE = 5

_LABELS = frozenset({"labels", "matchLabels", "nodeSelector"})
_PORTS = frozenset({"containerPort", "endPort", "hostPort", "nodePort", "port", "targetPort"})

_MEANT_EMPTY = frozenset({"egress", "emptyDir", "ingress", "namespaceSelector", "podSelector"})
"""Where empty is a value of its own: a plain scratch volume, all pods, all namespaces, no traffic, all traffic."""

_NAMES = {"Namespace": DNS_LABEL, "Service": SERVICE_NAME, "StatefulSet": STATEFUL_NAME}
"""Kinds with a stricter name than most."""


def objects_are_unique(bundle: Bundle) -> Iterator[str]:
    """No two manifests are one object: the second would overwrite the first."""
    yield from repeated(f"{subject(m)}: metadata.name: twice in namespace {namespace(m)!r}" for m in bundle.manifests)


def names_are_valid(bundle: Bundle) -> Iterator[str]:
    """metadata.name and metadata.namespace are what the API server takes for the kind."""
    for manifest in bundle.manifests:
        metadata = field(manifest, "metadata")
        if objection := _NAMES.get(str(manifest.get("kind")), SUBDOMAIN).objection(metadata.get("name")):
            yield f"{subject(manifest)}: metadata.name: {objection}"
        if "namespace" in metadata and (objection := DNS_LABEL.objection(metadata["namespace"])):
            yield f"{subject(manifest)}: metadata.namespace: {objection}"


def labels_are_valid(bundle: Bundle) -> Iterator[str]:
    """Labels, and the selectors that speak of them, have valid keys and values. A rule's are Prometheus' own."""
    for node in bundle.nodes:
        if "rules" in node.path:
            continue
        if isinstance(node.value, Mapping) and (node.key in _LABELS or _is_service_selector(node)):
            for key, value in node.value.items():
                if objection := key_objection(key) or LABEL_VALUE.objection(value):
                    yield f"{node.where}: {key}: {objection}"


def expressions_are_valid(bundle: Bundle) -> Iterator[str]:
    """A match expression has a valid key, and values exactly where its operator takes them."""
    for node in bundle.nodes:
        if node.key == "matchExpressions" and isinstance(node.value, Mapping):
            if objection := key_objection(str(node.value.get("key"))):
                yield f"{node.where}.key: {objection}"
            if (node.value.get("operator") in {"Exists", "DoesNotExist"}) == bool(node.value.get("values")):
                yield f"{node.where}.values: {node.value.get('operator')} with values {node.value.get('values')}"


def annotations_are_valid(bundle: Bundle) -> Iterator[str]:
    """Annotations have valid keys and, together, fit into 256 KiB."""
    for node in bundle.nodes:
        if node.key == "annotations" and isinstance(node.value, Mapping):
            for key in node.value:
                if objection := key_objection(key):
                    yield f"{node.where}: {objection}"
            if (size := sum(len(f"{key}{value}".encode()) for key, value in node.value.items())) > _MAX_ANNOTATIONS:
                yield f"{node.where}: {size} bytes, more than {_MAX_ANNOTATIONS}"


def data_is_valid(bundle: Bundle) -> Iterator[str]:
    """ConfigMaps and Secrets have valid keys, base64 where it belongs, and less than 1 MiB."""
    for manifest in bundle.of_kind("ConfigMap", "Secret"):
        size = 0
        for part in ("data", "stringData", "binaryData"):
            encoded = part == "binaryData" or (part == "data" and manifest["kind"] == "Secret")
            for key, value in field(manifest, part).items():
                where = f"{subject(manifest)}: {part}.{key}"
                if objection := DATA_KEY.objection(key):
                    yield f"{where}: {objection}"
                if encoded and not _is_base64(value):
                    yield f"{where}: not base64"
                size += len(str(value).encode())
        if size > _MAX_DATA:
            yield f"{subject(manifest)}: data: {size} bytes, more than {_MAX_DATA}"


def nothing_is_empty(bundle: Bundle) -> Iterator[str]:
    """No null, no empty map, no empty list: whoever applies one owns it."""
    for node in bundle.nodes:
        if node.value is None:
            yield f"{node.where}: null"
        elif isinstance(node.value, Mapping | list | tuple) and not node.value and node.key not in _MEANT_EMPTY:
            yield f"{node.where}: empty"


def integers_are_integers(bundle: Bundle) -> Iterator[str]:
    """No 3.0 where 3 is meant: protobuf's Struct makes floats of all numbers, and the API server refuses them."""
    for node in bundle.nodes:
        if isinstance(node.value, float) and node.value.is_integer():
            yield f"{node.where}: {node.value} is a float"


def ports_are_in_range(bundle: Bundle) -> Iterator[str]:
    """Port numbers are 1 to 65535."""
    for node in bundle.nodes:
        if node.key in _PORTS and isinstance(node.value, int) and not 1 <= node.value <= _MAX_PORT:
            yield f"{node.where}: {node.value} is no port"


def quantities_are_valid(bundle: Bundle) -> Iterator[str]:
    """Quantities parse, are not negative, and are no finer than what they count."""
    for node in bundle.nodes:
        resource = _counted(node)
        if resource is None:
            continue
        number = quantity(node.value)
        if number is None:
            yield f"{node.where}: {node.value!r} is no quantity"
        elif number < 0:
            yield f"{node.where}: {node.value!r} is negative"
        elif number * (1000 if resource in {"cpu", "divisor"} else 1) % 1:
            yield f"{node.where}: {node.value!r} is finer than {resource} is counted"


def requests_fit_limits(bundle: Bundle) -> Iterator[str]:
    """A request is at most its limit, and equal to it where nothing is overcommitted: hugepages, extended resources."""
    for node in bundle.nodes:
        if node.key != "resources" or not isinstance(node.value, Mapping):
            continue
        requests, limits = field(node.value, "requests"), field(node.value, "limits")
        for resource, asked in requests.items():
            request, limit = quantity(asked), quantity(limits.get(resource))
            if _is_device(resource) and request != limit:
                yield f"{node.where}.requests.{resource}: {asked} must have an equal limit, not {limits.get(resource)}"
            elif limit is not None and (request or Decimal(0)) > limit:
                yield f"{node.where}.requests.{resource}: {asked} is more than the limit {limits[resource]}"
        named = {*requests, *limits}
        if any(resource.startswith("hugepages-") for resource in named) and not named & {"cpu", "memory"}:
            yield f"{node.where}: hugepages need cpu or memory beside them"


def secrets_stay_in_secrets(bundle: Bundle) -> Iterator[str]:
    """No secret value, raw, escaped, percent-encoded or in base64, is anywhere but in the data of a Secret.

    An Object that carries a Secret may hold it in that Secret's data. The finding names the place, never the value.
    """
    needles = {needle for secret in bundle.context.secrets if secret for needle in _disguises(secret)}
    for node in bundle.nodes if needles else ():
        if not _in_secret_data(node):
            texts = list(node.value) if isinstance(node.value, Mapping) else [node.value]
            if any(_holds(str(text), needles) for text in texts if not isinstance(text, Mapping | list | tuple)):
                yield f"{_masked(node.where, needles)}: holds a secret value"


def _is_service_selector(node: Node) -> bool:
    """Takes a node; returns whether it is a Service's selector, which is a plain map."""
    return node.manifest.get("kind") == "Service" and node.path == ("spec", "selector")


def _is_base64(value: object) -> bool:
    """Takes a value; returns whether it is a base64 string."""
    try:
        base64.b64decode(str(value), validate=True)
    except ValueError:
        return False
    return True


def _counted(node: Node) -> str | None:
    """Takes a node; returns what it counts when it is a quantity (cpu, memory, sizeLimit), else None."""
    if node.manifest.get("kind") in {"ConfigMap", "Secret"} or not node.path or isinstance(node.value, Mapping):
        return None
    if node.path[-1] in {"divisor", "sizeLimit"}:
        return node.path[-1]
    if node.path[-3:-1] in {("resources", "requests"), ("resources", "limits"), ("capacity", "requests")}:
        return node.path[-1]
    return None


def _is_device(resource: str) -> bool:
    """Takes a resource name; returns whether it is one that nodes never overcommit."""
    prefix, slash, _ = resource.partition("/")
    return resource.startswith("hugepages-") or bool(slash and not prefix.endswith("kubernetes.io"))


def _in_secret_data(node: Node) -> bool:
    """Takes a node; returns whether it is in the data of a Secret, bare or carried in an Object."""
    carried = ("spec", "forProvider", "manifest")
    path, manifest = node.path, node.manifest
    if path[: len(carried)] == carried:
        path, manifest = path[len(carried) :], field(manifest, *carried)
    return manifest.get("kind") == "Secret" and path[:1] in {("data",), ("stringData",)}


def _disguises(secret: bytes) -> Iterator[bytes]:
    """Takes a secret; yields the byte strings that give it away in a text that _holds has percent-decoded.

    They are the secret, percent-encoded, escaped as JSON once and twice, and the base64 of each at any offset.
    """
    text = secret.decode(errors="replace")
    once = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    twice = {json.dumps(escaped)[1:-1] for escaped in once}
    quoted = urllib.parse.quote_from_bytes(secret, safe="")
    for form in {secret, *(escaped.encode() for escaped in (*once, *twice, quoted))}:
        yield form
        for offset in range(3):
            yield from _base64_cores(form, offset)


def _base64_cores(text: bytes, offset: int) -> Iterator[bytes]:
    """Takes bytes and how many others precede them in a group of three; yields the part of their base64 that is sure.

    The characters at either end depend on the neighbours; what is left of a very short text is too common to look for.
    """
    start, end = -(-offset * 8 // 6), (offset + len(text)) * 8 // 6
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        core = encode(bytes(offset) + text)[start:end]
        if len(core) >= _SHORTEST_CORE:
            yield core


def _holds(text: str, needles: set[bytes]) -> bool:
    """Takes a text and byte strings; returns whether it holds one, as it is or percent-encoded."""
    forms = {text.encode()}
    if "%" in text or "+" in text:
        plain = urllib.parse.unquote_to_bytes(text)
        forms |= {plain, plain.replace(b"+", b" ")}
    return any(needle in form for needle in needles for form in forms)


def _masked(where: str, needles: set[bytes]) -> str:
    """Takes the beginning of a finding; returns it without the secrets that a key or a name in it may hold."""
    for needle in needles:
        where = where.replace(needle.decode(errors="replace"), "***")
    return where
