"""Runs rendered workloads on this machine: each pod at a loopback address of its own, its containers as processes."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from function.api.tier import HOST_PORTS
from function.backends.mooncake.cluster import AGENT_PORT
from tests.conformance import pods, runner
from tests.conformance.pods import Manifest, Pod

MASTER = ("Deployment", "master")
AGENT = ("DaemonSet", "store")
LMCACHE = ("DaemonSet", "lmcache")
ETCD = ("StatefulSet", "etcd")
ENGINE = ("Deployment", "engine")
VALKEY = ("StatefulSet", "valkey")

_LMCACHE_PORTS = (5555, 9090)
_CLAIMS = "volumeClaimTemplates"
_CLIENT = Path(__file__).parent / "in_mooncake.py"


def wait_until(done: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "") -> float:
    """Wait until something holds; returns the seconds that it took, and fails with `why` where it never does."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() < start + seconds, f"not within {seconds} seconds\n{why()}"
        time.sleep(0.1)
    return time.monotonic() - start


def _elsewhere(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Give agents other ports: they listen at every address, so two runs on one machine would meet."""
    block = range(HOST_PORTS)
    first = next(
        first
        for first in iter(lambda: random.randrange(20000, 29000, HOST_PORTS), None)
        if not any(_taken(first + which) for which in block)
    )
    text = json.dumps([m for m in manifests if m["kind"] == AGENT[0]])
    for which in block:
        text = text.replace(str(AGENT_PORT + which), str(first + which))
    for port in _LMCACHE_PORTS:
        text = text.replace(str(port), str(runner.free_port()))
    return [*(m for m in manifests if m["kind"] != AGENT[0]), *json.loads(text)]


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Running:
    """A container that runs, or did."""

    process: psutil.Popen
    pod: Pod
    spec: Manifest
    log_file: Path

    @property
    def log(self) -> str:
        """What it has printed since its pod is there."""
        return self.log_file.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def ports(self) -> dict[str, int]:
        """The ports that the container declares, by name."""
        return {port["name"]: int(port["containerPort"]) for port in self.spec["ports"]}

    def passes(self, probe: str) -> bool:
        """Ask a probe once, as the kubelet does: at the pod's address."""
        asked: Manifest = self.spec[probe]
        if "exec" in asked:
            run = subprocess.run(asked["exec"]["command"], check=False, capture_output=True, timeout=10)
            return run.returncode == 0
        ask = asked.get("httpGet") or asked["tcpSocket"]
        port = ask["port"] if isinstance(ask["port"], int) else self.ports[ask["port"]]
        try:
            if "httpGet" in asked:
                self.get(port, ask["path"], asked.get("timeoutSeconds", 1))
            else:
                socket.create_connection((self.pod.address, port), 1).close()
        except OSError:
            return False
        return True

    def ready(self, seconds: float = 60) -> "Running":
        """Wait until it is started and ready; fails at once where it ends."""

        def done() -> bool:
            assert self.runs, self.log
            return self.passes("startupProbe") and self.passes("readinessProbe")

        wait_until(done, seconds, lambda: self.log)
        assert self.passes("livenessProbe"), self.log
        return self

    def get(self, port: int, path: str, timeout: float = 5) -> str:
        """Get what is at a port of the pod by HTTP; OSError for any answer but a good one."""
        with urllib.request.urlopen(f"http://{self.pod.address}:{port}{path}", timeout=timeout) as answer:
            return str(answer.read().decode())

    def listeners(self) -> set[tuple[str, int]]:
        """What it listens on."""
        found = self.process.net_connections("tcp")
        return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}

    def terminate(self, seconds: float) -> int:
        """End it as Kubernetes does, but without the kill that follows; returns its exit code."""
        self.process.terminate()
        return int(self.process.wait(seconds))

    def kill(self) -> None:
        """End it as a node that loses power."""
        if self.runs:
            self.process.kill()
            self.process.wait()


