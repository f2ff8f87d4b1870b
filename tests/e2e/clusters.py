"""Kubernetes clusters on loopback: real API servers and controllers, and nodes that kwok plays.

What is not real: no kubelet runs a container, pulls an image or reads a ConfigMap, and no GPU or NIC is behind a node's
capacity. kwok says that a pod runs as soon as the scheduler has put it on a node.
"""

import base64
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.e2e.kube import NODE, POD, Kube, Manifest, names
from tests.e2e.network import Network
from tests.e2e.processes import Process, free_port, wait_until
from tests.tools import build

STORAGE_CLASSES = ("nvme-local", "gp3")


class Etcd:
    """The one etcd; each cluster has a prefix of its own in it."""

    def __init__(self, folder: Path) -> None:
        self.port, peers = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        peer = f"http://127.0.0.1:{peers}"
        command = [build.tool("etcd"), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level=warn"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--quota-backend-bytes", str(4 << 30)]
        self.process = Process("etcd", command, folder)


class Cluster:
    """An API server and its controllers; with `nodes`, also a scheduler, and kwok for the nodes that are added."""

    def __init__(self, name: str, folder: Path, etcd: Etcd, *, nodes: bool, network: Network | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.kubeconfig = self.folder / "kubeconfig"
        self._certificates = self.folder / "certificates"
        self._key = self.folder / "service-accounts.key"
        self.api = Process(f"{name}-kube-apiserver", self._api_server(etcd, network), folder)
        kcm = [build.tool("kube-controller-manager"), f"--kubeconfig={self.kubeconfig}", "--leader-elect=false"]
        # Without nodes, what deletions and roles need. The token controller would want a key that nobody here uses.
        few = "garbage-collector-controller,namespace-controller,clusterrole-aggregation-controller"
        which = "*,-serviceaccount-token-controller" if nodes else few
        kcm += [f"--controllers={which}", "--use-service-account-credentials=false", "--secure-port=0"]
        self.controllers = [Process(f"{name}-kube-controller-manager", kcm, folder)]
        if nodes:
            scheduler = [build.tool("kube-scheduler"), f"--kubeconfig={self.kubeconfig}", "--leader-elect=false"]
            kwok = [build.tool("kwok"), f"--kubeconfig={self.kubeconfig}", "--manage-all-nodes=true"]
            kwok += ["--node-lease-duration-seconds=40"]
            self.controllers += [
                Process(f"{name}-kube-scheduler", [*scheduler, "--secure-port=0"], folder),
                Process(f"{name}-kwok", kwok, folder),
            ]
        self._kube: Kube | None = None

    @property
    def url(self) -> str:
        """Where the API server is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def kube(self) -> Kube:
        """A client with every right."""
        if self._kube is None:
            self._kube = Kube(self.kubeconfig)
        return self._kube

    def start(self) -> None:
        """Start the API server, and return at once."""
        subprocess.run(["openssl", "genrsa", "-out", self._key, "2048"], check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        self.api.start()

    def ready(self) -> None:
        """Wait for the API server, and start what works with it."""
        wait_until(self.answers, 90, f"{self.name}'s API server is ready", self.api.tail)
        for process in self.controllers:
            process.start()

    def login(self, token: str, path: Path) -> Path:
        """Write a kubeconfig for whoever has a token, and return it."""
        path.write_text(yaml.safe_dump(self.kubeconfig_for(token)))
        return path

    def kubeconfig_for(self, token: str) -> Manifest:
        """A kubeconfig for whoever has a token."""
        # The server's own certificate, and the authority that signed it when it started first.
        authority = (self._certificates / "apiserver.crt").read_text()
        data = base64.b64encode(authority.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.name,
            "clusters": [{"name": self.name, "cluster": {"server": self.url, "certificate-authority-data": data}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": "user"}}],
        }

    def add_node(self, name: str, *, gpus: int = 16, labels: Mapping[str, str] | None = None) -> None:
        """Let a node join, with GPUs and what else agents may ask for, or with no GPU and no taint."""
        capacity = {"cpu": "192", "memory": "8Ti", "ephemeral-storage": "10Ti", "pods": "110"}
        node: Manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        node["metadata"]["labels"] = {"kubernetes.io/hostname": name, **(labels or {})}
        if gpus:
            capacity |= {"nvidia.com/gpu": str(gpus), "hugepages-2Mi": "512Gi", "rdma/rdma_shared_device_a": str(gpus)}
            node["metadata"]["labels"]["nvidia.com/gpu.present"] = "true"
            node["spec"] = {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}
        # In one write, as kubelets register: kwok gives a node that comes without capacity one of its own.
        self.kube.create({**node, "status": {"capacity": capacity, "allocatable": capacity}})

    def remove_node(self, name: str) -> None:
        """Let a node leave for good."""
        self.kube.delete(NODE, name)

    def forget_node(self, name: str) -> None:
        """Delete the pods of a node that has left, as the garbage collector does within a minute or so."""
        for pod in self.kube.find(POD, field_selector=f"spec.nodeName={name}"):
            self.kube.delete(POD, pod["metadata"]["name"], pod["metadata"]["namespace"], now=True)

    def add_volumes(self, count: int) -> None:
        """Make storage classes of local disks, and volumes in each, as an administrator does."""
        for storage_class in STORAGE_CLASSES:
            meta = {"name": storage_class}
            made = {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
            self.kube.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": meta, **made})
            for index in range(count):
                spec = {
                    "capacity": {"storage": "4Ti"},
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": storage_class,
                    "hostPath": {"path": f"/mnt/disks/{index}"},
                }
                volume = {"apiVersion": "v1", "kind": "PersistentVolume", "spec": spec}
                self.kube.apply({**volume, "metadata": {"name": f"{storage_class}-{index}"}})

    def add_devices(self, driver: str, device_class: str, count: int, attributes: Manifest) -> None:
        """Make a DeviceClass, and devices of it on every node: what a DRA driver on the nodes would say there are."""
        cel = [{"cel": {"expression": f"device.driver == {driver!r}"}}]
        api = {"apiVersion": "resource.k8s.io/v1"}
        self.kube.apply({**api, "kind": "DeviceClass", "metadata": {"name": device_class}, "spec": {"selectors": cel}})
        for node in names(self.kube.find(NODE)):
            devices = [{"name": f"device-{index}", "attributes": attributes} for index in range(count)]
            pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
            spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": devices}
            name = {"name": f"{node}-{device_class}"}
            self.kube.apply({**api, "kind": "ResourceSlice", "metadata": name, "spec": spec})

    def answers(self) -> bool:
        """Whether the API server is ready. Raises Broken where it has ended."""
        self.api.check()
        if not (self._certificates / "apiserver.crt").exists():
            return False
        self.login(self.token, self.kubeconfig)
        kubectl = [str(build.tool("kubectl")), f"--kubeconfig={self.kubeconfig}", "get", "--raw=/readyz"]
        return subprocess.run(kubectl, capture_output=True, check=False).returncode == 0

    def _api_server(self, etcd: Etcd, network: Network | None) -> list[object]:
        return [
            build.tool("kube-apiserver"),
            *self._egress(network),
            f"--etcd-servers={etcd.url}",
            f"--etcd-prefix=/{self.name}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._certificates}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._key}",
            f"--service-account-signing-key-file={self._key}",
            "--service-cluster-ip-range=10.0.0.0/16",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            # No token is mounted into pods that nobody runs.
            "--disable-admission-plugins=ServiceAccount",
        ]

    def _egress(self, network: Network | None) -> list[str]:
        """Let the API server reach webhooks in the cluster, through the network that stands for it."""
        if network is None:
            return []
        connection = {"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": str(network.socket)}}}
        config = {
            "apiVersion": "apiserver.k8s.io/v1beta1",
            "kind": "EgressSelectorConfiguration",
            "egressSelections": [{"name": "cluster", "connection": connection}],
        }
        path = self.folder / "egress.yaml"
        path.write_text(yaml.safe_dump(config))
        return [f"--egress-selector-config-file={path}"]
