"""Monitoring: who is scraped and by whom, what each alert fires on, and what a dashboard shows."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import promql_parser
import pytest

from function import api, monitoring, releases
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import CREDENTIALS, Credential, Part, Plan, Site, Tier
from function.kube import Manifest
from tests.lint.manifests import Context, lint
from tests.lint.schemas import schema_errors
from tests.render.conftest import built
from tests.tools import build, crossplane, prometheus

DISK: Manifest = {"storageClassName": "nvme", "sizePerNode": "1Ti"}
MOONCAKE: Manifest = {"segmentGiBPerNode": 64, "protocol": "TCP"}
SPECS: Mapping[str, Manifest] = {
    "lmcache": {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64}},
    "lmcache with a disk": {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64, "diskTier": DISK}},
    "lmcache with a redis": {
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64, "remote": {"redis": {"host": "kv.cache.svc"}}},
    },
    "lmcache with a valkey": {
        "backend": "LMCache",
        "lmcache": {"cpuTierGiBPerNode": 64, "diskTier": DISK, "remote": {"redis": {"provision": {"memory": "8Gi"}}}},
    },
    "aibrix distributed": {
        "backend": "AIBrix",
        "aibrix": {"distributed": {"infinistore": {"memoryGiBPerReplica": 64}}},
        "rdma": {"extendedResource": {"name": "rdma/nics"}, "agents": {"count": 1}, "engines": {"count": 1}},
    },
    "aibrix with vineyard": {
        "backend": "AIBrix",
        "aibrix": {"distributed": {"vineyard": {"memoryGiBPerReplica": 64}}},
    },
    "lmcache in process": {"backend": "LMCache", "lmcache": {"cpuTierGiBPerNode": 64, "mode": "InProcess"}},
    "mooncake": {"backend": "Mooncake", "mooncake": MOONCAKE},
    "mooncake with disks": {"backend": "Mooncake", "mooncake": {**MOONCAKE, "disk": DISK}},
    "mooncake of three": {
        "backend": "Mooncake",
        "mooncake": {**MOONCAKE, "master": {"replicas": 3}, "etcd": {"provision": {}}},
    },
    "hicache": {"backend": "HiCache", "hicache": {"hostMemoryGiBPerNode": 64}},
    "hicache over mooncake": {
        "backend": "HiCache",
        "hicache": {"hostMemoryGiBPerNode": 64, "l3": {"backend": "Mooncake"}},
        "mooncake": MOONCAKE,
    },
    "nixl files": {
        "backend": "Nixl",
        "nixl": {
            "storage": {
                "cpuTierGiBPerNode": 64,
                "fs": {"hostPath": {"path": "/mnt/kv"}, "sizePerNode": "1Ti"},
            }
        },
    },
}
MONITORING = {"PodMonitor", "PrometheusRule"}
# sha256("kvtier/modelplane-system/pool") begins with c0066.
NAME = "kvtier-modelplane-system-pool-c0066"
CACHE = "kvcache-modelplane-system-pool-c26d2"  # as AIBrix's controller names it
AGENT_DOWN = "KVOffloadAgentDown"
POD_DOWN = "KVOffloadControlPlaneDown"
ETCD_FULL = "KVOffloadEtcdFull"
MEMORY, DISK_FULL, PUTS, HITS = "KVOffloadMemoryFull", "KVOffloadDiskFull", "KVOffloadPutsFail", "KVOffloadNoHits"


class Expected(NamedTuple):
    """What a tier gets: the components that are scraped, its alerts in order, and how many graphs."""

    components: list[str]
    alerts: list[str]
    panels: int


EXPECTED: Mapping[str, Expected] = {
    "lmcache": Expected(["agent"], [AGENT_DOWN, MEMORY, PUTS, HITS], 4),
    "lmcache with a disk": Expected(["agent"], [AGENT_DOWN, MEMORY, PUTS, HITS, DISK_FULL], 6),
    "lmcache with a redis": Expected(["agent"], [AGENT_DOWN, MEMORY, PUTS, HITS], 5),
    "lmcache with a valkey": Expected(["valkey", "agent"], [POD_DOWN, AGENT_DOWN, MEMORY, PUTS, HITS, DISK_FULL], 9),
    "aibrix distributed": Expected(["valkey"], [POD_DOWN, POD_DOWN], 3),
    "aibrix with vineyard": Expected(["etcd"], [POD_DOWN, ETCD_FULL], 1),
    "lmcache in process": Expected([], [], 0),
    "mooncake": Expected(["master"], [POD_DOWN, AGENT_DOWN, MEMORY, PUTS, HITS], 6),
    "mooncake with disks": Expected(["master"], [POD_DOWN, AGENT_DOWN, MEMORY, PUTS, DISK_FULL], 7),
    "mooncake of three": Expected(
        ["etcd", "master"], [POD_DOWN, POD_DOWN, AGENT_DOWN, MEMORY, PUTS, HITS, ETCD_FULL], 7
    ),
    "hicache": Expected([], [], 0),
    "hicache over mooncake": Expected(["master"], [POD_DOWN, AGENT_DOWN, MEMORY, PUTS, HITS], 6),
    "nixl files": Expected([], [AGENT_DOWN], 0),
}

# As servers show them: LMCache 0.5.6, Mooncake 0.3.13.post1, etcd 3.4.23, redis_exporter 1.45, kube-state-metrics.
METRICS = {
    "lmcache_mp_l1_usage_ratio",
    "lmcache_mp_l1_allocation_failure_chunks_total",
    "lmcache_mp_l1_write_chunks_total",
    "lmcache_mp_l2_usage_bytes",
    "lmcache_mp_lookup_requested_tokens_total",
    "lmcache_mp_lookup_hit_tokens_total",
    "master_allocated_bytes",
    "master_total_capacity_bytes",
    "master_allocated_file_size_bytes",
    "master_total_file_capacity_bytes",
    "master_key_count",
    "master_put_start_alloc_failures_total",
    "master_put_revoke_requests_total",
    "master_batch_put_revoke_items_total",
    "master_put_start_requests_total",
    "master_batch_put_start_items_total",
    "master_exist_key_requests_total",
    "master_batch_exist_key_items_total",
    "valid_get_nums_",
    "segment_total_capacity_bytes",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_server_quota_backend_bytes",
    "redis_memory_used_bytes",
    "redis_memory_max_bytes",
    "redis_keyspace_hits_total",
    "redis_keyspace_misses_total",
    "redis_evicted_keys_total",
    "kube_daemonset_status_number_unavailable",
    "kube_daemonset_status_updated_number_scheduled",
    "kube_deployment_status_replicas_unavailable",
    "kube_statefulset_replicas",
    "kube_statefulset_status_replicas_ready",
    "kube_pod_labels",
}


def tier(spec: str, **wanted: Any) -> Tier:
    """Read the tier modelplane-system/pool, with `wanted` as its monitoring block."""
    fields = {"inferenceClusterRef": {"name": "eu-h100"}, **SPECS[spec], "monitoring": wanted}
    return Tier("modelplane-system", "pool", api.parse(TierSpec, fields), releases.RELEASES["2026.11"])


def unwatched(spec: str) -> Tier:
    fields = {"inferenceClusterRef": {"name": "eu-h100"}, **SPECS[spec]}
    return Tier("modelplane-system", "pool", api.parse(TierSpec, fields), releases.RELEASES["2026.11"])


def plan(one: Tier) -> Plan:
    """Plan what a tier runs without its monitoring."""
    drawn = Credential({"password": "aHVzaA==", "drawn": "MQ=="}, "MQ==")
    return of(one.spec).plan(one, Site(8), {CREDENTIALS: drawn} if of(one.spec).secrets(one) else {})


def watched(spec: str, **wanted: Any) -> list[Part]:
    one = tier(spec, **wanted)
    return monitoring.parts(one, plan(one))


def manifest(spec: str, kind: str, **wanted: Any) -> Manifest:
    (found,) = [p.manifest for p in watched(spec, **wanted) if p.manifest["kind"] == kind]
    return found


def rules(spec: str, **wanted: Any) -> list[Manifest]:
    kinds = [p.manifest for p in watched(spec, **wanted) if p.manifest["kind"] == "PrometheusRule"]
    return [rule for found in kinds for rule in found["spec"]["groups"][0]["rules"]]


def dashboard(spec: str) -> Manifest:
    (text,) = manifest(spec, "ConfigMap")["data"].values()
    found: Manifest = json.loads(text)
    return found


def panels(spec: str) -> list[Manifest]:
    return list(dashboard(spec)["panels"]) if EXPECTED[spec].panels else []


def expressions(spec: str) -> list[str]:
    return [r["expr"] for r in rules(spec)] + [p["targets"][0]["expr"] for p in panels(spec)]


def containers(planned: Plan) -> Iterator[Manifest]:
    for part in planned.parts:
        template = part.manifest.get("spec", {}).get("template")
        yield from template["spec"]["containers"] if template else ()


every_tier = pytest.mark.parametrize("spec", SPECS)


# --- only where asked for -----------------------------------------------------------------------------------------


@every_tier
def test_nothing_is_watched_where_nobody_asks(spec: str) -> None:
    one = unwatched(spec)
    planned = plan(one)
    assert monitoring.parts(one, planned) == []
    listening = {c["name"] for c in containers(planned) for p in c.get("ports", ()) if p["name"] == "metrics"}
    # Masters and members answer probes there.
    assert listening <= {"master", "etcd"}
    assert "exporter" not in [c["name"] for c in containers(planned)]
    assert "namespaceSelector" not in json.dumps([p.manifest for p in planned.parts])


@every_tier
def test_without_pod_monitors_no_metrics_port_is_open(spec: str) -> None:
    off = tier(spec, podMonitors=False)
    assert plan(off) == plan(unwatched(spec))
    # What kube-state-metrics says is there all the same.
    expected = [name for name in EXPECTED[spec].alerts if name in (AGENT_DOWN, POD_DOWN)]
    assert [r["alert"] for r in rules(spec, podMonitors=False)] == expected
    assert {p.manifest["kind"] for p in watched(spec, podMonitors=False)} <= {"PrometheusRule"}


@every_tier
def test_alerts_and_dashboard_can_be_left_out(spec: str) -> None:
    kinds = {p.manifest["kind"] for p in watched(spec)}
    assert {p.manifest["kind"] for p in watched(spec, alerts=False)} == kinds - {"PrometheusRule"}
    assert {p.manifest["kind"] for p in watched(spec, dashboard=False)} == kinds - {"ConfigMap"}
    assert watched(spec, podMonitors=False, alerts=False, dashboard=False) == []


@every_tier
def test_a_tier_is_watched_as_its_backend_allows(spec: str) -> None:
    found = watched(spec)
    monitors = [p.manifest for p in found if p.manifest["kind"] == "PodMonitor"]
    components = [m["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] for m in monitors]
    assert sorted(components) == sorted(EXPECTED[spec].components)
    assert sorted(r["alert"] for r in rules(spec)) == sorted(EXPECTED[spec].alerts)
    assert len(panels(spec)) == EXPECTED[spec].panels


# --- manifests ----------------------------------------------------------------------------------------------------


def test_a_pod_monitor_selects_one_component_by_its_port() -> None:
    assert manifest("mooncake", "PodMonitor", labels={"release": "prometheus"}) == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {
            "name": f"{NAME}-master",
            "namespace": "default",
            "labels": {
                "release": "prometheus",
                "app.kubernetes.io/instance": NAME,
                "app.kubernetes.io/managed-by": "function-kv-offload",
                "app.kubernetes.io/component": "master",
            },
        },
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/instance": NAME, "app.kubernetes.io/component": "master"}},
            "podMetricsEndpoints": [{"port": "metrics"}],
        },
    }


def test_a_rule_says_whose_it_is() -> None:
    found = manifest("mooncake", "PrometheusRule", labels={"release": "prometheus"})
    assert found["metadata"]["labels"]["release"] == "prometheus"
    (group,) = found["spec"]["groups"]
    assert group["name"] == NAME
    assert group["rules"][0] == {
        "alert": "KVOffloadControlPlaneDown",
        "expr": f'kube_deployment_status_replicas_unavailable{{namespace="default",deployment="{NAME}-master"}} > 0',
        "for": "15m",
        "labels": {"severity": "warning", "tier": "modelplane-system/pool"},
        "annotations": {
            "summary": f"A pod of Deployment {NAME}-master is away",
            "description": "KVOffloadTier modelplane-system/pool",
        },
    }


def test_labels_of_the_users_do_not_replace_ours() -> None:
    found = manifest("mooncake", "PodMonitor", labels={"app.kubernetes.io/instance": "other"})
    assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == NAME


@every_tier
def test_prometheus_alone_reaches_metrics_and_nothing_else(spec: str) -> None:
    planned = plan(tier(spec, prometheusNamespace="observability"))
    policies = [p.manifest for p in planned.parts if p.manifest["kind"] == "NetworkPolicy"]
    found = [
        (policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"], rule)
        for policy in policies
        for rule in policy["spec"].get("ingress", ())
        if any("namespaceSelector" in peer for peer in rule.get("from", ()))
    ]
    allowed = {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}],
        "ports": [{"port": "metrics", "protocol": "TCP"}],
    }
    assert sorted(component for component, _ in found) == sorted(EXPECTED[spec].components)
    assert [rule for _, rule in found if rule != allowed] == []


@every_tier
def test_everything_is_sound_together(spec: str) -> None:
    one = tier(spec)
    planned = plan(one)
    manifests = [p.manifest for p in (*planned.parts, *monitoring.parts(one, planned)) if not p.maker]
    assert [error for m in manifests for error in schema_errors(m)] == []
    engines = {"kv-offload.modelplane.ai/tier": NAME}
    caches = [m["metadata"]["name"] for m in manifests if m["kind"] == "KVCache"]
    prefix = "kvcache.orchestration.aibrix.ai"
    others = [{f"{prefix}/name": n, f"{prefix}/role": role} for n in caches for role in ("cache", "kvwatcher")]
    servers = {"app.kubernetes.io/instance": NAME, "app.kubernetes.io/component": "infinistore"}
    assert lint(manifests, Context(external_pods=(engines, *others, servers))) == []


def test_parts_have_names_of_their_own() -> None:
    one = tier("lmcache with a valkey")
    planned = plan(one)
    names = [p.name for p in (*planned.parts, *monitoring.parts(one, planned))]
    assert len(names) == len(set(names))


def test_prometheus_operator_accepts_every_manifest() -> None:
    crds, _ = built(build.monitoring_crds, lambda: build.tool("xrd"))
    manifests = {
        kind: [p.manifest for s in SPECS for p in watched(s) if p.manifest["kind"] == kind] for kind in MONITORING
    }
    manifests["PodMonitor"].append({**manifests["PodMonitor"][0], "spec": {"endpoints": []}})
    for kind, file in (("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")):
        cases = [{"name": str(n), "old": None, "new": one} for n, one in enumerate(manifests[kind])]
        answer = crossplane.check_xrd(crds / f"monitoring.coreos.com_{file}.yaml", cases)
        assert answer["crdErrors"] == []
        found = [bool(case["errors"] or case["pruned"]) for case in answer["cases"]]
        # The last PodMonitor is one that must be refused.
        assert found == [False] * (len(found) - 1) + [kind == "PodMonitor"]


# --- expressions --------------------------------------------------------------------------------------------------


@every_tier
def test_every_expression_can_be_parsed(spec: str) -> None:
    for expr in expressions(spec):
        promql_parser.parse(expr)


def test_an_expression_that_is_wrong_is_noticed() -> None:
    with pytest.raises(ValueError, match="expected"):
        promql_parser.parse("rate(up)")


def test_every_metric_is_one_that_was_seen_on_its_server() -> None:
    used = {name for spec in SPECS for expr in expressions(spec) for name in re.findall(r"(\w+)\{", expr)}
    assert used == METRICS


@every_tier
def test_every_metric_is_of_this_tier_alone(spec: str) -> None:
    for expr in expressions(spec):
        selectors = re.findall(r"\w+\{(.*?)\}", expr)
        assert selectors
        assert [s for s in selectors if not re.search(rf'="(default/)?({NAME}|{CACHE})(-\w+)?"', s)] == []


POD = f'job="default/{NAME}-agent",pod="a"'
POOL = f'job="default/{NAME}-master"'
LEADER, STANDBY = f'{POOL},pod="one"', f'{POOL},pod="two"'
AGENTS = f'namespace="default",daemonset="{NAME}"'
ETCD = f'namespace="default",statefulset="{NAME}-etcd"'
ASKED = f"lmcache_mp_lookup_requested_tokens_total{{{POD}}} 0+256x120"
NOT_FOUND = f"lmcache_mp_lookup_hit_tokens_total{{{POD}}} 0x120"
KEYS_ASKED = [
    f"master_batch_exist_key_items_total{{{LEADER}}} 0+9x120",
    f"master_exist_key_requests_total{{{LEADER}}} 0x120",
]
TiB90 = int(0.9 * 1024**4)


def engine(name: str) -> str:
    return f'kube_pod_labels{{pod="{name}",label_kv_offload_modelplane_ai_tier="{NAME}"}} 1x120'


def puts(started: str, revoked: str = "0x20", full: str = "0x20") -> list[str]:
    return [
        f"master_put_start_requests_total{{{LEADER}}} 0x20",
        f"master_batch_put_start_items_total{{{LEADER}}} {started}",
        f"master_put_start_alloc_failures_total{{{LEADER}}} {full}",
        f"master_put_revoke_requests_total{{{LEADER}}} 0x20",
        f"master_batch_put_revoke_items_total{{{LEADER}}} {revoked}",
    ]


class Story(NamedTuple):
    """What a tier's metrics were, and whether an alert fires on them."""

    spec: str
    alert: str
    fires: bool
    series: list[str]


