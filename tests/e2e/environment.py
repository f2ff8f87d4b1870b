"""The whole world of a test: a control plane with Crossplane, inference clusters, and the ways to break them."""

import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.clusters import Cluster, Etcd
from tests.e2e.kube import AWAY, SECRET, SERVICE, Manifest, documents
from tests.e2e.network import Network
from tests.e2e.processes import Broken, Process, answers, end_leftovers, free_port, wait_until
from tests.e2e.runtime import NAMESPACE, Runtime
from tests.tools import build

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".e2e"
CLUSTERS = ("east", "west")
GPU_NODES = ("gpu-a", "gpu-b")
OTHER_NODES = ("cpu-a", "cpu-b", "cpu-c")
SYSTEM = "modelplane-system"
TEAM, OTHER_TEAM = "ml-team", "other-team"
_VOLUMES = 16
# What docs/install.md asks of Crossplane.
DOCUMENTED_FLAGS = ("--circuit-breaker-burst=5000", "--circuit-breaker-refill-rate=20")
# provider-kubernetes listens there, and at nothing else that could be chosen.
_FIXED_PORTS = (8080, 9443)


class Environment:
    """Everything that runs; nothing of it before `up`, and nothing after `down`."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._say = say
        # What was broken on purpose.
        self.faults: list[str] = []
        # What is told at the end.
        self.counts: dict[str, int] = {}
        end_leftovers(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # A socket's path may have no more than 107 characters.
        self._short = Path(tempfile.mkdtemp(prefix="kv-"))
        self.etcd = Etcd(folder)
        self.network = Network(self._short)
        self.control = Cluster("control", folder, self.etcd, nodes=False, network=self.network)
        self.clusters = {name: Cluster(name, folder, self.etcd, nodes=True) for name in CLUSTERS}
        port = free_port()
        self.registry = Process("registry", [build.tool("registry"), f"-port={port}"], folder)
        self.registry_host = f"127.0.0.1:{port}"
        self._metrics_port = free_port()
        self._webhook_port = free_port()
        (folder / "xpkg").mkdir()
        core = [build.tool("core"), "core", "start", "--debug", f"--xpkg-cache-dir={folder / 'xpkg'}"]
        core += [f"--tls-server-certs-dir={folder / 'tls-server'}", f"--tls-client-certs-dir={folder / 'tls-client'}"]
        core += [f"--webhook-port={self._webhook_port}", f"--metrics-port={self._metrics_port}"]
        core += [f"--health-probe-port={free_port()}", *DOCUMENTED_FLAGS]
        env = {"KUBECONFIG": str(self.control.kubeconfig), "HTTPS_PROXY": self.network.proxy}
        self.core = Process("crossplane", core, folder, env)
        rbac = Process("crossplane-rbac", [build.tool("core"), "rbac", "start"], folder, env)
        self.runtime = Runtime(self.control, folder / "runtime", rbac)

    def up(self) -> None:
        """Start everything but what is installed as a package."""
        for port in _FIXED_PORTS:
            if answers(port):
                raise Broken(f"port {port} is taken, and provider-kubernetes listens there whatever it is told")
        self._say("etcd, API servers and controllers")
        self.etcd.process.start()
        self.registry.start()
        self.network.route = self._route
        self.network.start()
        wait_until(lambda: answers(self.etcd.port), 30, "etcd answers", self.etcd.process.tail)
        for cluster in self.servers:
            cluster.start()
        for cluster in self.servers:
            cluster.ready()
        self._say("Crossplane")
        self._init_crossplane()
        self.core.start()
        self.runtime.rbac.start()
        self.runtime.start()
        for cluster in self.clusters.values():
            cluster.kube.apply(_RUNTIME_CLASS)
            for node in GPU_NODES:
                cluster.add_node(node)
            for node in OTHER_NODES:
                cluster.add_node(node, gpus=0)
            cluster.add_volumes(_VOLUMES)
            cluster.add_devices("dra.net", "dranet.net", 8, {"dra.net/rdma": {"bool": True}})
            cluster.kube.apply(*documents(*sorted(build.monitoring_crds().glob("*podmonitors.yaml"))))
            cluster.kube.apply(*documents(*sorted(build.monitoring_crds().glob("*prometheusrules.yaml"))))

    def down(self) -> None:
        """End everything. Nothing of it is needed any more, so nothing is asked to end in good order."""
        self.runtime.stop()
        for process in (self.runtime.rbac, *self._processes):
            process.kill()
        self.network.stop()
        shutil.rmtree(self._short, ignore_errors=True)

    def check(self) -> None:
        """Raise Broken where something has ended that nobody ended."""
        for process in self._processes:
            process.check()
        if self.runtime.trouble:
            raise Broken(f"the package runtime: {self.runtime.trouble}")

    @property
    def servers(self) -> list[Cluster]:
        """The control plane and the inference clusters."""
        return [self.control, *self.clusters.values()]

    @property
    def _processes(self) -> list[Process]:
        """What runs from `up` to `down`, in the order in which it is ended."""
        of_clusters = [p for cluster in self.servers for p in [*cluster.controllers, cluster.api]]
        return [self.core, *of_clusters, self.registry, self.etcd.process]

    def shell(self, script: str, cwd: Path = REPOSITORY, **env: str) -> str:
        """Run commands as somebody who has kubectl and crossplane, and return what they print. Raises Broken."""
        path = f"{build.tool('kubectl').parent}:{build.tool('crossplane').parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env=os.environ | {"PATH": path, "KUBECONFIG": str(self.control.kubeconfig), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Broken(f"{script}\n{done.stdout}")
        return done.stdout

    @contextlib.contextmanager
    def away(self, process: Process) -> Iterator[None]:
        """Kill a program, and start it again when the context ends."""
        self.faults.append(f"{process.name} was away")
        process.kill()
        try:
            yield
        finally:
            process.start()

    def kill(self, package: str) -> None:
        """Kill the process of a package, which is then started again."""
        self.faults.append(f"{package} was killed")
        self.runtime.kill(package)

    @contextlib.contextmanager
    def without(self, package: str) -> Iterator[None]:
        """Kill the process of a package, and let it run again when the context ends."""
        self.faults.append(f"{package} was down")
        with self.runtime.down(package):
            yield

    def counted(self) -> dict[str, int]:
        """What there is to tell at the end: how often what was done, and what went wrong."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()

        def total(metric: str, label: str) -> int:
            return sum(int(float(line.split()[-1])) for line in lines if line.startswith(metric) and label in line)

        return {
            "reconciles of composites": total("controller_runtime_reconcile_total", 'controller="composite/'),
            "faults injected": len(self.faults),
            **self.counts,
        }

    def _route(self, host: str, port: int) -> int | None:
        """Find the port of this machine that a Service's port stands for."""
        try:
            service = self.runtime.service(host)
        except AWAY:
            return None
        if service is None:
            return None
        if service["metadata"]["name"] == _WEBHOOKS["metadata"]["name"]:
            return self._webhook_port
        return self.runtime.port(service, port)

    def _init_crossplane(self) -> None:
        """Do what Crossplane's Helm chart does before its pods start, and its init container."""
        kube = self.control.kube
        kube.apply(*(_namespace(name) for name in (NAMESPACE, SYSTEM, TEAM, OTHER_TEAM)), _WEBHOOKS, _ACCOUNT)
        init = [str(build.tool("core")), "core", "init", "--activation=*"]
        env = {
            "KUBECONFIG": str(self.control.kubeconfig),
            "CRDS_PATH": str(build.core_crds()),
            "WEBHOOK_CONFIGS_PATH": str(build.core_webhooks()),
            "POD_NAMESPACE": NAMESPACE,
            "WEBHOOK_SERVICE_NAME": _WEBHOOKS["metadata"]["name"],
            "WEBHOOK_SERVICE_NAMESPACE": NAMESPACE,
            "WEBHOOK_SERVICE_PORT": "9443",
            "TLS_CA_SECRET_NAME": "crossplane-root-ca",
            "TLS_SERVER_SECRET_NAME": "crossplane-tls-server",
            "TLS_CLIENT_SECRET_NAME": "crossplane-tls-client",
        }
        # Like any init container it is started again until it succeeds: its first try is too early for its own CRDs.
        tries: list[subprocess.CompletedProcess[str]] = []

        def initialized() -> bool:
            tries.append(subprocess.run(init, env=os.environ | env, capture_output=True, text=True, check=False))
            return tries[-1].returncode == 0

        wait_until(initialized, 60, "crossplane core init succeeds", lambda: tries[-1].stdout + tries[-1].stderr)
        for name in ("tls-server", "tls-client"):
            secret = kube.get(SECRET, f"crossplane-{name}", NAMESPACE) or {}
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            for key, value in secret["data"].items():
                (folder / key).write_bytes(base64.b64decode(value))


def _namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


# As NVIDIA's GPU operator makes it.
_RUNTIME_CLASS: Manifest = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}
_ACCOUNT: Manifest = {
    "apiVersion": "v1",
    "kind": "ServiceAccount",
    "metadata": {"name": "crossplane", "namespace": NAMESPACE},
}
_WEBHOOKS: Manifest = {
    "apiVersion": SERVICE.api_version,
    "kind": SERVICE.kind,
    "metadata": {"name": "crossplane-webhooks", "namespace": NAMESPACE},
    "spec": {"selector": {"app": "crossplane"}, "ports": [{"port": 9443, "protocol": "TCP"}]},
}
