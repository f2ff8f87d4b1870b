"""Rules on what a pod template names: the objects and keys it needs to start."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.lint.model import Bundle, Manifest, Pod, field, items, label, namespace, subject

_VOLUMES = {
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "secret": ("Secret", "secretName"),
}
"""A volume's source, the kind it names, and the field that holds the name."""

_CLAIMS = {"resourceClaimName": "ResourceClaim", "resourceClaimTemplateName": "ResourceClaimTemplate"}
"""The field of a pod's claim that names an object, and the object's kind."""


class Reference(NamedTuple):
    """Where a name stands, the object it means, and the keys of that object it needs."""

    where: str
    kind: str
    name: object
    keys: tuple[object, ...] = ()


def references_resolve(bundle: Bundle) -> Iterator[str]:
    """What a pod names is in the set, with the keys it needs, unless the context says that it is outside.

    Optional references are left alone.
    """
    for pod in bundle.pods:
        for where, kind, name, keys in (*_pod_references(pod), *_container_references(pod)):
            if f"{kind}/{name}" in bundle.context.external:
                continue
            found = bundle.find(kind, name, pod.namespace)
            if found is None:
                yield f"{where}: {kind}/{name} is not in the set"
            else:
                missing = (key for key in keys if key not in _keys(found))
                yield from (f"{where}: {kind}/{name} has no key {key!r}" for key in missing)


def sub_paths_exist(bundle: Bundle) -> Iterator[str]:
    """A subPath into a ConfigMap or Secret is a file of it: a missing one becomes an empty directory."""
    for pod in bundle.pods:
        files = {volume.get("name"): _files(bundle, pod, volume) for volume in items(pod.spec, "volumes")}
        for container in pod.containers:
            for mount in items(container.spec, "volumeMounts"):
                known = files.get(mount.get("name"))
                if known is not None and "subPath" in mount and mount["subPath"] not in known:
                    where = f"{container.where}.volumeMounts[{mount.get('name')}].subPath"
                    yield f"{where}: no file {mount['subPath']!r} in the volume"


def claims_resolve(bundle: Bundle) -> Iterator[str]:
    """A container's claim, and the request it names, is one of its pod's; a pod's claim is used by some container."""
    for pod in bundle.pods:
        requests = {
            str(claim.get("name")): _requests(bundle, pod, claim) for claim in items(pod.spec, "resourceClaims")
        }
        used: set[str] = set()
        for container in pod.containers:
            for claim in items(field(container.spec, "resources"), "claims"):
                name = str(claim.get("name"))
                used.add(name)
                where = f"{container.where}.resources.claims[{name}]"
                known = requests.get(name)
                if name not in requests:
                    yield f"{where}: not a claim of the pod"
                elif "request" in claim and known is not None and claim["request"] not in known:
                    yield f"{where}.request: no request {claim['request']!r} in the claim"
        for name in sorted(requests.keys() - used):
            yield f"{pod.where}.resourceClaims[{name}]: no container uses it"


def stateful_sets_have_services(bundle: Bundle) -> Iterator[str]:
    """The Service that gives a StatefulSet's pods their names is in the set."""
    for manifest in bundle.of_kind("StatefulSet"):
        name = field(manifest, "spec").get("serviceName")
        if (
            bundle.find("Service", name, namespace(manifest)) is None
            and f"Service/{name}" not in bundle.context.external
        ):
            yield f"{subject(manifest)}: spec.serviceName: Service/{name} is not in the set"


def _pod_references(pod: Pod) -> Iterator[Reference]:
    """Takes a pod; yields what it names itself."""
    account = pod.spec.get("serviceAccountName", "default")
    if account != "default":
        yield Reference(f"{pod.where}.serviceAccountName", "ServiceAccount", account)
    for secret in items(pod.spec, "imagePullSecrets"):
        yield Reference(f"{pod.where}.imagePullSecrets", "Secret", secret.get("name"))
    for claim in items(pod.spec, "resourceClaims"):
        for key, kind in _CLAIMS.items():
            if key in claim:
                yield Reference(f"{pod.where}.resourceClaims[{claim.get('name')}].{key}", kind, claim[key])
    for index, volume in enumerate(items(pod.spec, "volumes")):
        where = f"{pod.where}.volumes[{label(volume, index)}]"
        yield from _volume_references(where, volume)
        for source in items(field(volume, "projected"), "sources"):
            yield from _volume_references(f"{where}.projected", source, projected=True)


def _container_references(pod: Pod) -> Iterator[Reference]:
    """Takes a pod; yields what its containers name."""
    for container in pod.containers:
        for index, env in enumerate(items(container.spec, "env")):
            where = f"{container.where}.env[{label(env, index)}].valueFrom"
            for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                source = field(env, "valueFrom", key)
                if source and not source.get("optional"):
                    yield Reference(f"{where}.{key}", kind, source.get("name"), (source.get("key"),))
        for source in items(container.spec, "envFrom"):
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if key in source and not source[key].get("optional"):
                    yield Reference(f"{container.where}.envFrom.{key}", kind, source[key].get("name"))


def _volume_references(where: str, source: Manifest, *, projected: bool = False) -> Iterator[Reference]:
    """Takes a volume, or a source of a projected one, and where it stands; yields what it names.

    A projected volume names a Secret by `name`, any other by `secretName`.
    """
    for key, (kind, name_field) in _VOLUMES.items():
        named = field(source, key)
        if named and not named.get("optional"):
            keys = tuple(item.get("key") for item in items(named, "items"))
            yield Reference(f"{where}.{key}", kind, named.get("name" if projected else name_field), keys)


def _keys(manifest: Manifest) -> set[str]:
    """Takes a ConfigMap or Secret; returns its keys."""
    return {key for part in ("data", "stringData", "binaryData") for key in field(manifest, part)}


def _files(bundle: Bundle, pod: Pod, volume: Manifest) -> set[str] | None:
    """Takes a volume; returns the files in it, or None when it is no ConfigMap or Secret of the set."""
    for key, (kind, name_field) in _VOLUMES.items():
        source = field(volume, key)
        found = bundle.find(kind, source.get(name_field), pod.namespace) if source else None
        if found is not None and kind != "PersistentVolumeClaim":
            return {str(item.get("path")) for item in items(source, "items")} or _keys(found)
    return None


def _requests(bundle: Bundle, pod: Pod, claim: Manifest) -> set[str] | None:
    """Takes a pod's claim; returns the names of its requests, or None when its template is not in the set."""
    template = bundle.find("ResourceClaimTemplate", claim.get("resourceClaimTemplateName"), pod.namespace)
    if template is None:
        return None
    return {str(request.get("name")) for request in items(field(template, "spec", "spec", "devices"), "requests")}
