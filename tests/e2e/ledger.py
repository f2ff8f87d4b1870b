"""What happened to the workloads and pods of the inference clusters, by UID: made, deleted, or changed."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e.clusters import Cluster
from tests.e2e.kube import AWAY, DAEMON_SET, DEPLOYMENT, POD, STATEFUL_SET, Kind, Kube, Manifest

NAMESPACE = "default"
_KINDS = (POD, DEPLOYMENT, DAEMON_SET, STATEFUL_SET)


@dataclass(frozen=True)
class Change:
    """Something that happened. `what`: made, deleted, or changed (a workload's spec)."""

    cluster: str
    kind: str
    name: str
    uid: str
    what: str

    def __str__(self) -> str:
        return f"{self.cluster}: {self.kind} {self.name} was {self.what}"


class Ledger:
    """Watches the workloads of some clusters, over restarts of their API servers, until it is closed."""

    def __init__(self, clusters: Iterable[Cluster]) -> None:
        self.changes: list[Change] = []
        # What was deleted or changed while nothing was to be.
        self.harm: list[Change] = []
        self._closed = False
        self._lock = threading.Lock()
        self._synced: set[tuple[str, str]] = set()
        self._threads = [
            threading.Thread(target=self._follow, args=(cluster, kind), name=f"ledger-{kind.kind}", daemon=True)
            for cluster in clusters
            for kind in _KINDS
        ]

    def start(self) -> None:
        """Begin to watch, and return once everything is watched."""
        for thread in self._threads:
            thread.start()
        while len(self._synced) < len(self._threads):
            time.sleep(0.1)

    def close(self) -> None:
        """Watch no more; the threads end with the tests."""
        self._closed = True

    def mark(self) -> int:
        """Where the ledger ends now."""
        return len(self.changes)

    def since(self, mark: int, *what: str) -> list[Change]:
        """What happened since a mark; without `what`, everything."""
        return [c for c in self.changes[mark:] if not what or c.what in what]

    @contextlib.contextmanager
    def unharmed(self, settle: float = 2) -> Iterator[None]:
        """Fail where a workload is deleted or changed, or a pod goes, while the context lasts."""
        mark = self.mark()
        yield
        time.sleep(settle)
        harm = self.since(mark, "deleted", "changed")
        self.harm += harm
        assert not harm, "\n".join(map(str, harm))

    def _follow(self, cluster: Cluster, kind: Kind) -> None:
        kube = Kube(cluster.kubeconfig)
        known: dict[str, Manifest] = {}
        while not self._closed:
            try:
                self._once(kube, cluster.name, kind, known)
            except (*AWAY, OSError):
                time.sleep(0.5)

    def _once(self, kube: Kube, cluster: str, kind: Kind, known: dict[str, Manifest]) -> None:
        """List, note what is other than when it was last seen, and watch from there on."""
        items, version = kube.snapshot(kind, NAMESPACE)
        seen = {item["metadata"]["uid"]: item for item in items}
        for uid in known.keys() - seen.keys():
            self._note(cluster, kind, known.pop(uid), "deleted")
        for item in seen.values():
            self._see(cluster, kind, item, known)
        self._synced.add((cluster, kind.kind))
        for event, item in kube.watch(kind, NAMESPACE, version):
            if event == "DELETED":
                self._note(cluster, kind, item, "deleted")
                known.pop(item["metadata"]["uid"], None)
            else:
                self._see(cluster, kind, item, known)

    def _see(self, cluster: str, kind: Kind, item: Manifest, known: dict[str, Manifest]) -> None:
        uid = item["metadata"]["uid"]
        before = known.get(uid)
        known[uid] = item
        if before is None:
            self._note(cluster, kind, item, "made")
        elif kind is not POD and _spec(before) != _spec(item):
            self._note(cluster, kind, item, "changed")

    def _note(self, cluster: str, kind: Kind, item: Manifest, what: str) -> None:
        with self._lock:
            metadata = item["metadata"]
            self.changes.append(Change(cluster, kind.kind, metadata["name"], metadata["uid"], what))


def _spec(item: Manifest) -> Any:
    """What pods are made of; replicas are live."""
    return item["spec"].get("template")
