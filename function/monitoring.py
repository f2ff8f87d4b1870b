"""What Prometheus and Grafana get of a tier: scrapes, alerts and a dashboard; only where `spec.monitoring` asks.

Whatever of a plan has a container port named `metrics` is scraped. The names of the metrics were seen on the servers;
docs/facts.md says of which version, and docs/monitoring.md what to do about each alert.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from function import kube, sizing
from function.backends.base import Part, Plan, Tier
from function.workloads import METRICS_PORT_NAME

API_VERSION = "monitoring.coreos.com/v1"

_FULL = "> 0.9"
_FAILING = "> 0.01"
# What kube-state-metrics makes of kube.LABEL_TIER; it shows it only where its allow-list has the label.
_ENGINE_LABEL = "label_kv_offload_modelplane_ai_tier"


@dataclass(frozen=True)
class Panel:
    """One graph of the dashboard: an expression, the unit of its values, and what its lines are called."""

    title: str
    expr: str
    unit: str
    legend: str


@dataclass(frozen=True)
class Alert:
    """One alert: it fires once its expression has had a value for as long as `lasting`."""

    name: str
    expr: str
    summary: str
    lasting: str = "15m"


@dataclass(frozen=True)
class Watch:
    """What is made of one server's metrics."""

    panels: Sequence[Panel]
    alerts: Sequence[Alert] = ()


def parts(tier: Tier, plan: Plan) -> list[Part]:
    """Plan the monitoring of what a plan runs.

    Args:
        tier: The tier.
        plan: What it runs.

    Returns:
        A PodMonitor for each workload with metrics, a PrometheusRule and a ConfigMap with a dashboard, as far as
        `spec.monitoring` asks for them and there is something to watch.
    """
    wanted = tier.spec.monitoring
    if wanted is None:
        return []
    scraped = dict(_scraped(plan)) if wanted.pod_monitors else {}
    watches = [_WATCHES[container](tier, _job(tier, component)) for component, container in scraped.items()]
    alerts = [*_workload_alerts(plan), *(alert for watch in watches for alert in watch.alerts)]
    panels = [panel for watch in watches for panel in watch.panels]
    found = [_pod_monitor(tier, component) for component in scraped]
    if wanted.alerts and alerts:
        found.append(_prometheus_rule(tier, alerts))
    if wanted.dashboard and panels:
        found.append(_dashboard(tier, panels))
    return found


def _scraped(plan: Plan) -> Iterator[tuple[str, str]]:
    """Find the workloads with metrics: component, and the container that answers."""
    for part in plan.parts:
        # Of what others make nothing is known but that it is there.
        if part.maker or part.manifest["kind"] not in ("DaemonSet", "Deployment", "StatefulSet"):
            continue
        spec = part.manifest["spec"]
        for container in spec["template"]["spec"]["containers"]:
            if any(port["name"] == METRICS_PORT_NAME for port in container.get("ports", ())):
                yield spec["selector"]["matchLabels"]["app.kubernetes.io/component"], container["name"]


def _job(tier: Tier, component: str) -> str:
    """Match the label that prometheus-operator gives to what a PodMonitor finds."""
    return f'job="{tier.spec.target_namespace}/{tier.named(component)}"'


# --- what is asked of each server ---------------------------------------------------------------------------------


def _lmcache(tier: Tier, job: str) -> Watch:
    """Watch LMCache's agents. Their counters are there from the first increment on."""
    spec = tier.spec.lmcache
    memory = f"max by (pod) (lmcache_mp_l1_usage_ratio{{{job}}})"
    failed = f'sum by (pod) (rate(lmcache_mp_l1_allocation_failure_chunks_total{{{job},during="l1_store"}}[10m]))'
    stored = f"sum by (pod) (rate(lmcache_mp_l1_write_chunks_total{{{job}}}[10m]))"
    # For each chunk that is stored; an agent that never stored one has no such counter.
    failing = f"{failed} / ({stored} or 0 * {failed})"
    requested, hit = (f"lmcache_mp_lookup_{what}_tokens_total" for what in ("requested", "hit"))
    found = f"{_rates(job, '5m', hit)} / ({_rates(job, '5m', requested)} > 0)"
    asked = f"sum by (model_name) (rate({requested}{{{job}}}[5m]))"
    panels = [
        Panel("Memory in use", memory, "percentunit", "{{pod}}"),
        Panel("Tokens asked for per second", asked, "short", "{{model_name}}"),
        Panel("Share of tokens found", found, "percentunit", "found"),
        Panel("Chunks without room, for each one stored", failing, "percentunit", "{{pod}}"),
    ]
    alerts = [
        Alert("KVOffloadMemoryFull", f"{memory} {_FULL}", "An agent's memory is over 90 % full: it evicts too slowly"),
        Alert("KVOffloadPutsFail", f"{failing} {_FAILING}", "An agent has no room for over 1 % of what it is given"),
        _no_hits(tier, _rates(job, "1h", hit), _rates(job, "1h", requested)),
    ]
    behind = f"lmcache_mp_l2_usage_bytes{{{job}}}"
    if spec and (spec.disk_tier or spec.redis):
        l2 = f"sum by (pod, l2_name) ({behind})"
        panels.append(Panel("Behind memory: on disk (fs_native), in Redis (resp)", l2, "bytes", "{{pod}} {{l2_name}}"))
    if spec and spec.disk_tier:
        capacity = sizing.disk_capacity(sizing.quantity(spec.disk_tier.size_per_node))
        disk = f'sum by (pod) (lmcache_mp_l2_usage_bytes{{{job},l2_name="fs_native"}}) / {capacity}'
        panels.append(Panel("Disk in use", disk, "percentunit", "{{pod}}"))
        alerts.append(Alert("KVOffloadDiskFull", f"{disk} {_FULL}", "An agent's disk is over 90 % full"))
    return Watch(panels, alerts)


