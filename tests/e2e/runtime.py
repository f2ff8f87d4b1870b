"""Runs the packages that are installed on the control plane: what kubelet and Deployment controller would do for them.

Crossplane itself makes a Deployment for each active Function and Provider, with certificates, and the settings of its
DeploymentRuntimeConfig. Here each runs as a process: the same arguments, environment, mounted Secrets and service
account, at a port of the loopback, and started again when it ends.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import kubernetes.client

from tests.conformance import pods
from tests.e2e import image
from tests.e2e.clusters import Cluster
from tests.e2e.kube import AWAY, DEPLOYMENT, SECRET, SERVICE, Kind, Manifest
from tests.e2e.processes import Process, answers, free_port
from tests.tools import build

NAMESPACE = "crossplane-system"
# provider-kubernetes has no flag for the port of its webhooks.
_PROVIDER_PORT = 9443
_FUNCTION = "pkg.crossplane.io/function"
_PROVIDER = "pkg.crossplane.io/provider"


@dataclass
class _Pod:
    """One Deployment's process. `package`: the Function's or Provider's name."""

    package: str
    labels: dict[str, str]
    spec: Manifest
    port: int
    process: Process
    up: bool | None = None


@dataclass
class Runtime:
    """Follows the Deployments of Crossplane's namespace until it is stopped."""

    cluster: Cluster
    folder: Path
    # Crossplane's RBAC manager. It has a port that provider-kubernetes wants too, and is done before that starts.
    rbac: Process
    # Packages that are kept from running, by name.
    held: set[str] = field(default_factory=set)
    pods: dict[str, _Pod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="runtime", daemon=True)
        self.trouble = ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End all packages."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(30)
        for pod in self.pods.values():
            pod.process.stop()

    def kill(self, package: str) -> None:
        """End a package's process without warning; it is started again."""
        with self._lock:
            for pod in self._of(package):
                pod.process.kill()

    @contextlib.contextmanager
    def down(self, package: str) -> Iterator[None]:
        """Keep a package from running for as long as the context lasts."""
        with self._lock:
            self.held.add(package)
            for pod in self._of(package):
                pod.process.kill()
        try:
            yield
        finally:
            self.held.discard(package)

    def deployment(self, package: str) -> Manifest:
        """Read the one Deployment that Crossplane has made for a package's active revision."""
        (found,) = [
            deployment
            for deployment in self.cluster.kube.find(DEPLOYMENT, NAMESPACE)
            if package == _package(deployment["spec"]["template"]["metadata"]["labels"])
        ]
        return found

    def listens(self, package: str) -> int:
        """The port at which a package's one process listens."""
        (pod,) = self._of(package)
        return pod.port

    def port(self, service: Manifest, port: int) -> int | None:
        """Find the port at which what is behind a Service listens here; None where nothing is."""
        selector = service["spec"].get("selector") or {}
        with self._lock:
            for pod in self.pods.values():
                if selector and selector.items() <= pod.labels.items() and pod.process.running:
                    return pod.port if _FUNCTION in pod.labels else port
        return None

    def _of(self, package: str) -> list[_Pod]:
        return [pod for pod in self.pods.values() if pod.package == package]

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            try:
                with self._lock:
                    self._follow({d["metadata"]["name"]: d for d in self.cluster.kube.find(DEPLOYMENT, NAMESPACE)})
            except AWAY:
                pass  # the API server is away, and what runs goes on
            except Exception:  # noqa: BLE001 - a thread's error is told by whoever waits for a package
                if not self.trouble:
                    self.trouble = traceback.format_exc()
                    print(self.trouble, file=sys.stderr)

    def _follow(self, deployments: dict[str, Manifest]) -> None:
        for name in self.pods.keys() - deployments.keys():
            self.pods.pop(name).process.stop()
        for name, deployment in deployments.items():
            spec = deployment["spec"]["template"]["spec"]
            pod = self.pods.get(name)
            if pod is not None and pod.spec != spec:
                pod.process.stop()
                pod = None
            if pod is None:
                pod = self._made(deployment)
                if pod is None:
                    continue
                self.pods[name] = pod
            if not pod.process.running and pod.package not in self.held and self._permitted(pod):
                pod.process.start()
            up = pod.process.running and answers(pod.port)
            observed = deployment.get("status", {}).get("observedGeneration")
            if up != pod.up or observed != deployment["metadata"]["generation"]:
                self._report(deployment, up=up)
                pod.up = up

    def _permitted(self, pod: _Pod) -> bool:
        """Whether the RBAC manager has given a provider its rights; then it is ended."""
        if _PROVIDER in pod.labels and self.rbac.running:
            account, rbac = pod.spec["serviceAccountName"], "rbac.authorization.k8s.io/v1"
            bindings = self.cluster.kube.find(Kind(rbac, "ClusterRoleBinding"))
            bound = [b["roleRef"]["name"] for b in bindings if account in [s["name"] for s in b.get("subjects", [])]]
            if not any(self.cluster.kube.get(Kind(rbac, "ClusterRole"), role) for role in bound):
                return False
            self.rbac.stop()
        return True

    def _report(self, deployment: Manifest, *, up: bool) -> None:
        """Say in the Deployment's status whether its process is available."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        available = {"type": "Available", "status": str(up), "reason": "MinimumReplicas", "message": "it answers"}
        if not up:
            available["message"] = "it does not answer"
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": 1,
            "updatedReplicas": 1,
            "readyReplicas": int(up),
            "availableReplicas": int(up),
            "conditions": [{**available, "lastTransitionTime": now, "lastUpdateTime": now}],
        }
        self.cluster.kube.patch(DEPLOYMENT, deployment["metadata"]["name"], NAMESPACE, {"status": status}, status=True)

    def _made(self, deployment: Manifest) -> _Pod | None:
        """Make the process of a Deployment's one container; None while a Secret that it mounts is not filled."""
        name, template = deployment["metadata"]["name"], deployment["spec"]["template"]
        labels, spec = template["metadata"]["labels"], template["spec"]
        package = _package(labels)
        (container,) = spec["containers"]
        root = self.folder / "pods" / name
        secrets = [secret for secret in self.cluster.kube.find(SECRET, NAMESPACE) if secret.get("data")]
        mounted = {volume["secret"]["secretName"] for volume in spec.get("volumes", []) if "secret" in volume}
        if mounted - {secret["metadata"]["name"] for secret in secrets}:
            return None
        made = pods.started(secrets, spec, container, pods.Pod(name, namespace=NAMESPACE, labels=labels))
        env, places = dict(made.env), {mount["mountPath"] for mount in container["volumeMounts"]}
        if _FUNCTION in labels:
            port = free_port()
            config = image.pull(container["image"], root)
            env |= dict(entry.split("=", 1) for entry in config["Env"])
            places.add("/packages")
            # The base image's Python is the one that runs the tests.
            command = [sys.executable, *config["Entrypoint"][1:], f"--address=127.0.0.1:{port}"]
        else:
            port = _PROVIDER_PORT
            env["HEALTH_PROBE_BIND_ADDRESS"] = f"127.0.0.1:{free_port()}"
            command = [str(build.tool("provider"))]
        made = replace(made, env=env).moved({path: f"{root}{path}" for path in places})
        for path, text in made.files.items():
            file = Path(f"{root}{path}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        login = {"KUBECONFIG": str(self._login(spec["serviceAccountName"], root))}
        process = Process(name, [*command, *made.argv], self.folder.parent, {**made.env, **login}, root)
        return _Pod(package, labels, spec, port, process)

    def _login(self, account: str, root: Path) -> Path:
        """Write a kubeconfig with a token of a service account, so that a package has its own rights and no other."""
        root.mkdir(parents=True, exist_ok=True)
        core = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(str(self.cluster.kubeconfig)))
        body = {"spec": {"expirationSeconds": 86400, "audiences": ["https://kubernetes.default.svc"]}}
        token = core.create_namespaced_service_account_token(account, NAMESPACE, body).status.token
        return self.cluster.login(token, root / "kubeconfig")

    def service(self, host: str) -> Manifest | None:
        """Find a Service of Crossplane's namespace by its name in DNS, or by its cluster IP."""
        name = host.partition(".")[0]
        for service in self.cluster.kube.find(SERVICE, NAMESPACE):
            if host == service["spec"].get("clusterIP") or service["metadata"]["name"] == name:
                return service
        return None


def _package(labels: Mapping[str, str]) -> str:
    return labels.get(_FUNCTION) or labels.get(_PROVIDER) or ""
