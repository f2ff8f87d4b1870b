"""One Kubernetes API server, as a test speaks to it: plain manifests in, plain objects out."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes.client
import kubernetes.config
import kubernetes.dynamic
import urllib3
import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.exceptions import (
    ConflictError,
    DynamicApiError,
    NotFoundError,
    ResourceNotFoundError,
)

from tests.e2e.processes import wait_until

Manifest = dict[str, Any]

# What a server that is away, or not ready yet, answers with.
AWAY = (urllib3.exceptions.HTTPError, ApiException, DynamicApiError, ResourceNotFoundError, ConnectionError)
_MANAGER = "tests"


class Kind(NamedTuple):
    """What the API server calls a kind of object."""

    api_version: str
    kind: str


POD = Kind("v1", "Pod")
NODE = Kind("v1", "Node")
SECRET = Kind("v1", "Secret")
SERVICE = Kind("v1", "Service")
CONFIG_MAP = Kind("v1", "ConfigMap")
NAMESPACE = Kind("v1", "Namespace")
DEPLOYMENT = Kind("apps/v1", "Deployment")
DAEMON_SET = Kind("apps/v1", "DaemonSet")
STATEFUL_SET = Kind("apps/v1", "StatefulSet")
OBJECT = Kind("kubernetes.m.crossplane.io/v1alpha1", "Object")
USAGE = Kind("protection.crossplane.io/v1beta1", "Usage")
TIER = Kind("modelplane.ai/v1alpha1", "KVOffloadTier")
FLEET = Kind("modelplane.ai/v1alpha1", "KVOffloadFleet")
MODEL_DEPLOYMENT = Kind("modelplane.ai/v1alpha1", "ModelDeployment")
CLUSTER = Kind("modelplane.ai/v1alpha1", "InferenceCluster")


class Refused(RuntimeError):
    """The API server refused a write; the message is its own."""


def documents(*files: Path) -> Iterator[Manifest]:
    """Read the manifests of YAML files."""
    for file in files:
        yield from (document for document in yaml.safe_load_all(file.read_text()) if document)


class Kube:
    """A client of one API server, which may go and come back."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._api = kubernetes.config.new_client_from_config(str(kubeconfig))
        self._client: Any = None

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Manifest | None:
        """Read an object; None where there is none."""
        try:
            return self._read(kind, name=name, namespace=namespace)
        except NotFoundError:
            return None

    def find(self, kind: Kind, namespace: str | None = None, **selectors: str) -> list[Manifest]:
        """Read all objects of a kind; selectors are label_selector and field_selector."""
        found: list[Manifest] = self._read(kind, namespace=namespace, **selectors)["items"]
        for item in found:
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return found

    def snapshot(self, kind: Kind, namespace: str) -> tuple[list[Manifest], str]:
        """Read all objects of a kind, and the version of the collection to watch from."""
        found = self._read(kind, namespace=namespace)
        return found["items"], found["metadata"]["resourceVersion"]

    def watch(self, kind: Kind, namespace: str, version: str) -> Iterator[tuple[str, Manifest]]:
        """Follow objects from a version on, until the server ends it: ADDED, MODIFIED or DELETED, and the object."""
        arguments = {"namespace": namespace, "resource_version": version, "watch": True, "timeout_seconds": 600}
        answer = self._resource(kind).get(**arguments, serialize=False, _request_timeout=600)
        pending = b""
        for chunk in answer.stream(amt=None, decode_content=False):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests, server-side. Raises Refused."""
        for manifest in manifests:
            metadata = manifest["metadata"]
            with _refusals(manifest):
                self._resource(Kind(manifest["apiVersion"], manifest["kind"])).server_side_apply(
                    body=manifest,
                    name=metadata["name"],
                    namespace=metadata.get("namespace"),
                    field_manager=_MANAGER,
                    force_conflicts=True,
                )

    def create(self, manifest: Manifest) -> None:
        """Create an object that has no namespace, with its status where its kind takes one from its creator."""
        self._resource(Kind(manifest["apiVersion"], manifest["kind"])).create(body=manifest)

    def patch(
        self, kind: Kind, name: str, namespace: str | None, body: Mapping[str, Any], *, status: bool = False
    ) -> None:
        """Merge fields into an object, or into its status. Raises Refused."""
        resource = self._resource(kind)
        with _refusals({"kind": kind.kind, "metadata": {"name": name}}):
            (resource.subresources["status"] if status else resource).patch(
                body=dict(body), name=name, namespace=namespace, content_type="application/merge-patch+json"
            )

    def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, foreground: bool = False, now: bool = False
    ) -> None:
        """Ask for an object's deletion, `now` without its grace period; nothing where there is none. Raises Refused."""
        body: Manifest = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if now:
            body["gracePeriodSeconds"] = 0
        with _refusals({"kind": kind.kind, "metadata": {"name": name}}), contextlib.suppress(NotFoundError):
            self._resource(kind).delete(name=name, namespace=namespace, body=body)

    def remove(
        self, kind: Kind, name: str, namespace: str | None = None, seconds: float = 120, *, foreground: bool = True
    ) -> None:
        """Delete an object as somebody does who tries again while it is refused, and wait until it is gone."""

        def accepted() -> bool:
            with contextlib.suppress(Refused):
                self.delete(kind, name, namespace, foreground=foreground)
                return True
            return False

        wait_until(
            accepted, seconds, f"{kind.kind} {name} may be deleted", lambda: told(self.get(kind, name, namespace))
        )
        self.gone(kind, name, namespace, seconds)

    def wait(  # noqa: PLR0917
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        holds: Callable[[Manifest], object],
        seconds: float = 90,
        what: str = "",
    ) -> Manifest:
        """Wait until something holds of an object, and return it. Raises Broken with the object's status."""

        def found() -> Manifest | None:
            with contextlib.suppress(*AWAY):
                seen = self.get(kind, name, namespace)
                return seen if seen is not None and holds(seen) else None
            return None

        def why() -> str:
            with contextlib.suppress(*AWAY):
                return told(self.get(kind, name, namespace))
            return "the API server does not answer"

        return wait_until(found, seconds, f"{kind.kind} {name} {what or 'as expected'}", why)

    def gone(self, kind: Kind, name: str, namespace: str | None = None, seconds: float = 90) -> None:
        """Wait until an object is gone. Raises Broken."""

        def found() -> bool:
            with contextlib.suppress(*AWAY):
                return self.get(kind, name, namespace) is None
            return False

        wait_until(found, seconds, f"{kind.kind} {name} is gone", lambda: told(self.get(kind, name, namespace)))

    def everything(self) -> Iterator[Manifest]:
        """Read every object that this server holds, of every kind that can be listed, once each."""
        self._client = None
        seen: set[str] = set()
        for resource in self._dynamic.resources.search():
            if (
                "list" not in (getattr(resource, "verbs", None) or ())
                or "/" in resource.name
                or resource.kind.endswith("List")
            ):
                continue
            with contextlib.suppress(NotFoundError, ConflictError):
                for item in self.find(Kind(resource.group_version, resource.kind)):
                    if item["metadata"].get("uid") not in seen:
                        seen.add(item["metadata"].get("uid", ""))
                        yield item

    def _read(self, kind: Kind, **what: Any) -> Manifest:
        read: Manifest = json.loads(self._resource(kind).get(**what, serialize=False, _request_timeout=20).data)
        return read

    def _resource(self, kind: Kind) -> Any:
        return self._dynamic.resources.get(api_version=kind.api_version, kind=kind.kind)

    @property
    def _dynamic(self) -> Any:
        if self._client is None:
            # A cache of its own: a shared one may know nothing of kinds that came since, or those of another server.
            cache = self.kubeconfig.with_suffix(".discovery")
            cache.unlink(missing_ok=True)
            self._client = kubernetes.dynamic.DynamicClient(self._api, cache_file=str(cache))
        return self._client


