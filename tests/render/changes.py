"""Changes to a manifest, by dotted path."""

import copy
from collections.abc import Mapping
from typing import Any

from function.kube import Manifest

Changes = Mapping[str, Any]

NOTHING: Changes = {}
GONE: Any = object()
"""As the value of a change: take the field out."""


def changed(manifest: Manifest, changes: Changes) -> Manifest:
    """Change a copy of a manifest. What a path goes through is made where it is missing."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is GONE:
            target.pop(last, None)
        else:
            target[last] = copy.deepcopy(value)
    return result
