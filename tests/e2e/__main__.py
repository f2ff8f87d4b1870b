"""`python -m tests.e2e up` leaves a control plane and its clusters running, to look around; `down` ends them."""

import os
import signal
import subprocess
import sys
import threading

from tests.e2e import install
from tests.e2e.environment import CLUSTERS, FOLDER, Environment
from tests.e2e.processes import Broken, end_leftovers, started, wait_until
from tests.tools import build

_READY = FOLDER / "ready"
_PID = FOLDER.with_suffix(".pid")
_LOG = FOLDER.with_suffix(".log")


def _serve() -> None:
    """Run everything until this process is asked to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    world = Environment(FOLDER)
    try:
        world.up()
        print("packages", flush=True)
        install.install(world)
        install.install_standalone(world)
        _READY.touch()
        threading.Event().wait()
    except KeyboardInterrupt:
        print("ends")
    finally:
        world.down()
        _READY.unlink(missing_ok=True)


def _up() -> None:
    _down()
    with _LOG.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e", "serve"], stdout=log, stderr=log, start_new_session=True
        )
    _PID.write_text(f"{server.pid} {started(server.pid)}")
    try:
        wait_until(lambda: _READY.exists() or server.poll() is not None, 300, "everything runs", _LOG.read_text)
    except Broken:
        server.terminate()
        raise
    if server.poll() is not None:
        raise Broken(_LOG.read_text())
    print(f"""Running. In this shell:

  export PATH={build.tool("kubectl").parent}:$PATH KUBECONFIG={FOLDER / "control" / "kubeconfig"}
  sed '/inferenceClusterRef/{{n;s/: .*/: {CLUSTERS[0]}/}}' examples/mooncake/tier.yaml | kubectl apply -f -
  kubectl create namespace chat && kubectl apply -f examples/mooncake/deployment.yaml
  kubectl get kvoffloadtiers,modeldeployments -A

The inference clusters are {" and ".join(CLUSTERS)}: their kubeconfigs are {FOLDER}/{{{",".join(CLUSTERS)}}}/kubeconfig.
All logs are in {FOLDER}/logs. `make e2e-down` ends it.""")


def _down() -> None:
    pid, _, since = _PID.read_text().partition(" ") if _PID.exists() else ("", "", "")
    if pid and started(int(pid)) == since:
        os.kill(int(pid), signal.SIGTERM)
        wait_until(lambda: started(int(pid)) != since, 60, "everything has ended")
    _PID.unlink(missing_ok=True)
    end_leftovers(FOLDER)


if __name__ == "__main__":
    {"serve": _serve, "up": _up, "down": _down}[sys.argv[1]]()
