"""KV in files of each node: where engines write, and the agent that keeps them from filling the disk."""

from function import kube, placement, sizing, workloads
from function.api.tier import FileStore
from function.backends.base import Part, Tier
from function.engines import Engine

DIR = "/var/lib/kv-offload"
_NAME = "kv-files"
_PROBE_SECONDS = 30

# $1 is the folder; above $2 KiB of files the least recently used are deleted, until $3 KiB are left.
# Files are read twice at most, and never all remembered: only how much was last used in each minute. Engines read by
# the time that a file was last read, which file systems note once a day, or wrote. What engines make and lose meanwhile
# is no fault, and paths with a line feed are none of theirs. Folders of vLLM, which makes them anew, go a day after
# their last file.
CLEAN = r"""
export LC_ALL=C
files() {
  find "$1" -type f ! -path '*
*' -exec stat -c '%X %Y %b %n' {} + 2>/dev/null
}
clean() {
  oldest=$(files "$1" | awk '
    { used = $1 > $2 ? $1 : $2; held[used - used % 60] += $3 / 2 }
    END { for (minute in held) printf "%.0f %.0f\n", minute, held[minute] }' | sort -n | awk -v most="$2" -v left="$3" '
    { minute[NR] = $1; held[NR] = $2; all += $2 }
    END {
      if (all <= most) exit
      excess = all - left
      for (i = 1; i < NR && held[i] < excess; i++) excess -= held[i]
      printf "%.0f %.0f", minute[i], excess
    }')
  [ -n "$oldest" ] || return 0
  echo "more than $2 KiB: deleting what was least recently used"
  files "$1" | awk -v minute="${oldest% *}" -v excess="${oldest#* }" '
    {
      used = $1 > $2 ? $1 : $2
      used -= used % 60
      if (used > minute || (used == minute && excess <= 0)) next
      if (used == minute) excess -= $3 / 2
      sub(/^[^ ]+ [^ ]+ [^ ]+ /, "")
      print
    }' | tr '\n' '\000' | xargs -0 -r rm -f --
  find "$1"/vllm-* -mindepth 1 -depth -type d -mmin +1440 -exec rmdir {} + 2>/dev/null
  return 0
}
"""
_LOOP = r"""
trap 'exit 0' TERM INT
while :; do
  clean "$@"
  sleep 30 &
  wait $!
done
"""


def folder(engine: Engine) -> str:
    """Name the folder of an engine's keyspace, as engines and agents see it."""
    return f"{DIR}/{engine.kind.name.lower()}-{engine.keyspace}"


def volumes(store: FileStore) -> list[kube.Manifest]:
    """Give agents and engines the node's folder."""
    return [{"name": _NAME, "hostPath": {"path": store.host_path.path, "type": "DirectoryOrCreate"}}]


def mounts(tier: Tier) -> list[kube.Manifest]:
    """Mount the tier's part of the folder: two tiers may be given the same one."""
    return [{"name": _NAME, "mountPath": DIR, "subPath": tier.instance}]


def parts(tier: Tier, store: FileStore) -> list[Part]:
    """Plan the agents' DaemonSet, and the NetworkPolicy that lets nobody in."""
    return [workloads.network_policy(tier, "agent", []), workloads.daemon_set(tier, _template(tier, store))]


def _template(tier: Tier, store: FileStore) -> kube.Manifest:
    wanted = tier.spec.placement
    size = sizing.quantity(store.size_per_node)
    limits = [str(int(size * share) // 1024) for share in (sizing.DISK_SHARE, sizing.DISK_LEFT)]
    probe = f"{DIR}/.probe"
    container = {
        "name": "cleaner",
        "image": tier.spec.images.shell or tier.release.shell_image,
        "command": ["/bin/sh", "-c", CLEAN + _LOOP, "cleaner"],
        "args": [DIR, *limits],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        # A disk that is full, broken or read-only is no tier.
        "readinessProbe": {
            "exec": {"command": ["/bin/sh", "-c", f"echo kv > {probe} && rm {probe}"]},
            "periodSeconds": _PROBE_SECONDS,
            "timeoutSeconds": _PROBE_SECONDS // 3,
        },
        "securityContext": {
            **workloads.CONFINED,
            # Files are of whatever user an engine runs as.
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
        },
        "volumeMounts": mounts(tier),
    }
    pod = kube.prune(
        {
            **workloads.pod_basics(tier),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            **placement.agents(wanted),
            "containers": [container],
            "volumes": volumes(store),
        }
    )
    return {"metadata": {"labels": tier.selector("agent") | kube.MANAGED_BY}, "spec": pod}
