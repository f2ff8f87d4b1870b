"""Renders in process what `crossplane composition render` would: no server, no Docker, no Crossplane.

`python -m function.render examples/lmcache` prints an example; `-h` says the rest.
"""

import argparse
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from crossplane.function import resource
from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import fn, kube
from function.kube import Manifest

_ROUNDS = 5  # Crossplane's own bound
_KEY = "crossplane.io/composition-resource-name"
_STATUS = {1: "Unknown", 2: "True", 3: "False"}
_FATAL = 3  # the exit code of Crossplane's own renderer for a fatal result

EXAMPLES = Path("examples")


@dataclass(frozen=True)
class Rendered:
    """A rendered composite: itself with its new status, what it composes by key, and results {severity, message}."""

    composite: Manifest
    composed: dict[str, Manifest]
    results: list[dict[str, str]]

    @property
    def fatal(self) -> bool:
        """Whether Crossplane would have stopped here and kept everything."""
        return any(r["severity"] == "SEVERITY_FATAL" for r in self.results)

    @property
    def manifests(self) -> list[Manifest]:
        """What would be put on the inference cluster; what others make there is none of it."""
        put = [o["spec"] for o in self.composed.values() if o["kind"] == "Object"]
        return [spec["forProvider"]["manifest"] for spec in put if spec.get("managementPolicies") != ["Observe"]]

    def condition(self, type_: str) -> dict[str, str]:
        """Find a condition by its type; KeyError where the composite has none of it."""
        for found in self.composite["status"]["conditions"]:
            if found["type"] == type_:
                return dict(found)
        raise KeyError(type_)


def load(path: Path) -> list[Manifest]:
    """Read all YAML documents of a file, or of a folder's files."""
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    return [doc for file in files for doc in yaml.safe_load_all(file.read_text()) if doc]


def by_key(composed: Iterable[Manifest]) -> dict[str, Manifest]:
    """Tell composed resources apart by their composition-resource-name annotation."""
    return {manifest["metadata"]["annotations"][_KEY]: manifest for manifest in composed}


def request(
    composite: Manifest,
    observed: Iterable[Manifest] = (),
    required: Iterable[tuple[str, Manifest | Sequence[Manifest] | None]] = (),
    desired: Mapping[str, Manifest] = MappingProxyType({}),
) -> fnv1.RunFunctionRequest:
    """Build a request as Crossplane does.

    Args:
        composite: The observed composite.
        observed: Its composed resources, as by_key takes them.
        required: Requirement names and what was found; None for what was looked up and is not there.
        desired: What earlier steps of the pipeline desire, by key.
    """
    req = fnv1.RunFunctionRequest()
    for key, manifest in desired.items():
        resource.update(req.desired.resources[key], manifest)
    resource.update(req.observed.composite, composite)
    for key, manifest in by_key(observed).items():
        resource.update(req.observed.resources[key], manifest)
    for key, found in required:
        items = req.required_resources[key].items
        for manifest in [found] if isinstance(found, dict) else found or ():
            resource.update(items.add(), manifest)
    return req


def render(
    composite: Manifest,
    observed: Sequence[Manifest] = (),
    required: Sequence[Manifest] = (),
    desired: Mapping[str, Manifest] = MappingProxyType({}),
) -> Rendered:
    """Render a composite, going through the requirement rounds as Crossplane does.

    Args:
        composite: The composite, as written or as observed.
        observed: What it composed before.
        required: What a control plane would hold; only what the function asks for is given to it.
        desired: What earlier steps of the pipeline desire, by key.

    Raises:
        RuntimeError: the requirements did not end, which Crossplane would refuse as well.
    """
    return outcome(composite, answered(composite, observed, required, desired)[1])


def answered(
    composite: Manifest,
    observed: Sequence[Manifest] = (),
    required: Sequence[Manifest] = (),
    desired: Mapping[str, Manifest] = MappingProxyType({}),
) -> tuple[fnv1.RunFunctionRequest, fnv1.RunFunctionResponse]:
    """Go through the requirement rounds as `render` does; returns the last round's request, and its response."""
    found: dict[str, list[Manifest]] = {}
    for _ in range(_ROUNDS):
        req = request(composite, observed, found.items(), desired)
        rsp = fn.run(req)
        wanted = {key: _select(selector, required) for key, selector in rsp.requirements.resources.items()}
        if wanted == found or fn.fatal(rsp):
            return req, rsp
        found = wanted
    raise RuntimeError(f"requirements did not settle in {_ROUNDS} rounds")


def _select(selector: fnv1.ResourceSelector, required: Sequence[Manifest]) -> list[Manifest]:
    return [manifest for manifest in required if _matches(selector, manifest)]


def _matches(selector: fnv1.ResourceSelector, manifest: Manifest) -> bool:
    metadata = manifest["metadata"]
    if (manifest["apiVersion"], manifest["kind"]) != (selector.api_version, selector.kind):
        return False
    if not selector.HasField("match_name"):
        # Without a namespace: in all of them.
        labels = metadata.get("labels", {})
        return all(labels.get(key) == value for key, value in selector.match_labels.labels.items())
    return (metadata["name"], metadata.get("namespace", "")) == (selector.match_name, selector.namespace)


