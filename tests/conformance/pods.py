"""What a kubelet makes of a rendered pod: a command line, an environment and files."""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Manifest = dict[str, Any]

NODE = "node-a"
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Process:
    """A container as a process: command and args, environment, and the files that ConfigMaps mount, by path."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]

    def moved(self, places: Mapping[str, str]) -> "Process":
        """The same process where the image's and the node's paths are elsewhere: replaced wherever they stand."""

        def move(text: str) -> str:
            for old, new in places.items():
                text = text.replace(old, new)
            return text

        return replace(self, argv=tuple(map(move, self.argv)), env={k: move(v) for k, v in self.env.items()})

    def flag(self, name: str) -> str:
        """The value of a `--flag value` pair."""
        return self.argv[self.argv.index(name) + 1]


def process(manifests: Iterable[Manifest], kind: str, container: str) -> Process:
    """Start a container of the one workload of a kind, given everything that was rendered for its namespace."""
    manifests = list(manifests)
    template = next(m for m in manifests if m["kind"] == kind)["spec"]["template"]["spec"]
    spec = next(c for c in template["containers"] if c["name"] == container)
    secrets = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "Secret"}
    maps = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "ConfigMap"}
    env: dict[str, str] = {}
    for entry in spec.get("env", []):
        value = _value(entry, secrets)
        if value is not None:
            env[entry["name"]] = _expand(value, env)
    volumes = {v["name"]: v["configMap"]["name"] for v in template.get("volumes", []) if "configMap" in v}
    files = {
        f"{mount['mountPath']}/{name}": text
        for mount in spec.get("volumeMounts", [])
        if mount["name"] in volumes
        for name, text in maps[volumes[mount["name"]]].items()
    }
    words = (*spec.get("command", []), *spec.get("args", []))
    return Process(tuple(_expand(word, env) for word in words), env, files)


def _value(entry: Manifest, secrets: Mapping[str, Mapping[str, str]]) -> str | None:
    if "value" in entry:
        return str(entry["value"])
    if ref := entry["valueFrom"].get("secretKeyRef"):
        if ref["name"] not in secrets:
            return None  # the user's own, which is there already
        found = secrets[ref["name"]].get(ref["key"])
        if found is None and not ref.get("optional"):
            raise KeyError(f"Secret {ref['name']} has no {ref['key']}: the container would not start")
        return None if found is None else base64.b64decode(found).decode()
    assert entry["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    return NODE


def _expand(text: str, env: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: env.get(match[1], match[0]), text)