def full(used: float, name: str = "allocated_bytes", size: str = "total_capacity_bytes") -> list[str]:
    shown = [f"master_{name}{{{LEADER}}} {used}", f"master_{size}{{{LEADER}}} 100"]
    return [*shown, f"master_{name}{{{STANDBY}}} 0", f"master_{size}{{{STANDBY}}} 0"]


STORIES: Mapping[str, Story] = {
    "nothing is known": Story("lmcache with a disk", MEMORY, False, []),
    "an agent's memory is full": Story("lmcache", MEMORY, True, [f"lmcache_mp_l1_usage_ratio{{{POD}}} 0.95"]),
    "an agent's memory is at the watermark": Story(
        "lmcache", MEMORY, False, [f"lmcache_mp_l1_usage_ratio{{{POD}}} 0.8"]
    ),
    "another tier's agent is full": Story(
        "lmcache", MEMORY, False, ['lmcache_mp_l1_usage_ratio{job="default/kvtier-other-agent",pod="b"} 1']
    ),
    "an agent's disk is full": Story(
        "lmcache with a disk", DISK_FULL, True, [f'lmcache_mp_l2_usage_bytes{{{POD},l2_name="fs_native"}} {TiB90}']
    ),
    "an agent's disk has room": Story(
        "lmcache with a disk", DISK_FULL, False, [f'lmcache_mp_l2_usage_bytes{{{POD},l2_name="fs_native"}} 8e11']
    ),
    "redis holds more than a disk could": Story(
        "lmcache with a valkey", DISK_FULL, False, [f'lmcache_mp_l2_usage_bytes{{{POD},l2_name="resp"}} {TiB90}']
    ),
    "an agent has no room": Story(
        "lmcache",
        PUTS,
        True,
        [
            f'lmcache_mp_l1_allocation_failure_chunks_total{{{POD},during="l1_store",model_name="m"}} 0+2x20',
            f'lmcache_mp_l1_write_chunks_total{{{POD},l1_tag="_default"}} 0+100x20',
        ],
    ),
    "an agent never stored anything": Story(
        "lmcache",
        PUTS,
        True,
        [f'lmcache_mp_l1_allocation_failure_chunks_total{{{POD},during="l1_store",model_name="m"}} 0+2x20'],
    ),
    "an agent rarely has no room": Story(
        "lmcache",
        PUTS,
        False,
        [
            f'lmcache_mp_l1_allocation_failure_chunks_total{{{POD},during="l1_store",model_name="m"}} 0+1x20',
            f'lmcache_mp_l1_write_chunks_total{{{POD},l1_tag="_default"}} 0+1000x20',
        ],
    ),
    "an agent failed long ago": Story(
        "lmcache",
        PUTS,
        False,
        [f'lmcache_mp_l1_allocation_failure_chunks_total{{{POD},during="l1_store",model_name="m"}} 5x20'],
    ),
    "an agent has no room to read ahead": Story(
        "lmcache",
        PUTS,
        False,
        [f'lmcache_mp_l1_allocation_failure_chunks_total{{{POD},during="l2_prefetch",model_name="m"}} 0+2x20'],
    ),
    "engines ask in vain": Story("lmcache", HITS, True, [ASKED, NOT_FOUND]),
    "two engines ask in vain": Story("lmcache", HITS, True, [ASKED, NOT_FOUND, engine("a"), engine("b")]),
    "one engine asks in vain": Story("lmcache", HITS, False, [ASKED, NOT_FOUND, engine("a")]),
    "engines ask and find": Story(
        "lmcache", HITS, False, [ASKED, f"lmcache_mp_lookup_hit_tokens_total{{{POD}}} 0+1x120"]
    ),
    "nobody asks": Story(
        "lmcache", HITS, False, [f"lmcache_mp_lookup_requested_tokens_total{{{POD}}} 512x120", NOT_FOUND]
    ),
    "the pool is full": Story("mooncake of three", MEMORY, True, full(95)),
    "the pool is at the watermark": Story("mooncake of three", MEMORY, False, full(90)),
    "the pool has no agent": Story(
        "mooncake",
        MEMORY,
        False,
        [f"master_allocated_bytes{{{LEADER}}} 0", f"master_total_capacity_bytes{{{LEADER}}} 0"],
    ),
    "the pool's disks are full": Story(
        "mooncake with disks", DISK_FULL, True, full(91, "allocated_file_size_bytes", "total_file_capacity_bytes")
    ),
    "puts find no room in the pool": Story("mooncake", PUTS, True, puts("0+100x20", full="0+2x20")),
    "puts do not get through": Story("mooncake", PUTS, True, puts("0+100x20", revoked="0+2x20")),
    "puts rarely fail": Story("mooncake", PUTS, False, puts("0+1000x20", revoked="0+1x20")),
    "nobody puts": Story("mooncake", PUTS, False, puts("100x20")),
    "engines ask the pool in vain": Story(
        "mooncake", HITS, True, [*KEYS_ASKED, f"valid_get_nums_{{{LEADER}}} 0x120", engine("a"), engine("b")]
    ),
    "one engine asks the pool in vain": Story(
        "mooncake", HITS, False, [*KEYS_ASKED, f"valid_get_nums_{{{LEADER}}} 0x120", engine("a")]
    ),
    "engines find in the pool": Story("mooncake", HITS, False, [*KEYS_ASKED, f"valid_get_nums_{{{LEADER}}} 0+1x120"]),
    "an agent is away": Story(
        "nixl files",
        AGENT_DOWN,
        True,
        [
            f"kube_daemonset_status_number_unavailable{{{AGENTS}}} 1x20",
            f"kube_daemonset_status_updated_number_scheduled{{{AGENTS}}} 3x20",
        ],
    ),
    "agents are being replaced": Story(
        "nixl files",
        AGENT_DOWN,
        False,
        [
            f"kube_daemonset_status_number_unavailable{{{AGENTS}}} 1x20",
            f"kube_daemonset_status_updated_number_scheduled{{{AGENTS}}} 3x10 4x9",
        ],
    ),
    "an etcd member is full": Story(
        "mooncake of three",
        ETCD_FULL,
        True,
        [
            f'etcd_mvcc_db_total_size_in_bytes{{job="default/{NAME}-etcd",pod="a"}} 71',
            f'etcd_server_quota_backend_bytes{{job="default/{NAME}-etcd",pod="a"}} 100',
        ],
    ),
    "an etcd member is away": Story(
        "mooncake of three",
        POD_DOWN,
        True,
        [f"kube_statefulset_replicas{{{ETCD}}} 3x20", f"kube_statefulset_status_replicas_ready{{{ETCD}}} 2x20"],
    ),
    "all etcd members are there": Story(
        "mooncake of three",
        POD_DOWN,
        False,
        [f"kube_statefulset_replicas{{{ETCD}}} 3x20", f"kube_statefulset_status_replicas_ready{{{ETCD}}} 3x20"],
    ),
    "the master is away": Story(
        "mooncake",
        POD_DOWN,
        True,
        [f'kube_deployment_status_replicas_unavailable{{namespace="default",deployment="{NAME}-master"}} 1x20'],
    ),
}


