"""Lets an engine's pod wait for its tier: an init container that looks whether somebody answers.

An engine that finds nobody gives up and starts again and again, each time with its whole model to load.
"""

from collections.abc import Sequence

from function import kube

NAME = "kv-offload-wait"
# Then the pod says so and starts to wait anew: the message is seen by `kubectl describe pod`.
_SECONDS = 600

# By the engine's own image, which has Python whatever else it is.
_PROGRAM = """\
import socket, sys, time
seconds, tier, wanted, *targets = sys.argv[1:]
end = time.monotonic() + float(seconds)
while True:
    answered = 0
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 3).close()
            answered += 1
            if answered == int(wanted):
                sys.exit(0)
        except OSError as e:
            last = f"{target}: {e}"
    if time.monotonic() > end:
        sys.exit(f"KVOffloadTier {tier} does not answer after {seconds} s ({last}); see its conditions")
    time.sleep(2)
"""


def container(tier: str, targets: Sequence[str], seconds: int = _SECONDS, *, every: bool = False) -> kube.Manifest:
    """Write the init container, without its image.

    Args:
        tier: The tier as people write it, for the message.
        targets: host:port, one of which has to answer.
        seconds: For how long it waits.
        every: Whether all of them have to answer.
    """
    return {
        "name": NAME,
        "command": ["python3", "-c", _PROGRAM, str(seconds), tier, str(len(targets) if every else 1), *targets],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
