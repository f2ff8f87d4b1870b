"""An engine's pod waits for its tier, for so long, and says for what."""

import socket
import subprocess
import sys
import threading
import time

from function import preflight
from function.attach import apply
from tests.unit.builders import NEW, attach, engine, tier


def run(*targets: str, seconds: int, every: bool = False) -> "subprocess.Popen[str]":
    """Start what is rendered, by this Python."""
    _, *words = preflight.container("modelplane-system/shared", targets, seconds, every=every)["command"]
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)


def free() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def test_it_ends_at_once_where_one_of_the_targets_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        waiting = run(free(), f"127.0.0.1:{server.getsockname()[1]}", seconds=60)
        assert waiting.wait(20) == 0


def test_it_may_wait_for_all_of_them() -> None:
    late = free()
    with socket.create_server(("127.0.0.1", 0)) as server:
        waiting = run(late, f"127.0.0.1:{server.getsockname()[1]}", seconds=60, every=True)
        time.sleep(0.5)
        assert waiting.poll() is None
        host, port = late.split(":")
        with socket.create_server((host, int(port))):
            assert waiting.wait(20) == 0


def test_it_waits_until_somebody_answers() -> None:
    target = free()
    waiting = run(target, seconds=60)
    time.sleep(0.5)
    assert waiting.poll() is None
    host, port = target.split(":")
    with socket.create_server((host, int(port))):
        assert waiting.wait(20) == 0


def test_it_gives_up_and_says_for_whom_it_waited() -> None:
    target = free()
    waiting = run(target, seconds=1)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(waiting.communicate()[1]))
    reader.start()
    reader.join(20)
    assert waiting.returncode == 1
    for part in ("modelplane-system/shared", target, "see its conditions"):
        assert part in said[0]


def test_an_engine_waits_for_the_agent_that_it_speaks_to_and_in_process_for_nobody() -> None:
    (wait,) = attach(tier(), engine()).init_containers
    assert wait["command"][-4:] == [
        "600",
        "modelplane-system/shared",
        "1",
        "kvtier-modelplane-system-shared-5d78e.default.svc:5555",
    ]
    assert attach(tier({"mode": "InProcess"}), engine(image=NEW)).init_containers == ()


def test_it_runs_by_the_engines_own_image_and_after_what_the_user_has_the_pod_do() -> None:
    own = {"name": "download", "image": "fetch"}
    pod = {"containers": [{"name": "engine", "image": NEW}], "initContainers": [own]}
    attached, _ = apply({"spec": pod}, attach(tier(), engine()), "engine")
    first, wait = attached["spec"]["initContainers"]
    assert first == own
    assert (wait["name"], wait["image"]) == (preflight.NAME, NEW)