@contextlib.contextmanager
def _refusals(manifest: Manifest) -> Iterator[None]:
    try:
        yield
    except NotFoundError:
        raise
    except DynamicApiError as error:
        raise Refused(f"{manifest['kind']} {manifest['metadata']['name']}: {error.summary()}") from error


def told(item: Manifest | None) -> str:
    """Tell of an object what its status says, a condition a line."""
    if item is None:
        return "it does not exist"
    status = dict(item.get("status", {}))
    lines = [
        " ".join(str(c.get(k, "")) for k in ("type", "status", "reason", "message"))
        for c in status.pop("conditions", [])
    ]
    held = {key: item["metadata"].get(key) for key in ("deletionTimestamp", "finalizers", "labels")}
    return "\n".join([f"{held}", json.dumps(status), *lines])


def condition(item: Manifest | None, kind: str) -> tuple[str, str, str]:
    """Return a condition's status, reason and message; empty where it is not there."""
    for found in (item or {}).get("status", {}).get("conditions", []):
        if found["type"] == kind:
            return found["status"], found.get("reason", ""), found.get("message", "")
    return "", "", ""


def conditions(**wanted: str) -> Callable[[Manifest], bool]:
    """Ask for conditions: each a type, with a status or a reason."""
    return lambda item: all(value in condition(item, kind)[:2] for kind, value in wanted.items())


def owned(items: Iterable[Manifest], owner: Manifest) -> list[Manifest]:
    """Those of some objects that another one owns."""
    uid = owner["metadata"]["uid"]
    return [item for item in items if uid in [ref["uid"] for ref in item["metadata"].get("ownerReferences", [])]]


def names(items: Iterable[Manifest]) -> list[str]:
    """The names of objects, sorted."""
    return sorted(item["metadata"]["name"] for item in items)