def _master(tier: Tier, job: str) -> Watch:
    """Watch the pool. A standby, and a leader that is one no more, show a pool of nothing, so sums are the leader's."""
    spec = tier.spec.mooncake
    memory = _share(f"sum(master_allocated_bytes{{{job}}})", f"sum(master_total_capacity_bytes{{{job}}})")
    # Without room, or taken back by a client that could not get its data through.
    failed = (
        "master_put_start_alloc_failures_total",
        "master_put_revoke_requests_total",
        "master_batch_put_revoke_items_total",
    )
    puts = ("master_put_start_requests_total", "master_batch_put_start_items_total")
    failing = _share(_rates(job, "10m", *failed), _rates(job, "10m", *puts))
    # A key is read only if it was found; this name ends in an underscore.
    asked = ("master_exist_key_requests_total", "master_batch_exist_key_items_total")
    read = "valid_get_nums_"
    panels = [
        Panel("Pool in use", memory, "percentunit", "pool"),
        Panel("Agents in the pool", f"count(segment_total_capacity_bytes{{{job}}} > 0)", "short", "agents"),
        Panel("Keys", f"max(master_key_count{{{job}}})", "short", "keys"),
        Panel("Keys asked for per second", _rates(job, "5m", *asked), "short", "asked for"),
        Panel("Keys read per second", _rates(job, "5m", read), "short", "read"),
        Panel("Share of puts that fail", failing, "percentunit", "fail"),
    ]
    alerts = [
        Alert("KVOffloadMemoryFull", f"{memory} {_FULL}", "The pool is over 90 % full: it evicts too slowly"),
        Alert("KVOffloadPutsFail", f"{failing} {_FAILING}", "Over 1 % of puts find no room, or do not get through"),
    ]
    if spec and spec.disk:
        used, size = (f"sum(master_{what}_bytes{{{job}}})" for what in ("allocated_file_size", "total_file_capacity"))
        disk = _share(used, size)
        panels.append(Panel("Disks in use", disk, "percentunit", "disks"))
        alerts.append(Alert("KVOffloadDiskFull", f"{disk} {_FULL}", "The pool's disks are over 90 % full"))
    else:
        # With disks, agents read what they write down, and nothing tells that from an engine's reads.
        alerts.append(_no_hits(tier, _rates(job, "1h", read), _rates(job, "1h", *asked)))
    return Watch(panels, alerts)


def _etcd(tier: Tier, job: str) -> Watch:  # noqa: ARG001
    """Watch the masters' etcd, which their oplog fills."""
    quota = f"max by (pod) (etcd_mvcc_db_total_size_in_bytes{{{job}}} / etcd_server_quota_backend_bytes{{{job}}})"
    full = "etcd is over 70 % full: at its quota the pool takes no more keys; reset it as docs/mooncake.md says"
    return Watch(
        [Panel("etcd's quota in use", quota, "percentunit", "{{pod}}")],
        [Alert("KVOffloadEtcdFull", f"{quota} > 0.7", full)],
    )


def _exporter(tier: Tier, job: str) -> Watch:  # noqa: ARG001
    """Watch a provisioned Valkey. It is meant to be full, and to drop what was least used."""
    used, size = (f"sum(redis_memory_{what}_bytes{{{job}}})" for what in ("used", "max"))
    hits, misses = (f"redis_keyspace_{what}_total" for what in ("hits", "misses"))
    found = _share(_rates(job, "5m", hits), _rates(job, "5m", hits, misses))
    evicted = _rates(job, "5m", "redis_evicted_keys_total")
    return Watch(
        [
            Panel("Valkey: memory in use", _share(used, size), "percentunit", "memory"),
            Panel("Valkey: keys evicted per second", evicted, "short", "evicted"),
            Panel("Valkey: share of keys found", found, "percentunit", "found"),
        ]
    )


