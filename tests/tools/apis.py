"""Makes the parts of KVOffloadFleet's schema that are KVOffloadTier's: `python -m tests.tools.apis` writes them."""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from function.api.fleet import OF_FLEET, OVERRIDABLE
from function.kube import Manifest
from function.render import load

TIER, FLEET = Path("apis/kvoffloadtier.yaml"), Path("apis/kvoffloadfleet.yaml")
# What an override does not have: nothing is required of it, or filled in, and no CEL is beneath a list.
_NOT_OVERRIDDEN = ("default", "required", "x-kubernetes-validations")
_MARKED = re.compile(r"^( *)(# From apis/kvoffloadtier.yaml by `make apis`: (\w+))\n.*?^ *# end$", re.M | re.S)


def template(spec: Manifest) -> Manifest:
    """Give the schema of a fleet's template: a tier's spec without what comes from elsewhere."""
    rules = spec["x-kubernetes-validations"]
    return {
        **spec,
        "required": [name for name in spec["required"] if name not in OF_FLEET],
        "x-kubernetes-validations": [r for r in rules if not any(f"elf.{name}" in r["rule"] for name in OF_FLEET)],
        "properties": {name: inner for name, inner in spec["properties"].items() if name not in OF_FLEET},
    }


def override(spec: Manifest, paths: Iterable[str] = OVERRIDABLE) -> Manifest:
    """Give the schema of what an override may say."""
    kept = {name: inner for name, inner in spec.items() if name not in _NOT_OVERRIDDEN}
    beneath: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        beneath.setdefault(name, []).append(rest)
    properties = spec["properties"]
    kept["properties"] = {
        name: override(properties[name], rest) if all(rest) else _bare(properties[name])
        for name, rest in beneath.items()
    }
    return kept


def _bare(schema: Manifest) -> Manifest:
    found = {name: inner for name, inner in schema.items() if name not in _NOT_OVERRIDDEN}
    if "properties" in found:
        found["properties"] = {name: _bare(inner) for name, inner in found["properties"].items()}
    if "items" in found:
        # The items of a list that is set are whole.
        found["items"] = {n: v for n, v in found["items"].items() if n != "x-kubernetes-validations"}
    return found


def made(fleet: str) -> str:
    """Give the text of a fleet's XRD with these parts made anew."""
    (version,) = load(TIER)[0]["spec"]["versions"]
    spec: Manifest = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    parts = {"template": template(spec), "override": override(spec), "release": spec["properties"]["release"]}

    def part(found: re.Match[str]) -> str:
        indent, line, name = found.groups()
        text = yaml.safe_dump(parts[name], sort_keys=False, width=110 - len(indent), allow_unicode=True)
        body = "".join(f"{indent}{row}\n" for row in text.splitlines())
        return f"{indent}{line}\n{body}{indent}# end"

    return _MARKED.sub(part, fleet)


if __name__ == "__main__":
    FLEET.write_text(made(FLEET.read_text()))
