"""Programs that run beside the tests, each with a log of its own, and ended by pid."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Broken(RuntimeError):
    """A program ended, or something did not come about in time."""


def wait_until(found: Callable[[], T | None], seconds: float, what: str, why: Callable[[], object] = lambda: "") -> T:
    """Call until it returns something true, and return that. Raises Broken with `what`, and what `why` returns."""
    end = time.monotonic() + seconds
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"not within {seconds:.0f} seconds: {what}\n{why()}")
        time.sleep(0.2)


_handed_out: set[int] = set()


def free_port() -> int:
    """A port of the loopback address that nobody listens at, and that the system gives to no connection meanwhile."""
    while True:
        # Below what Linux takes for outgoing connections.
        port = random.randrange(20000, 30000)
        if port not in _handed_out and not answers(port):
            _handed_out.add(port)
            return port


def answers(port: int) -> bool:
    """Say whether something accepts connections at a port of this machine."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A program of this machine.

    `folder`: where its log and its pid are. `cwd`: where it runs; there too, if absent. A program that is started again
    goes on in the same log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        folder: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.log = folder / "logs" / f"{name}.log"
        self.env = dict(env or {})
        self.cwd = cwd or folder
        self._record = folder / "pids" / name
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        """Start it; nothing where it runs."""
        if self.running:
            return self
        for folder in (self.log.parent, self._record.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: ctrl-C in a terminal is for the tests, which then end everything in order.
            self._running = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._record.write_text(f"{self._running.pid} {started(self._running.pid)}")
        return self

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.poll() is None

    def check(self) -> None:
        """Raise Broken, with the end of its log, where it has ended."""
        if not self.running:
            raise Broken(f"{self.name} ended; the last of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def stop(self) -> None:
        """Ask it to end, and wait; after ten seconds it is killed."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to do anything more."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._running is None:
            return
        self._running.send_signal(how)
        try:
            self._running.wait(10)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._running = None
        self._record.unlink(missing_ok=True)


def end_leftovers(folder: Path) -> None:
    """End what an earlier run in this folder left running: only processes that it has recorded, by pid and start."""
    for record in sorted((folder / "pids").glob("*")) if folder.exists() else ():
        pid, _, since = record.read_text().partition(" ")
        if since and since == started(int(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        record.unlink()


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where there is none, so that no other is taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