class Machine:
    """What was rendered for a namespace, and what of it runs.

    Args:
        folder: Where volumes and logs are.
        manifests: Everything of the namespace.
        workloads: The workloads that are to run, each a kind and a container, with how many pods.
        places: What is elsewhere than in the images, by how it is written.
    """

    def __init__(
        self,
        folder: Path,
        manifests: Sequence[Manifest],
        workloads: Mapping[tuple[str, str], int],
        places: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.manifests, self.places = folder, _elsewhere(manifests), dict(places or {})
        self._running: list[Running] = []
        # A net of its own, so that two runs on one machine do not meet.
        net = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
        self._pods: dict[tuple[str, str], list[Pod]] = {}
        self.hosts: dict[str, str] = {}
        hosts = iter(range(1, 255))
        for key, count in {**workloads, ENGINE: 1}.items():
            name = pods.workload(self.manifests, *key)["metadata"]["name"]
            self._pods[key] = [Pod(f"{name}-{i}", f"{net}.{next(hosts)}") for i in range(count)]
            self.hosts |= self._names(key)

    def _names(self, key: tuple[str, str]) -> dict[str, str]:
        """What the pods of a workload are called by others."""
        labels = pods.workload(self.manifests, *key)["spec"]["template"]["metadata"]["labels"].items()
        found = {}
        for service in self.manifests:
            if service["kind"] != "Service" or not service["spec"]["selector"].items() <= labels:
                continue
            name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
            if service["spec"].get("clusterIP") == "None":
                found |= {f"{pod.name}.{name}": pod.address for pod in self._pods[key]}
            else:
                found[name] = self._pods[key][0].address
        return found

    def address(self, key: tuple[str, str], index: int = 0) -> str:
        """A pod's address."""
        return self._pods[key][index].address

    def start(self, key: tuple[str, str], index: int = 0) -> Running:
        """Start a pod anew: its init containers, and then its container. Only what it has claimed is still there."""
        pod = self._pods[key][index]
        folder = self.folder / pod.name
        template = self._template(key)
        claimed = {c["metadata"]["name"] for c in pods.workload(self.manifests, *key)["spec"].get(_CLAIMS, [])}
        for mount in self._mounts(template):
            if mount["name"] not in claimed:
                shutil.rmtree(folder / mount["name"], ignore_errors=True)
            (folder / mount["name"]).mkdir(parents=True, exist_ok=True)
        for spec in template.get("initContainers", []):
            process = self._process(template, spec, pod, folder)
            subprocess.run(process.argv, check=True, env=self._env(folder, process), timeout=60, cwd=folder)
        return self.restart(key, index)

    def restart(self, key: tuple[str, str], index: int = 0) -> Running:
        """Start a pod's container again: what its volumes hold is still there."""
        pod, template = self._pods[key][index], self._template(key)
        folder = self.folder / pod.name
        spec = next(c for c in template["containers"] if c["name"] == key[1])
        process = self._process(template, spec, pod, folder)
        folder.mkdir(exist_ok=True)
        log_file = folder / "log"
        with log_file.open("a") as log:
            started = psutil.Popen(process.argv, env=self._env(folder, process), stdout=log, stderr=log, cwd=folder)
        running = Running(started, pod, self._moved(spec), log_file)
        self._running.append(running)
        return running

    def volume(self, key: tuple[str, str], name: str, index: int = 0) -> Path:
        """The folder that is a pod's volume."""
        return self.folder / self._pods[key][index].name / name

    def engine(self, **task: Any) -> Any:
        """Do a task of in_mooncake.py with what the engine is given, and nothing else; returns what it found."""
        pod, template = self._pods[ENGINE][0], self._template(ENGINE)
        folder = self.folder / "engine"
        folder.mkdir(exist_ok=True)
        process = self._process(template, template["containers"][0], pod, folder)
        answer = folder / "answer.json"
        run = subprocess.run(
            [sys.executable, str(_CLIENT), str(answer)],
            check=False,
            input=json.dumps({"address": pod.address, "args": process.argv, **task}),
            env=self._env(folder, process),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=task.get("seconds", 0) + 60,
        )
        (folder / "log").write_text(run.stdout)
        assert run.returncode == 0, run.stdout[-5000:]
        return json.loads(answer.read_text())

    def engine_args(self) -> tuple[str, ...]:
        """The engine's command line."""
        return pods.process(self.manifests, *ENGINE, self._pods[ENGINE][0]).argv

    def close(self) -> None:
        """End all that still runs."""
        for running in reversed(self._running):
            running.kill()

    def _moved(self, spec: Manifest) -> Manifest:
        """A container whose ports and programs are where they are here."""
        text = json.dumps(spec)
        for old, new in self.places.items():
            text = text.replace(old, new)
        found: Manifest = json.loads(text)
        return found

    def _template(self, key: tuple[str, str]) -> Manifest:
        template: Manifest = pods.workload(self.manifests, *key)["spec"]["template"]["spec"]
        return template

    def _process(self, template: Manifest, spec: Manifest, pod: Pod, folder: Path) -> pods.Process:
        places = {mount["mountPath"]: str(folder / mount["name"]) for mount in self._mounts(template)}
        process = pods.started(self.manifests, template, spec, pod).moved({**self.places, **places, **self.hosts})
        return runner.placed(process, folder)

    def _mounts(self, template: Manifest) -> list[Manifest]:
        """Mounts of folders that a pod may write to, but for /tmp."""
        maps = {v["name"] for v in template.get("volumes", []) if "configMap" in v}
        mounts = [m for c in template["containers"] for m in c.get("volumeMounts", [])]
        return [m for m in mounts if m["name"] not in maps and not m.get("readOnly") and m["mountPath"] != "/tmp"]

    def _env(self, folder: Path, process: pods.Process) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**runner.base_env(folder), "PATH": path, **process.env}
