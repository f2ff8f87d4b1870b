"""Draws a plan as one HTML page with SVG in it, which needs no server and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from function.plan import Plan, Step

_WIDTH, _BAR = 320, 14
# What a node's memory is made of, in the order in which it is drawn; the last is what agents may use at most.
_CACHE, _OVERHEAD, _LIMIT = "cacheGiB", "overheadGiB", "limitGiB"
_DOTS = 16

_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin-bottom: 0; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.note { border-left: 4px solid #c76a00; padding-left: .6rem; }
.wave { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: .8rem; }
.tier { border: 1px solid #8886; border-radius: 6px; padding: .6rem .8rem; overflow-wrap: anywhere; }
.tier b { font-size: 1.05rem; } .tier small { opacity: .75; display: block; }
.tier ul { margin: .3rem 0; padding-left: 1.1rem; }
.mark { border-radius: 9px; color: #fff; font-size: .78rem; padding: .05rem .5rem; margin-right: .3rem; }
.cold { background: #2f7fd1; } .roll { background: #c76a00; }
.gone { background: #b3261e; } .plain { background: #666; }
svg { display: block; margin-top: .3rem; }
"""


def page(plan: Plan, summary: str) -> str:
    """Write the page: a section for each wave, a box for each cluster's tier, and a node's memory before and after."""
    most = max((_most(m) for step in plan.steps for m in step.memory), default=0)
    revision = f" · revision {escape(plan.revision)}" if plan.revision else ""
    sections = [_section(f"Wave {n}", [s for s in plan.steps if s.wave == n], most) for n in range(1, plan.waves + 1)]
    sections.append(_section("Unchanged or left out", [s for s in plan.steps if not s.wave], most))
    notes = [f'<p class="note">{escape(note)}</p>' for note in plan.notes]
    title = escape(plan.subject)
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
            f"<h1>{title}</h1><p>{escape(summary)}{revision}</p>",
            *notes,
            *filter(None, sections),
            "<p><small>Memory is that of a node that runs an agent, or engines where the tier has none: what holds KV, "
            "what is needed beside, and up to the limit.</small></p></html>\n",
        ]
    )


def _section(name: str, steps: list[Step], most: int) -> str:
    if not steps:
        return ""
    canary = " (canaries)" if all(step.canary for step in steps) else ""
    boxes = "\n".join(_box(step, most) for step in steps)
    return f'<h2>{escape(name)}{canary}</h2><div class="wave">\n{boxes}\n</div>'


def _box(step: Step, most: int) -> str:
    marks = [("gone" if step.action == "Remove" else "plain", step.action)]
    marks += [("cold", "cold cache")] if step.cold else []
    marks += [("roll", f"{step.engines} engine{'' if step.engines == 1 else 's'} roll")] if step.rolls_engines else []
    fields = [f"<li>{escape(path)}: {_value(old)} → {_value(new)}</li>" for path, (old, new) in step.fields.items()]
    parts = ", ".join(f"{name} {what}" for name, what in step.parts.items())
    engines = "" if step.rolls_engines else f" · {step.engines} attached"
    return "".join(
        [
            f'<div class="tier"><b>{escape(step.cluster)}</b><small>{escape(step.tier)}</small>',
            *(f'<span class="mark {kind}">{escape(text)}</span>' for kind, text in marks),
            f"<small>agents {escape(step.agents or '-')}{engines}</small>",
            _agents(step.agents),
            *(f"<ul>{''.join(fields)}</ul>" for _ in [0] if fields),
            f"<small>{escape(step.why)}</small>" if step.why else "",
            f"<small>{escape(parts)}</small>" if parts else "",
            _memory(step, most),
            "</div>",
        ]
    )


def _value(value: object) -> str:
    return "<i>none</i>" if value is None else f"<code>{escape(str(value))}</code>"


def _agents(text: str) -> str:
    """Draw a dot for each agent, full where it is ready."""
    ready, _, wanted = text.partition("/")
    if not (ready.isdecimal() and wanted.isdecimal()) or int(wanted) == 0:
        return ""
    shown = min(int(wanted), _DOTS)
    full = shown * int(ready) // int(wanted)
    fills = ["currentColor" if at < full else "none" for at in range(shown)]
    dots = "".join(
        f'<circle cx="{8 + at * 14}" cy="7" r="5" fill="{fill}" stroke="currentColor"/>'
        for at, fill in enumerate(fills)
    )
    return f'<svg width="{_WIDTH}" height="14" role="img" aria-label="{escape(text)} agents are ready">{dots}</svg>'


def _memory(step: Step, most: int) -> str:
    """Draw a node's memory, before and after where it changes."""
    before, after = step.memory
    rows = [("now", before), ("then", after)] if before and after and before != after else [("", after or before)]
    rows = [(name, memory) for name, memory in rows if _most(memory)]
    if not rows:
        return ""
    drawn = "".join(_bar(name, memory, most, at * (_BAR + 8)) for at, (name, memory) in enumerate(rows))
    return f'<svg width="{_WIDTH}" height="{len(rows) * (_BAR + 8)}" role="img" aria-label="memory">{drawn}</svg>'


def _bar(name: str, memory: Mapping[str, int], most: int, top: int) -> str:
    room = _WIDTH - 130
    cache, limit = memory.get(_CACHE, 0), memory.get(_LIMIT, 0)
    used = cache + memory.get(_OVERHEAD, 0)
    scale = room / most
    shapes = [
        f'<rect x="34" y="{top}" width="{width * scale:.1f}" height="{_BAR}" fill="{fill}"/>'
        for width, fill in ((max(limit, used), "#b8b8b8"), (used, "#c76a00"), (cache, "#2f7fd1"))
    ]
    label = f"{cache} of {max(limit, used)} GiB"
    text = f'y="{top + 11}" font-size="11" fill="currentColor"'
    return (
        f'<text x="0" {text}>{escape(name)}</text>{"".join(shapes)}'
        f'<text x="{38 + max(limit, used) * scale:.1f}" {text}>{label}</text>'
    )


def _most(memory: Mapping[str, int]) -> int:
    return max(memory.get(_LIMIT, 0), memory.get(_CACHE, 0) + memory.get(_OVERHEAD, 0))
