"""What the workloads of every tier have around them, and how each kind becomes ready."""

from collections.abc import Mapping, Sequence
from typing import Any

from function import kube
from function.api.tier import Volume
from function.backends.base import Part, Tier

_SEEN = (
    "has(object.status) && has(object.status.observedGeneration)"
    " && object.status.observedGeneration >= object.metadata.generation"
)
DAEMONSET_READY = f"{_SEEN} && object.status.numberReady == object.status.desiredNumberScheduled"
# A rolling update is over when every pod is of this revision; with OnDelete that is up to whoever deletes pods.
DAEMONSET_ROLLED = (
    " && (object.status.desiredNumberScheduled == 0 || (has(object.status.updatedNumberScheduled)"
    " && object.status.updatedNumberScheduled == object.status.desiredNumberScheduled))"
)
# Each agent has been ready for as long as the tier asks.
DAEMONSET_SOAKED = (
    " && (object.status.desiredNumberScheduled == 0 || (has(object.status.numberAvailable)"
    " && object.status.numberAvailable == object.status.desiredNumberScheduled))"
)


def _all(*counts: str) -> str:
    return "".join(
        f" && (has(object.status.{count}) ? object.status.{count} : 0) == object.spec.replicas" for count in counts
    )


# As `kubectl rollout status`: an old replica that still serves does not make a new one that fails ready.
DEPLOYMENT_READY = _SEEN + _all("replicas", "updatedReplicas", "availableReplicas")
# Its pods are there, whether or not they are ready.
DEPLOYMENT_MADE = _SEEN + _all("replicas", "updatedReplicas")
STATEFULSET_READY = _SEEN + _all("updatedReplicas", "readyReplicas")

# A container port of this name is scraped, where the tier asks for it.
METRICS_PORT_NAME = "metrics"
# One of this name is for its node's kubelet alone, which no NetworkPolicy holds back.
HEALTH_PORT_NAME = "health"

# Where engines find their tier's ConfigMap.
CONFIG_DIR = "/etc/kv-offload"
CONNECTOR_MOUNT: kube.Manifest = {"name": "kv-offload", "mountPath": CONFIG_DIR, "readOnly": True}

# What the restricted Pod Security level asks of a container, and of its pod.
CONFINED: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def confined_pod(user: int) -> kube.Manifest:
    """Write the securityContext of a pod that fits the restricted level, run as `user`."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_basics(tier: Tier) -> kube.Manifest:
    """Write what every pod of a tier says: its account, which may do nothing, and what comes before it in line."""
    return kube.prune(
        {
            "serviceAccountName": tier.instance,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "priorityClassName": tier.spec.placement.priority_class_name,
        }
    )


def service_account(tier: Tier) -> Part:
    """Plan the account of all the tier's pods; it may do nothing."""
    manifest = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": tier.metadata(),
        "automountServiceAccountToken": False,
    }
    return Part("service-account", manifest)


def service(tier: Tier, component: str, ports: Mapping[str, int], *, headless: bool = False, name: str = "") -> Part:
    """Plan the Service of a component of the control plane, `ports` by the containers' port names.

    A headless one also names pods that are not ready: members of a cluster have to find each other first. Without a
    `name` it has the component's.
    """
    spec: kube.Manifest = {
        "selector": tier.selector(component),
        "ports": [{"name": name, "port": port, "targetPort": name} for name, port in ports.items()],
    }
    if headless:
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    name = name or component
    metadata = tier.metadata(component, name)
    return Part(f"{name}-service", {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


def network_policy(tier: Tier, component: str, rules: Sequence[kube.Manifest], name: str = "") -> Part:
    """Plan who may reach a component: ingress `rules`, and nobody else. Without a `name` it has the tier's."""
    spec = kube.prune(
        {
            "podSelector": {"matchLabels": tier.selector(component)},
            "policyTypes": ["Ingress"],
            "ingress": list(rules),
        }
    )
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": tier.metadata(component, name),
        "spec": spec,
    }
    return Part(f"{name}-network-policy" if name else "network-policy", manifest)


def from_pods(labels: Sequence[Mapping[str, str]], ports: Sequence[str | int]) -> kube.Manifest:
    """Write an ingress rule: pods of the namespace with any of these sets of labels may reach these TCP ports.

    Without ports they may reach all of them.
    """
    rule: kube.Manifest = {"from": [{"podSelector": {"matchLabels": dict(wanted)}} for wanted in labels]}
    if ports:
        rule["ports"] = [{"port": port, "protocol": "TCP"} for port in ports]
    return rule


def from_clients(tier: Tier, labels: Sequence[Mapping[str, str]], ports: Sequence[str | int]) -> kube.Manifest:
    """Write the ingress rule for agents and engines, as from_pods: on the host network they come from their nodes.

    No selector means a node, so there the ports are open; the condition HostNetworkUnprotected says so.
    """
    rule = from_pods(labels, ports)
    return {"ports": rule["ports"]} if tier.spec.rdma and tier.spec.rdma.host_network else rule


def from_prometheus(tier: Tier, ports: Sequence[str | int]) -> list[kube.Manifest]:
    """Write the ingress rules by which Prometheus may scrape these TCP ports; none where nobody asks for that."""
    wanted = tier.spec.monitoring
    if wanted is None or not wanted.pod_monitors:
        return []
    namespace = {"kubernetes.io/metadata.name": wanted.prometheus_namespace}
    return [
        {
            "from": [{"namespaceSelector": {"matchLabels": namespace}}],
            "ports": [{"port": port, "protocol": "TCP"} for port in ports],
        }
    ]


def engines(tier: Tier) -> Mapping[str, str]:
    """Give the label that the tier's attached engines carry."""
    return {kube.LABEL_TIER: tier.instance}


def disruption_budget(tier: Tier, component: str) -> Part:
    """Plan that a drain takes one member at a time."""
    manifest = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": tier.metadata(component, component),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": tier.selector(component)}},
    }
    return Part(f"{component}-budget", manifest)