def test_alerts_fire_as_prometheus_evaluates_them() -> None:
    built(lambda: build.tool("promql"))
    asked = {
        name: [rule["expr"] for rule in rules(story.spec) if rule["alert"] == story.alert]
        for name, story in STORIES.items()
    }
    assert [name for name, exprs in asked.items() if not exprs] == []
    cases = [(name, expr) for name, exprs in asked.items() for expr in exprs]
    answers = prometheus.evaluate([(STORIES[name].series, expr) for name, expr in cases])
    fired = dict.fromkeys(STORIES, False)
    for (name, _), answer in zip(cases, answers, strict=True):
        fired[name] |= bool(answer)
    assert fired == {name: story.fires for name, story in STORIES.items()}


# --- dashboard ----------------------------------------------------------------------------------------------------


@every_tier
def test_a_dashboard_is_what_grafana_reads(spec: str) -> None:
    if not EXPECTED[spec].panels:
        assert "ConfigMap" not in {p.manifest["kind"] for p in watched(spec)}
        return
    found = manifest(spec, "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert list(found["data"]) == [f"{NAME}.json"]
    assert len(found["data"][f"{NAME}.json"]) < 100_000
    shown = dashboard(spec)
    assert shown["title"] == "KV offload: modelplane-system/pool"
    assert 0 < len(shown["uid"]) <= 40
    assert shown["templating"]["list"] == [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in shown["panels"]:
        (target,) = panel["targets"]
        assert panel["datasource"] == target["datasource"] == source
        assert panel["title"]
        # What an expression keeps apart has to be told apart.
        kept = re.match(r"\w+ by \((.*?)\)", target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == set(kept[1].split(", ") if kept else ())
        assert target["legendFormat"]
    assert len({p["id"] for p in shown["panels"]}) == len({p["title"] for p in shown["panels"]}) == len(shown["panels"])


@every_tier
def test_graphs_lie_beside_each_other(spec: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(spec):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert taken.isdisjoint(cells)
        taken |= cells


def test_two_tiers_have_two_dashboards() -> None:
    one = tier("mooncake")
    other = Tier("modelplane-system", "other", one.spec, one.release)
    uids, names = set(), set()
    for each in (one, other):
        (found,) = [p.manifest for p in monitoring.parts(each, plan(each)) if p.manifest["kind"] == "ConfigMap"]
        ((name, text),) = found["data"].items()
        uids.add(json.loads(text)["uid"])
        names.add(name)
    assert len(uids) == len(names) == 2


@every_tier
def test_the_same_tier_gives_the_same_bytes(spec: str) -> None:
    assert watched(spec) == watched(spec)
