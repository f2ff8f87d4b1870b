"""The volumes that agents and engines of a tier share: a node's disk, and its shared memory."""

from function import kube

DISK_DIR = "/var/lib/lmcache"
SHM_DIR = "/dev/shm"  # noqa: S108 (a mount, no file)

SHM_VOLUME: kube.Manifest = {"name": "kv-shm", "hostPath": {"path": SHM_DIR, "type": "Directory"}}
SHM_MOUNT: kube.Manifest = {"name": "kv-shm", "mountPath": SHM_DIR}


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
