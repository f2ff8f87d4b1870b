"""Stands in for Modelplane's compose-model-replica, and runs as a Function of its name: `python -m modelreplica`.

In Modelplane's shapes, read at 90ba117, and in words of our own: of each engine an Object with a Deployment that claims
its devices, and one with the ResourceClaimTemplate. It knows engines of one pod, and no routing. It imports nothing of
this repository, since it is packaged alone.
"""

from typing import Any

import click
from crossplane.function import cli as sdk
from crossplane.function import request, resource, response
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

_AVAILABLE = 'has(object.status.conditions) && object.status.conditions.exists(c, c.type == "Available")'


class Step(grpcv1.FunctionRunnerServiceServicer):
    """Composes ModelReplicas."""

    async def RunFunction(self, req: fnv1.RunFunctionRequest, _: object) -> fnv1.RunFunctionResponse:  # noqa: N802
        """Compose a ModelReplica, or pass on what there is."""
        rsp = response.to(req)
        replica = resource.struct_to_dict(req.observed.composite.resource)
        if replica["kind"] != "ModelReplica":
            return rsp
        name = replica["spec"]["clusterName"]
        response.require_resources(rsp, "cluster", "modelplane.ai/v1alpha1", "InferenceCluster", match_name=name)
        cluster = request.get_required_resource(req, "cluster")
        if cluster is None:
            return rsp
        config = cluster["status"]["providerConfigRef"]["name"]
        for engine in replica["spec"]["engines"]:
            for key, manifest in _engine(replica["metadata"]["name"], engine).items():
                resource.update(rsp.desired.resources[key], _wrapped(manifest, config))
                observed = req.observed.resources.get(key)
                if observed and resource.get_condition(observed.resource, "Ready").status == "True":
                    rsp.desired.resources[key].ready = fnv1.READY_TRUE
        return rsp


def _engine(replica: str, engine: dict[str, Any]) -> dict[str, Any]:
    """Return the manifests of an engine of one pod, by key."""
    (member,) = engine["members"]
    labels = {"modelplane.ai/replica": replica, "modelplane.ai/engine": engine["name"]}
    template, devices = member["template"], f"{replica}-{engine['name']}-devices"
    (container,) = template["spec"]["containers"]
    requests = [
        {"name": r["name"], "exactly": {"deviceClassName": r["deviceClassName"], "count": r["count"]}}
        for r in member["deviceRequests"]
    ]
    container |= {
        "resources": {"claims": [{"name": "devices"}]},
        "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],
        "ports": [{"containerPort": 8000}],
    }
    pod = {
        "containers": [container],
        "nodeSelector": {"modelplane.ai/pool": member["nodePoolName"]},
        "resourceClaims": [{"name": "devices", "resourceClaimTemplateName": devices}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}],
    }
    metadata = {"labels": labels, "annotations": template.get("metadata", {}).get("annotations", {})}
    spec = {
        "replicas": engine.get("copies", 1),
        "selector": {"matchLabels": labels},
        "template": {"metadata": metadata, "spec": pod},
    }
    named = {"namespace": "default", "labels": labels}
    name = {**named, "name": f"{replica}-{engine['name']}"}
    claim = {"spec": {"devices": {"requests": requests}}}
    return {
        f"model-serving-{engine['name']}": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": name,
            "spec": spec,
        },
        f"devices-{engine['name']}": {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaimTemplate",
            "metadata": {**named, "name": devices},
            "spec": claim,
        },
    }


def _wrapped(manifest: dict[str, Any], config: str) -> dict[str, Any]:
    readiness = {"policy": "SuccessfulCreate"}
    if manifest["kind"] == "Deployment":
        readiness = {"policy": "DeriveFromCelQuery", "celQuery": _AVAILABLE}
    spec = {
        "providerConfigRef": {"kind": "ClusterProviderConfig", "name": config},
        "readiness": readiness,
        "forProvider": {"manifest": manifest},
    }
    return {"apiVersion": "kubernetes.m.crossplane.io/v1alpha1", "kind": "Object", "spec": spec}


@click.command()
@sdk.standard_options
def cli(**options: Any) -> None:
    """Serve it."""
    sdk.run(Step(), **options)


if __name__ == "__main__":
    cli()
