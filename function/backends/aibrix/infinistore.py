"""InfiniStore's servers, run by AIBrix's controller, and what stands around them.

Flags were read in InfiniStore's infinistore/server.py: 0.2.35 as released, and its last state.
"""

import math

from function import kube, placement, rdma, workloads
from function.api.tier import InfiniStoreServers
from function.backends.aibrix import kvcache, l2, metadata
from function.backends.base import Credential, Part, Tier, given

COMPONENT = "infinistore"
_MANAGE_PORT = 8088
# Of a server's memory; the controller's own share, when it works out the rest from a limit.
_SHARE = 0.9


def parts(tier: Tier, credential: Credential | None) -> list[Part]:
    """Plan the KVCache, its members' Valkey, and who may reach what; `credential` is that of the members' Redis."""
    spec = _spec(tier)
    template = _template(tier)
    clients = workloads.from_pods([workloads.engines(tier)], [kvcache.SERVICE_PORT])
    watcher = {
        "replicas": 1,
        "image": tier.spec.images.watcher or tier.release.watcher_image,
        "imagePullPolicy": "IfNotPresent",
        "env": metadata.writer(tier),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
    }
    ports = {"service": kvcache.SERVICE_PORT, "manage": _MANAGE_PORT}
    # Without spec.metadata it makes no Redis of its own, which would have no password.
    planned = kvcache.part(tier, COMPONENT, spec, {"template": template}, ports=ports, watcher=watcher)
    return [
        workloads.service_account(tier),
        *rdma.parts(tier),
        *metadata.parts(tier, credential, kvcache.watcher(tier)),
        planned,
        kvcache.observed(
            tier, "StatefulSet", COMPONENT, workloads.STATEFULSET_READY, replicas=spec.replicas, template=template
        ),
        workloads.network_policy(tier, COMPONENT, [clients], COMPONENT),
        kvcache.network_policy(tier, "watcher", kvcache.watcher(tier), []),
    ]


def _spec(tier: Tier) -> InfiniStoreServers:
    return given(given(tier.spec.aibrix).servers)


def _template(tier: Tier) -> kube.Manifest:
    spec, nics, wanted = _spec(tier), rdma.for_agents(tier), given(tier.spec.rdma)
    amounts = {"memory": f"{math.ceil(spec.memory_gib_per_replica / _SHARE)}Gi", **nics.resources}
    alive = {
        "httpGet": {"path": "/kvmap_len", "port": workloads.HEALTH_PORT_NAME},
        "periodSeconds": 10,
        "timeoutSeconds": 5,
    }
    container = {
        "name": COMPONENT,
        "image": tier.spec.images.infinistore or tier.release.infinistore_image,
        "command": ["infinistore"],
        "args": [
            f"--service-port={kvcache.SERVICE_PORT}",
            f"--manage-port={_MANAGE_PORT}",
            f"--link-type={l2.LINKS[spec.link_type]}",
            f"--prealloc-size={spec.memory_gib_per_replica}",
            *([f"--dev-name={wanted.net_devices[0]}"] if wanted.net_devices else []),
            *([f"--hint-gid-index={wanted.gid_index}"] if wanted.gid_index is not None else []),
        ],
        "ports": [
            {"name": "service", "containerPort": kvcache.SERVICE_PORT},
            # By the same port anybody could empty it.
            {"name": workloads.HEALTH_PORT_NAME, "containerPort": _MANAGE_PORT},
        ],
        "resources": kube.prune(
            {
                "requests": {"cpu": "4", **amounts},
                "limits": amounts,
                "claims": [{"name": c["name"]} for c in nics.claims],
            }
        ),
        # All its memory is registered before it answers.
        "startupProbe": alive | {"failureThreshold": 90},
        "readinessProbe": alive,
        "livenessProbe": alive | {"failureThreshold": 6},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            # By the second one it asks to be spared when memory runs out, and ends where it may not.
            "capabilities": {"drop": ["ALL"], "add": [*nics.capabilities, "SYS_RESOURCE"]},
            "runAsUser": 0,
        },
    }
    where = placement.agents(tier.spec.placement)
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            **where,
            "affinity": {**where["affinity"], **workloads.spread(tier, COMPONENT)},
            "resourceClaims": list(nics.claims),
            "containers": [container],
        }
    )
    labels = tier.selector(COMPONENT) | kube.MANAGED_BY
    return {"metadata": {"labels": labels, "annotations": {kube.ANNOTATION_CONFIG: kube.digest(pod)[:12]}}, "spec": pod}
