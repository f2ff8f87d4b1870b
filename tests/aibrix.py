"""A stand-in for AIBrix's controller: what it makes of a KVCache, as v0.7.0 does it (pkg/controller/kvcache/backends).

The end-to-end tests run the real one. For the rules that all manifests are held to, two things are other than there:
its watcher is a bare Pod, and its StatefulSet names no Service.
"""

import copy

from function.kube import Manifest

_NAME, _ROLE = "kvcache.orchestration.aibrix.ai/name", "kvcache.orchestration.aibrix.ai/role"


def made(cache: Manifest) -> list[Manifest]:
    """Make the workloads, pods and Services of a KVCache; its Role, which only its watcher needs, is left out."""
    vineyard = cache["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/backend"] == "vineyard"
    return _vineyard(cache) if vineyard else _distributed(cache)


def _distributed(cache: Manifest) -> list[Manifest]:
    name, spec = cache["metadata"]["name"], cache["spec"]
    labels = _labels(cache, "cache")
    template = copy.deepcopy(spec["cache"]["template"])
    template["metadata"]["labels"] |= labels
    headless = f"{name}-headless-service"
    stateful = {
        "replicas": spec["cache"]["replicas"],
        "serviceName": headless,
        "selector": {"matchLabels": labels},
        "template": template,
    }
    watcher = spec["watcher"]
    env = [
        {"name": "REDIS_DATABASE", "value": "0"},
        {"name": "AIBRIX_KVCACHE_WATCH_CLUSTER", "value": name},
        *watcher["env"],
    ]
    pod = {
        "serviceAccountName": name,
        "containers": [
            {
                "name": "kvcache-watcher",
                "image": watcher["image"],
                "command": ["/kvcache-watcher"],
                "env": env,
                "resources": watcher["resources"],
                "ports": [{"name": "metrics", "containerPort": 8000}],
            }
        ],
    }
    watched = _labels(cache, "kvwatcher")
    deployment = {
        "replicas": 1,
        "selector": {"matchLabels": watched},
        "template": {"metadata": {"labels": watched}, "spec": pod},
    }
    service = {"clusterIP": "None", "ports": spec["service"]["ports"], "selector": labels}
    return [
        _manifest(cache, "ServiceAccount", name, labels),
        _manifest(cache, "StatefulSet", name, labels, stateful),
        _manifest(cache, "Service", headless, labels, service),
        _manifest(cache, "Deployment", f"{name}-kvcache-watcher-pod", watched, deployment),
    ]


def _vineyard(cache: Manifest) -> list[Manifest]:
    name, namespace, spec = cache["metadata"]["name"], cache["metadata"]["namespace"], cache["spec"]["cache"]
    labels = _labels(cache, "cache")
    workload = cache["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/pod-affinity-workload"]
    beside = {
        "labelSelector": {
            "matchExpressions": [{"key": "model.aibrix.ai/name", "operator": "In", "values": [workload]}]
        },
        "topologyKey": "kubernetes.io/hostname",
    }
    etcd = f"http://{name}-etcd-service:2379"
    container = {
        "name": "kvcache",
        "image": spec["image"],
        "command": ["/bin/bash", "-c", f"/usr/local/bin/vineyardd --etcd_endpoint {etcd}"],
        "ports": [{"name": "rpc", "containerPort": 9600}],
        "resources": spec["resources"],
        "volumeMounts": [{"name": "vineyard-socket", "mountPath": "/var/run"}],
    }
    folder = f"/var/run/vineyard-kubernetes/{namespace}/{name}"
    pod = {
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}},
        "containers": [container],
        "volumes": [{"name": "vineyard-socket", "hostPath": {"path": folder}}],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    deployment = {"replicas": spec["replicas"], "selector": {"matchLabels": labels}, "template": template}
    ports = [{"name": "vineyard-rpc", "port": 9600, "targetPort": 9600}]
    return [
        _manifest(cache, "Deployment", name, labels, deployment),
        _manifest(cache, "Service", f"{name}-rpc", labels, {"ports": ports, "selector": labels}),
    ]


def _labels(cache: Manifest, role: str) -> dict[str, str]:
    return {_NAME: cache["metadata"]["name"], _ROLE: role}


def _manifest(cache: Manifest, kind: str, name: str, labels: dict[str, str], spec: Manifest | None = None) -> Manifest:
    metadata: Manifest = {"name": name, "namespace": cache["metadata"]["namespace"], "labels": labels}
    api = "apps/v1" if kind in {"Deployment", "StatefulSet"} else "v1"
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **({"spec": spec} if spec else {})}
