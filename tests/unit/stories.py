"""Stories: a composite over several passes, each of which observes what the pass before desired."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from function.kube import Manifest
from function.render import EXAMPLES, Rendered, load, render
from tests.standin import observe


class Story:
    """One composite's life.

    `required` is what the control plane holds, by kind; take one out, or change it, between passes.
    """

    def __init__(self, composite: Manifest, required: Sequence[Manifest]) -> None:
        self.composite = copy.deepcopy(composite)
        self.required: dict[str, Manifest] = {r["kind"]: copy.deepcopy(r) for r in required}
        self.observed: list[Manifest] = []
        self.last: Rendered | None = None

    def render(self) -> Rendered:
        """Render a pass, and take its status, as Crossplane does; what is fatal changes nothing."""
        rendered = render(self.composite, self.observed, list(self.required.values()))
        if not rendered.fatal:
            self.composite = rendered.composite
            self.last = rendered
        return rendered

    def happen(self, **state: Any) -> None:
        """Let the cluster take what the last pass desired; see standin.observe for `state`."""
        assert self.last is not None
        self.observed = observe(self.last, self.observed, **state)

    def settle(self) -> Rendered:
        """Render, let the cluster take it, and render what comes of it."""
        self.render()
        self.happen()
        return self.render()


def tier_story(change: Callable[[Manifest], None] | None = None, example: str = "lmcache") -> Story:
    """Begin a tier's story with an example's tier, changed."""
    tier = load(EXAMPLES / example / "tier.yaml")[0]
    if change:
        change(tier)
    return Story(tier, load(EXAMPLES / example / "required.yaml"))


def engine_story(change: Callable[[Manifest], None] | None = None, example: str = "lmcache") -> Story:
    """Begin an engine's story with an example's deployment, changed."""
    deployment = load(EXAMPLES / example / "deployment.yaml")[0]
    if change:
        change(deployment)
    folder = EXAMPLES / example
    tier = tier_story(example=example).settle().composite
    return Story(deployment, [*load(folder / "required.yaml"), tier])


def specs(rendered: Rendered) -> dict[str, Any]:
    """What is desired, by key: each Object's spec."""
    return {key: manifest["spec"] for key, manifest in rendered.composed.items()}


def pod(rendered: Rendered, kind: str = "Deployment") -> Manifest:
    """The pod template of the one workload of a kind."""
    (found,) = [m for m in rendered.manifests if m["kind"] == kind]
    template: Manifest = found["spec"]["template"]
    return template


def state(rendered: Rendered, type_: str) -> tuple[str, str]:
    """A condition's status and reason."""
    found = rendered.condition(type_)
    return found["status"], found["reason"]


def messages(rendered: Rendered) -> list[str]:
    """Results as `warning: ...` lines."""
    return [f"{r['severity'].removeprefix('SEVERITY_').lower()}: {r['message']}" for r in rendered.results]
