"""What a kubelet makes of a rendered pod: command lines, environments and files."""

import base64
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Manifest = dict[str, Any]

NODE = "node-a"
_LABEL = re.compile(r"metadata\.labels\['(.*)'\]")
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Pod:
    """What is known of a pod once it is on a node."""

    name: str = ""
    address: str = ""
    node: str = NODE
    namespace: str = "default"
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def field(self, path: str) -> str:
        """What a fieldRef of the pod holds."""
        if label := _LABEL.fullmatch(path):
            return self.labels[label[1]]
        return {
            "spec.nodeName": self.node,
            "status.podIP": self.address,
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
        }[path]


@dataclass(frozen=True)
class Process:
    """A container as a process: command and args, environment, and the files that ConfigMaps mount, by path."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]

    def moved(self, places: Mapping[str, str]) -> "Process":
        """The same process where paths, or names of hosts, are others: replaced wherever they stand."""

        def move(text: str) -> str:
            for old, new in places.items():
                text = text.replace(old, new)
            return text

        return replace(
            self,
            argv=tuple(map(move, self.argv)),
            env={k: move(v) for k, v in self.env.items()},
            files={k: move(v) for k, v in self.files.items()},
        )

    def flag(self, name: str) -> str:
        """The value of a `--flag value` pair."""
        return self.argv[self.argv.index(name) + 1]


def workload(manifests: Iterable[Manifest], kind: str, container: str) -> Manifest:
    """Find the one workload of a kind that has a container of that name."""
    (found,) = (
        m
        for m in manifests
        if m["kind"] == kind and container in [c["name"] for c in m["spec"]["template"]["spec"]["containers"]]
    )
    return found


def process(manifests: Iterable[Manifest], kind: str, container: str, pod: Pod | None = None) -> Process:
    """Start a container of a workload, given everything that was rendered for its namespace."""
    manifests = list(manifests)
    template = workload(manifests, kind, container)["spec"]["template"]["spec"]
    spec = next(c for c in template["containers"] if c["name"] == container)
    return started(manifests, template, spec, pod or Pod())


def started(manifests: Iterable[Manifest], template: Manifest, spec: Manifest, pod: Pod) -> Process:
    """Start a container, or an init container, of a pod template."""
    manifests = list(manifests)
    secrets = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "Secret"}
    env: dict[str, str] = {}
    for entry in spec.get("env", []):
        value = _value(entry, secrets, pod)
        if value is not None:
            env[entry["name"]] = _expand(value, env)
    volumes = {v["name"]: _files(v, manifests) for v in template.get("volumes", [])}
    files = {
        f"{mount['mountPath']}/{name}": text
        for mount in spec.get("volumeMounts", [])
        for name, text in volumes.get(mount["name"], {}).items()
    }
    words = (*spec.get("command", []), *spec.get("args", []))
    return Process(tuple(_expand(word, env) for word in words), env, files)


def _files(volume: Manifest, manifests: Iterable[Manifest]) -> dict[str, str]:
    """What a volume of ConfigMaps and Secrets holds, by file; a Secret that is the user's own holds nothing here."""
    files: dict[str, str] = {}
    for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
        for kind, field in (("ConfigMap", "configMap"), ("Secret", "secret")):
            name = source.get(field, {}).get("name") or source.get(field, {}).get("secretName")
            data: Mapping[str, str] = next(
                (m["data"] for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)), {}
            )
            items = source.get(field, {}).get("items") or [{"key": key, "path": key} for key in data]
            for item in items if data else []:
                text = data[item["key"]]
                files[item["path"]] = text if kind == "ConfigMap" else base64.b64decode(text).decode()
    return files


def _value(entry: Manifest, secrets: Mapping[str, Mapping[str, str]], pod: Pod) -> str | None:
    if "value" in entry:
        return str(entry["value"])
    if ref := entry["valueFrom"].get("secretKeyRef"):
        if ref["name"] not in secrets:
            return None  # the user's own, which is there already
        found = secrets[ref["name"]].get(ref["key"])
        if found is None and not ref.get("optional"):
            raise KeyError(f"Secret {ref['name']} has no {ref['key']}: the container would not start")
        return None if found is None else base64.b64decode(found).decode()
    return pod.field(entry["valueFrom"]["fieldRef"]["fieldPath"])


def _expand(text: str, env: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: env.get(match[1], match[0]), text)
