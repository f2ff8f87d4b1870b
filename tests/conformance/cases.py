"""Renders: the examples, and variations on them."""

import base64
import copy
from collections.abc import Callable
from typing import Any

from function.render import EXAMPLES, load, render, render_example
from tests.conformance.pods import Manifest, Process, process

Change = Callable[[Manifest], None]


def tier_spec(name: str) -> Any:
    """What an example's tier asks of LMCache."""
    return load(EXAMPLES / name / "tier.yaml")[0]["spec"]["lmcache"]


def agent(name: str) -> Process:
    """An example's agent."""
    return process(render_example(name)["tier"].manifests, "DaemonSet", "lmcache")


def engine(name: str) -> Process:
    """An example's engine."""
    rendered = render_example(name)
    return process([*rendered["tier"].manifests, *rendered["deployment"].manifests], "Deployment", "engine")


def changed(
    name: str, *, tier: Change | None = None, deployment: Change | None = None, secret: dict[str, str] | None = None
) -> list[Manifest]:
    """Everything that an example becomes on its cluster once tier, deployment or the Redis credentials are changed."""
    folder = EXAMPLES / name
    tiers, deployments = load(folder / "tier.yaml"), load(folder / "deployment.yaml")
    required = copy.deepcopy(load(folder / "required.yaml"))
    if tier:
        tier(tiers[0])
    if deployment:
        deployment(deployments[0])
    if secret is not None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in secret.items()}
        next(m for m in required if m["kind"] == "Secret")["data"] = data
    results = render(tiers[0], (), required), render(deployments[0], (), [*required, *tiers])
    assert not any(result.fatal for result in results), [result.results for result in results]
    assert all(result.manifests for result in results), [result.composite["status"] for result in results]
    return [manifest for result in results for manifest in result.manifests]


def redis_at(port: int) -> Change:
    """A change: the tier's Redis is on this machine."""

    def change(tier: Manifest) -> None:
        tier["spec"]["lmcache"]["remote"]["redis"] |= {"host": "127.0.0.1", "port": port}

    return change


def pool(**wanted: Any) -> Change:
    """A change: a Mooncake tier of this machine, with the smallest segment, over TCP; and what is `wanted` of it."""

    def change(tier: Manifest) -> None:
        spec = tier["spec"]
        spec.pop("rdma", None)
        spec["mooncake"] |= {"segmentGiBPerNode": 1, "protocol": "TCP"}
        for name in ("hugePages", "disk"):
            spec["mooncake"].pop(name, None)
        spec["mooncake"] |= wanted

    return change