def spread(tier: Tier, component: str) -> kube.Manifest:
    """Write the affinity of members that rather not share a node."""
    term = {
        "labelSelector": {"matchLabels": tier.selector(component)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def connector_volume(tier: Tier) -> kube.Manifest:
    """Write the volume of the ConfigMap that engines mount at CONFIG_DIR; not optional: the pod waits for its tier."""
    return {"name": "kv-offload", "configMap": {"name": tier.instance}}


def connector_hash(settings: object) -> dict[str, str]:
    """Write the annotation that restarts engines: a ConfigMap or a Secret that changes does not."""
    return {f"{kube.DOMAIN}/connector-hash": kube.digest(settings)[:12]}


def daemon_set(
    tier: Tier, template: kube.Manifest, *, after: str = "", loses: str = "", min_ready_seconds: int = 15
) -> Part:
    """Plan the agents' DaemonSet around a pod template, rolled as the tier's updateStrategy says.

    `after` names a part without which a change would only take down what runs, `loses` what each restart costs.
    """
    update = tier.spec.update_strategy
    rolling = update.type == "RollingUpdate"
    soak = update.min_ready_seconds
    ready = DAEMONSET_READY + (DAEMONSET_ROLLED if rolling else "") + ("" if soak is None else DAEMONSET_SOAKED)
    spec = {
        "selector": {"matchLabels": tier.selector("agent")},
        "updateStrategy": kube.prune(
            {
                "type": update.type,
                "rollingUpdate": {"maxUnavailable": update.max_unavailable} if rolling else None,
            }
        ),
        "minReadySeconds": min_ready_seconds if soak is None else soak,
        "template": template,
    }
    manifest = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": tier.metadata("agent"), "spec": spec}
    return Part("agents", manifest, ready=ready, after=after, loses=loses)


def stateful_set(
    tier: Tier,
    component: str,
    template: kube.Manifest,
    *,
    replicas: int,
    volume: Volume | None,
    lost: str,
    after: str = "",
) -> Part:
    """Plan a store of the control plane around a pod template; each pod has its `volume`, named data, if there is one.

    `lost` says what is gone when it restarts without a volume, `after` names a part without which a change would only
    take down what runs.
    """
    spec = kube.prune(
        {
            "replicas": replicas,
            "serviceName": tier.named(component),
            # Members may be ready only together, and a pod that never became ready has to be replaced by one that does.
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": tier.selector(component)},
            # What they hold is worth nothing once the tier is gone.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"}
            if volume
            else None,
            "template": template,
            "volumeClaimTemplates": [claim("data", volume)] if volume else [],
        }
    )
    metadata = tier.metadata(component, component)
    manifest = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}
    return Part(component, manifest, ready=STATEFULSET_READY, after=after, loses="" if volume else lost)


def secret(tier: Tier, part: str, data: Mapping[str, str], version: str, name: str = "") -> Part:
    """Plan the one copy of a Secret, `data` in base64. `version` stands for its bytes, whose hash is never told."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": tier.metadata(name=name),
        "type": "Opaque",
        "data": dict(data),
    }
    return Part(part, manifest, version=version)


def ephemeral_disk(storage_class: str | None, size: str) -> kube.Manifest:
    """Write a volume of a storage class that lives as long as its pod; `size` is a quantity."""
    claim = kube.prune(
        {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        }
    )
    return {"name": "disk", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def claim(name: str, volume: Volume) -> kube.Manifest:
    """Write a StatefulSet's volumeClaimTemplate."""
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": volume.storage_class_name,
        "resources": {"requests": {"storage": volume.size}},
    }
    return {"metadata": {"name": name}, "spec": kube.prune(spec)}


def field(name: str, path: str) -> kube.Manifest:
    """Write a variable that holds a field of its pod, such as status.podIP."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def variables(values: Mapping[str, str]) -> list[kube.Manifest]:
    """Write variables by name."""
    return [{"name": name, "value": value} for name, value in values.items()]
