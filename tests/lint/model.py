"""What a rule sees: the manifests of one cluster with their pods found, and what is known of the world outside."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

Manifest = Mapping[str, Any]

WORKLOADS = frozenset({"DaemonSet", "Deployment", "Job", "StatefulSet"})
"""The kinds with a pod template at spec.template."""

COMPONENT = "app.kubernetes.io/component"
ENGINE = "engine"
"""The component label's value on pods that run the user's container; every other pod is ours."""


@dataclass(frozen=True)
class Context:
    """What the manifests alone do not tell.

    external: objects that exist outside the set, as `Kind/name`; any key of theirs is taken to exist.
    external_pods: label sets of pods outside the set that selectors may mean.
    secrets: values that only the data of a Secret may hold.
    repeatable_flags: flags that a program takes more than once.
    """

    external: frozenset[str] = frozenset()
    external_pods: tuple[Mapping[str, str], ...] = ()
    secrets: tuple[bytes, ...] = ()
    repeatable_flags: frozenset[str] = frozenset({"--l2-adapter"})


class Node(NamedTuple):
    """A value somewhere in a manifest: whose it is, the path to it, its key (an item has its list's), and the value."""

    manifest: Manifest
    path: tuple[str, ...]
    key: str
    value: object

    @property
    def where(self) -> str:
        """`Kind/name: path`, the beginning of a finding."""
        return f"{subject(self.manifest)}: {'.'.join(self.path).replace('.[', '[')}"


@dataclass(frozen=True)
class Container:
    """A container of a pod template. `serving` is false for an init container that ends before the others start."""

    where: str
    spec: Manifest
    serving: bool


@dataclass(frozen=True)
class Pod:
    """A pod template: the `Kind/name` it belongs to, its namespace, labels, spec, and the volumes it has by claim."""

    owner: str
    namespace: str
    labels: Mapping[str, str]
    spec: Manifest
    claimed_volumes: frozenset[str]

    @property
    def where(self) -> str:
        """The beginning of a finding on it."""
        return f"{self.owner}: spec.template.spec"

    @property
    def ours(self) -> bool:
        """True unless the pod runs a user's engine."""
        return self.labels.get(COMPONENT) != ENGINE

    @cached_property
    def containers(self) -> tuple[Container, ...]:
        """Every container, those that only initialise first."""
        init = [
            Container(f"{self.where}.initContainers[{label(c, i)}]", c, serving=c.get("restartPolicy") == "Always")
            for i, c in enumerate(items(self.spec, "initContainers"))
        ]
        main = [
            Container(f"{self.where}.containers[{label(c, i)}]", c, serving=True)
            for i, c in enumerate(items(self.spec, "containers"))
        ]
        return (*init, *main)

    @property
    def ports(self) -> list[Manifest]:
        """What the running containers declare to listen on."""
        return [port for container in self.containers if container.serving for port in items(container.spec, "ports")]


@dataclass(frozen=True)
class Bundle:
    """The manifests of one cluster, and the context to judge them in."""

    manifests: tuple[Manifest, ...]
    context: Context

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every value of every manifest, a container before what it holds."""
        return tuple(node for manifest in self.manifests for node in _nodes(Node(manifest, (), "", manifest)))

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Every pod template."""
        return tuple(
            Pod(
                owner=subject(manifest),
                namespace=namespace(manifest),
                labels=field(manifest, "spec", "template", "metadata", "labels"),
                spec=field(manifest, "spec", "template", "spec"),
                claimed_volumes=frozenset(
                    str(field(claim, "metadata").get("name"))
                    for claim in items(field(manifest, "spec"), "volumeClaimTemplates")
                ),
            )
            for manifest in self.of_kind(*WORKLOADS)
        )

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """Takes kinds; returns the manifests of those kinds."""
        return [manifest for manifest in self.manifests if manifest.get("kind") in kinds]

    def find(self, kind: str, name: object, in_namespace: str) -> Manifest | None:
        """Takes what a reference says; returns the manifest it means, or None."""
        return next(
            (
                m
                for m in self.of_kind(kind)
                if field(m, "metadata").get("name") == name and namespace(m) == in_namespace
            ),
            None,
        )

    def selected(self, selector: Manifest, in_namespace: str) -> list[Pod]:
        """Takes a label selector; returns the pods it selects in a namespace."""
        return [pod for pod in self.pods if pod.namespace == in_namespace and selects(selector, pod.labels)]

    def selects_external(self, selector: Manifest) -> bool:
        """Takes a label selector; returns whether it means pods that the context says are elsewhere."""
        return any(selects(selector, labels) for labels in self.context.external_pods)


Rule = Callable[[Bundle], Iterable[str]]
"""A rule takes the bundle and yields a finding, `Kind/name: field: what is wrong`, for each thing it objects to."""


def subject(manifest: Manifest) -> str:
    """Takes a manifest; returns `Kind/name`."""
    return f"{manifest.get('kind')}/{field(manifest, 'metadata').get('name')}"


def namespace(manifest: Manifest) -> str:
    """Takes a manifest; returns its namespace, empty when it names none."""
    return str(field(manifest, "metadata").get("namespace") or "")


def field(value: Manifest, *path: str) -> Manifest:
    """Takes a mapping and keys into it; returns the mapping there, empty when absent."""
    for key in path:
        value = value.get(key) or {}
    return value


def items(value: Manifest, key: str) -> Sequence[Any]:
    """Takes a mapping and a key; returns the list there, empty when absent."""
    found: Sequence[Any] = value.get(key) or ()
    return found


def label(item: object, index: int) -> str:
    """Takes an item of a list; returns its name, or its index when it has none."""
    return str(item.get("name", index)) if isinstance(item, Mapping) else str(index)


def repeated(values: Iterable[str]) -> list[str]:
    """Takes strings; returns those that occur more than once, each once."""
    return [value for value, count in Counter(values).items() if count > 1]


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Takes a label selector and labels; returns whether it selects them. An empty selector selects everything."""
    equal = all(labels.get(key) == value for key, value in field(selector, "matchLabels").items())
    return equal and all(_satisfied(expression, labels) for expression in items(selector, "matchExpressions"))


def _satisfied(expression: Manifest, labels: Mapping[str, str]) -> bool:
    """Takes one of a selector's matchExpressions and labels; returns whether they satisfy it."""
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in items(expression, "values")
        case "NotIn":
            return value not in items(expression, "values")
        case "Exists":
            return value is not None
        case _:
            return value is None


def _nodes(node: Node) -> Iterator[Node]:
    """Takes a node; yields it and every node in it."""
    yield node
    manifest, path, _, value = node
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nodes(Node(manifest, (*path, str(key)), str(key), inner))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _nodes(Node(manifest, (*path, f"[{label(inner, index)}]"), node.key, inner))
