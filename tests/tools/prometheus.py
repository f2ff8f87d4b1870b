"""Prometheus' own engine: in come series and expressions, out come values."""

import json
import subprocess
from collections.abc import Mapping, Sequence

from tests.tools import build


def evaluate(cases: Sequence[tuple[Sequence[str], str]]) -> list[Mapping[str, str]]:
    """Evaluate expressions, each over its own series, and return for each the values at the end by their labels.

    Series are written as promtool's tests write them, such as `up{job="a"} 0+1x10`: a value a minute.
    """
    written = json.dumps([{"series": list(series), "expr": expr} for series, expr in cases])
    done = subprocess.run([build.tool("promql")], input=written, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answers: list[Mapping[str, str]] = json.loads(done.stdout)
    return answers