# By the name of the container that answers.
_WATCHES: Mapping[str, Callable[[Tier, str], Watch]] = {
    "lmcache": _lmcache,
    "master": _master,
    "etcd": _etcd,
    "exporter": _exporter,
}


def _workload_alerts(plan: Plan) -> Iterator[Alert]:
    """Watch what runs by what kube-state-metrics says of it: not all of it has metrics of its own."""
    for part in plan.parts:
        kind, metadata = part.manifest["kind"], part.manifest["metadata"]
        of = f'{{namespace="{metadata["namespace"]}",{kind.lower()}="{metadata["name"]}"}}'
        match kind:
            case "DaemonSet":
                # While agents are being replaced, one or another is always away.
                rolling = f"changes(kube_daemonset_status_updated_number_scheduled{of}[15m])"
                expr = f"kube_daemonset_status_number_unavailable{of} > 0 and {rolling} == 0"
                yield Alert("KVOffloadAgentDown", expr, "An agent is away, and with it what it does for its node")
            # Those of others wait for engines.
            case "Deployment" if not part.maker:
                expr = f"kube_deployment_status_replicas_unavailable{of} > 0"
                yield Alert("KVOffloadControlPlaneDown", expr, f"A pod of Deployment {metadata['name']} is away")
            case "StatefulSet":
                expr = f"kube_statefulset_replicas{of} != kube_statefulset_status_replicas_ready{of}"
                yield Alert("KVOffloadControlPlaneDown", expr, f"A pod of StatefulSet {metadata['name']} is away")


def _rates(job: str, window: str, *counters: str) -> str:
    """Write how much counters grow per second, all pods and all of them together."""
    return " + ".join(f"sum(rate({counter}{{{job}}}[{window}]))" for counter in counters)


def _share(part: str, whole: str) -> str:
    """Write a ratio that has no value where there is no whole."""
    return f"({part}) / (({whole}) > 0)"


def _no_hits(tier: Tier, hits: str, asked: str) -> Alert:
    """Alert where engines ask and none ever finds anything, unless it is known that they are fewer than two."""
    engines = f'kube_pod_labels{{{_ENGINE_LABEL}="{tier.instance}"}}'
    return Alert(
        "KVOffloadNoHits",
        f"{hits} == 0 and {asked} > 0 unless count({engines}) < 2",
        "Engines ask for KV, and none was ever there",
        "2h",
    )


# --- manifests ----------------------------------------------------------------------------------------------------


def _pod_monitor(tier: Tier, component: str) -> Part:
    spec = {
        "selector": {"matchLabels": tier.selector(component)},
        "podMetricsEndpoints": [{"port": METRICS_PORT_NAME}],
    }
    return Part(f"{component}-monitor", _custom(tier, "PodMonitor", component, component, spec))


def _prometheus_rule(tier: Tier, alerts: Sequence[Alert]) -> Part:
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": "warning", "tier": tier.ref},
            "annotations": {"summary": alert.summary, "description": f"KVOffloadTier {tier.ref}"},
        }
        for alert in alerts
    ]
    return Part(
        "alerts",
        _custom(tier, "PrometheusRule", "monitoring", "", {"groups": [{"name": tier.instance, "rules": rules}]}),
    )


def _custom(tier: Tier, kind: str, component: str, name: str, spec: kube.Manifest) -> kube.Manifest:
    """Write a resource of prometheus-operator, with the labels by which Prometheus selects it."""
    wanted, metadata = tier.spec.monitoring, tier.metadata(component, name)
    labels = {**(wanted.labels if wanted else {}), **metadata["labels"]}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata | {"labels": labels}, "spec": spec}


def _dashboard(tier: Tier, panels: Sequence[Panel]) -> Part:
    source: Mapping[str, Any] = {"type": "prometheus", "uid": "${datasource}"}
    dashboard = {
        "uid": kube.digest(tier.instance)[:12],
        "title": f"KV offload: {tier.ref}",
        "tags": ["kv-offload"],
        "schemaVersion": 39,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": n + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 12, "x": 12 * (n % 2), "y": 8 * (n // 2)},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": "A", "datasource": source, "expr": panel.expr, "legendFormat": panel.legend},
                ],
            }
            for n, panel in enumerate(panels)
        ],
    }
    metadata = tier.metadata("monitoring", "dashboard")
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata | {"labels": {**metadata["labels"], "grafana_dashboard": "1"}},
        "data": {f"{tier.instance}.json": kube.compact(dashboard) + "\n"},
    }
    return Part("dashboard", manifest)
