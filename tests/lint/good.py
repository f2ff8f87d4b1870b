"""A set of manifests with nothing wrong: an agent on every node, an etcd, an engine, and what they need."""

import base64
from typing import Any

PASSWORD = b"p@ss w0rd/with:odd+chars"

TIER = {"kv-offload.modelplane.ai/tier": "lm"}
AGENT = {**TIER, "app.kubernetes.io/component": "agent"}
ETCD = {**TIER, "app.kubernetes.io/component": "etcd"}
ENGINE = {**TIER, "app.kubernetes.io/component": "engine"}

CONFINED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def good_set() -> dict[str, dict[str, Any]]:
    """Returns a new set, by `Kind/name`."""
    manifests = [
        *(config_map(), secret(), manifest("v1", "ServiceAccount", "lm-agent"), claim_template()),
        *(agent(), service("lm-agent", AGENT, 5555, "mp"), policy("lm-agent", AGENT, "mp")),
        *(etcd(), service("lm-etcd", ETCD, 2379, 2379), policy("lm-etcd", ETCD, 2379), budget(), monitor()),
        *(engine(), service("llama", ENGINE, 80, "http")),
    ]
    return {f"{m['kind']}/{m['metadata']['name']}": m for m in manifests}


def manifest(api_version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    """Takes what a manifest consists of; returns it, in the namespace and with the label of all."""
    metadata = {"name": name, "namespace": "default", "labels": dict(TIER)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def config_map() -> dict[str, Any]:
    """Returns the connector's file, which every engine mounts."""
    return manifest("v1", "ConfigMap", "lm-connector", data={"lmcache.yaml": "chunk_size: 256\n", "seed": "1"})


def secret() -> dict[str, Any]:
    """Returns the one Secret that holds the password."""
    data = {"password": base64.b64encode(PASSWORD).decode()}
    return manifest("v1", "Secret", "lm-redis", type="Opaque", data=data)


def claim_template() -> dict[str, Any]:
    """Returns the template of an engine's NIC."""
    request = {
        "name": "nic",
        "exactly": {"deviceClassName": "rdma", "allocationMode": "ExactCount", "count": 1},
    }
    spec = {"spec": {"devices": {"requests": [request]}}}
    return manifest("resource.k8s.io/v1", "ResourceClaimTemplate", "lm-rdma", spec=spec)


def agent() -> dict[str, Any]:
    """Returns the agent: an init container that empties the disk, and the server."""
    node_name = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    clean = {
        "name": "clean",
        "image": "busybox:1.37",
        "command": ["sh", "-c", 'rm -rf "/disk/$(hostname)" && echo $(NODE)'],
        "env": [node_name],
        "volumeMounts": [{"name": "disk", "mountPath": "/disk", "subPathExpr": "$(NODE)"}],
        "securityContext": CONFINED,
    }
    password = {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "lm-redis", "key": "password"}}}
    server = {
        "name": "server",
        "image": "registry.example:5000/lmcache@sha256:" + 64 * "a",
        "command": ["lmcache", "server"],
        "args": ["--port=5555", "--l1-size-gb", "64", "--l2-adapter={}", "--l2-adapter", '{"password":"$(PASSWORD)"}'],
        "env": [node_name, password, {"name": "ID", "value": "$(NODE)-$$(KEPT)"}],
        "ports": [{"name": "mp", "containerPort": 5555}, {"name": "metrics", "containerPort": 9090}],
        "readinessProbe": {"tcpSocket": {"port": "mp"}},
        "livenessProbe": {"tcpSocket": {"port": 5555}},
        "resources": {
            "requests": {"cpu": "500m", "memory": "70Gi", "hugepages-2Mi": "1Gi"},
            "limits": {"memory": "71.5Gi", "hugepages-2Mi": "1Gi"},
        },
        "volumeMounts": [
            {"name": "disk", "mountPath": "/disk", "subPathExpr": "$(NODE)"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": "/etc/lmcache/lmcache.yaml", "subPath": "lmcache.yaml"},
        ],
        "securityContext": CONFINED,
    }
    spec = {
        "serviceAccountName": "lm-agent",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "initContainers": [clean],
        "containers": [server],
        "volumes": [
            {"name": "disk", "ephemeral": {"volumeClaimTemplate": {"spec": disk("1Ti")}}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "config", "configMap": {"name": "lm-connector"}},
        ],
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
    }
    return manifest("apps/v1", "DaemonSet", "lm-agent", spec=workload(AGENT, spec))


def etcd() -> dict[str, Any]:
    """Returns an etcd on a volume of its own."""
    member = {
        "name": "etcd",
        "image": "etcd:v3.6.4",
        "command": ["etcd", "--data-dir=/data", "--listen-client-urls", "http://0.0.0.0:2379"],
        "ports": [{"containerPort": 2379}],
        "startupProbe": {"tcpSocket": {"port": 2379}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": CONFINED,
    }
    spec = {"automountServiceAccountToken": False, "enableServiceLinks": False, "containers": [member]}
    claim = {"metadata": {"name": "data"}, "spec": disk("8Gi")}
    rest = {"replicas": 3, "serviceName": "lm-etcd", "volumeClaimTemplates": [claim]}
    return manifest("apps/v1", "StatefulSet", "lm-etcd", spec={**workload(ETCD, spec), **rest})


def engine() -> dict[str, Any]:
    """Returns an engine as a user might write it, with the connector attached."""
    vllm = {
        "name": "engine",
        "image": "vllm/vllm-openai:v0.11",
        "args": ["--model=m", "--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1"}'],
        "ports": [{"name": "http", "containerPort": 8000}],
        "resources": {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}, "claims": [{"name": "rdma"}]},
        "volumeMounts": [{"name": "kv", "mountPath": "/etc/kv"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [vllm],
        "resourceClaims": [{"name": "rdma", "resourceClaimTemplateName": "lm-rdma"}],
        "volumes": [
            {"name": "kv", "configMap": {"name": "lm-connector", "items": [{"key": "seed", "path": "seed"}]}},
        ],
    }
    return manifest("apps/v1", "Deployment", "llama", spec={"replicas": 2, **workload(ENGINE, spec)})


def workload(labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    """Takes a pod's labels and spec; returns the spec of a workload that runs it."""
    return {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": {"modelplane.ai/hash": "0f"}}, "spec": spec},
    }


def disk(size: str) -> dict[str, Any]:
    """Takes a size; returns the spec of a claim for it."""
    return {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "nvme-local",
        "resources": {"requests": {"storage": size}},
    }


def service(name: str, labels: dict[str, str], port: int, target: int | str) -> dict[str, Any]:
    """Takes a name, whom to select, and ports; returns the Service."""
    ports = [{"name": "main", "port": port, "targetPort": target}]
    return manifest("v1", "Service", name, spec={"selector": labels, "ports": ports})


def policy(name: str, labels: dict[str, str], port: int | str) -> dict[str, Any]:
    """Takes a name, whom to guard, and a port for engines; returns the policy, which lets monitoring in to metrics."""
    engines = {"from": [{"podSelector": {"matchLabels": ENGINE}}], "ports": [{"port": port}]}
    monitoring = {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "ports": [{"port": 9090, "endPort": 9099}],
    }
    spec = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": [engines, monitoring]}
    return manifest("networking.k8s.io/v1", "NetworkPolicy", name, spec=spec)


def budget() -> dict[str, Any]:
    """Returns how many of etcd may be away."""
    spec = {
        "maxUnavailable": 1,
        "selector": {
            "matchExpressions": [{"key": key, "operator": "In", "values": [value]} for key, value in ETCD.items()]
        },
    }
    return manifest("policy/v1", "PodDisruptionBudget", "lm-etcd", spec=spec)


def monitor() -> dict[str, Any]:
    """Returns whom to scrape."""
    spec = {"selector": {"matchLabels": AGENT}, "podMetricsEndpoints": [{"port": "metrics"}]}
    return manifest("monitoring.coreos.com/v1", "PodMonitor", "lm-agent", spec=spec)
