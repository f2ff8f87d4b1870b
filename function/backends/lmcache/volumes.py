"""The volumes that agents and engines of a tier share: a node's disk, and its shared memory."""

from function import kube

DISK_DIR = "/var/lib/lmcache"
SHM_DIR = "/dev/shm"  # noqa: S108 (a mount, no file)

SHM_VOLUME: kube.Manifest = {"name": "kv-shm", "hostPath": {"path": SHM_DIR, "type": "Directory"}}
SHM_MOUNT: kube.Manifest = {"name": "kv-shm", "mountPath": SHM_DIR}