def outcome(composite: Manifest, rsp: fnv1.RunFunctionResponse) -> Rendered:
    """Read a response as what Crossplane would make of it."""
    status: dict[str, Any] = kube.plain(rsp.desired.composite.resource).get("status", {})
    status["conditions"] = [
        {"type": c.type, "status": _STATUS[c.status], "reason": c.reason, "message": c.message} for c in rsp.conditions
    ]
    namespace = composite["metadata"].get("namespace")
    composed = {}
    for key, desired in sorted(rsp.desired.resources.items()):
        manifest = kube.plain(desired.resource)
        metadata = manifest.setdefault("metadata", {})
        metadata["annotations"] = {_KEY: key, **metadata.get("annotations", {})}
        metadata["labels"] = {"crossplane.io/composite": composite["metadata"]["name"], **metadata.get("labels", {})}
        if namespace:
            metadata["namespace"] = namespace
        composed[key] = manifest
    results = [{"severity": fnv1.Severity.Name(r.severity), "message": r.message} for r in rsp.results]
    return Rendered({**composite, "status": status}, composed, results)


def render_example(name: str, *, observed: bool = False) -> dict[str, Rendered]:
    """Render an example's tier and deployment, at first sight or with what is observed later."""
    return render_folder(EXAMPLES / name, observed=observed)


def render_folder(folder: Path, *, observed: bool = False) -> dict[str, Rendered]:
    """Render a folder's fleet, tier, deployment and replica.yaml, where it has them; an engine requires its tier.

    A replica's engines are what another step desires of it: desired.yaml.
    """

    def held(name: str) -> list[Manifest]:
        return load(folder / name) if (folder / name).exists() else []

    required = [*held("required.yaml"), *held("tier.yaml")]
    return {
        part: render(
            composite,
            held(f"observed-{part}.yaml") if observed else (),
            required,
            by_key(held("desired.yaml")) if part == "replica" else {},
        )
        for part in ("fleet", "tier", "deployment", "replica")
        for composite in held(f"{part}.yaml")[:1]
    }


_NUMBER = re.compile(r"[0-9]+([eE][0-9]+)?")


class _Dumper(yaml.SafeDumper):
    """Writes files within a manifest as blocks, so that a person can read them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # A hash such as 9e2345 or 0689 is a number to Kubernetes' YAML reader, though not to this one.
    style = "|" if "\n" in value else "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


# The order in which people expect a manifest's fields; the rest follows by name.
_FIRST = ("apiVersion", "kind", "name", "namespace", "metadata", "spec", "type", "data", "status", "key")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        order = sorted(value, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), k))
        return {k: _sorted(value[k]) for k in order}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


def dump(manifests: Iterable[Manifest]) -> str:
    """Write manifests as YAML documents."""
    return yaml.dump_all(map(_sorted, manifests), Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)


def _show(rendered: Rendered) -> str:
    composite = rendered.composite
    metadata = composite["metadata"]
    what = f"{composite['kind']} {metadata.get('namespace', 'default')}/{metadata['name']}"
    count = len(rendered.composed)
    lines = [f"# {what} composes {count} resource{'' if count == 1 else 's'}"]
    for manifest in rendered.composed.values():
        inner = manifest.get("spec", {}).get("forProvider", {}).get("manifest", manifest)
        place = inner["metadata"].get("namespace")
        lines.append(
            f"#   {inner['kind']:<21} {place + '/' if place else ''}{inner['metadata'].get('name', '(to be named)')}"
        )
    lines += [f"# {r['severity'].removeprefix('SEVERITY_').lower()}: {r['message']}" for r in rendered.results]
    return "\n".join(lines) + "\n" + dump([composite, *rendered.composed.values()])


def main(argv: Sequence[str] | None = None) -> int:
    """Render files or an example; returns 3 for a fatal result, as Crossplane's renderer does."""
    parser = argparse.ArgumentParser(prog="python -m function.render", description=__doc__)
    parser.add_argument("composite", type=Path, help="a composite's YAML file, or an example's folder")
    parser.add_argument(
        "-e", "--required", type=Path, action="append", default=[], help="required resources; repeatable"
    )
    parser.add_argument("-o", "--observed", type=Path, help="observed composed resources")
    parser.add_argument("-d", "--desired", type=Path, help="what earlier steps of the pipeline desire")
    args = parser.parse_args(argv)
    try:
        renders = _renders(args.composite, args.required, args.observed, args.desired)
    except (OSError, yaml.YAMLError, ValueError) as e:
        parser.error(str(e))
    if not renders:
        parser.error(f"{args.composite} holds none of fleet.yaml, tier.yaml, deployment.yaml and replica.yaml")
    for rendered in renders:
        sys.stdout.write(_show(rendered))
    return _FATAL if any(r.fatal for r in renders) else 0


def _renders(composite: Path, required: Sequence[Path], observed: Path | None, desired: Path | None) -> list[Rendered]:
    if composite.is_dir():
        return list(render_folder(composite).values())
    found = [manifest for path in required for manifest in load(path)]
    subject, before = load(composite)[0], by_key(load(desired)) if desired else {}
    if subject.get("kind") not in fn.COMPOSERS and not before:
        known = ", ".join(fn.COMPOSERS)
        raise ValueError(
            f"{composite} is of kind {subject.get('kind')!r}, whose engines an earlier step desires: give that with -d "
            f"(this function composes {known} itself)"
        )
    return [render(subject, load(observed) if observed else (), found, before)]


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
