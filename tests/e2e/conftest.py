"""The world that all stories share: started once, installed by the documentation, counted at the end."""

import signal
import time
from collections.abc import Generator, Iterator

import pytest

from tests.e2e import fleet, install
from tests.e2e.environment import FOLDER, SYSTEM, Environment
from tests.e2e.install import FUNCTION, PROVIDER
from tests.e2e.kube import TIER, conditions
from tests.e2e.ledger import Ledger
from tests.e2e.manifests import agents_tier

_START = time.monotonic()
COUNTS: dict[str, int] = {}


def say(text: str) -> None:
    """Tell whoever watches how far it is."""
    print(f"[{time.monotonic() - _START:5.0f} s] {text}", flush=True)


def pytest_configure() -> None:
    # A run that is out of time is asked to end: then everything that was started is ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def world() -> Iterator[Environment]:
    """Clusters and Crossplane, and nothing of ours."""
    made = Environment(FOLDER, say)
    try:
        made.up()
        yield made
        COUNTS.update(made.counted())
    finally:
        made.down()


@pytest.fixture(scope="session")
def base(world: Environment) -> Environment:
    """The Function, KVOffloadTier and the provider."""
    install.install(world)
    say("installed, but for the standalone part")
    return world


@pytest.fixture(scope="session")
def installed(base: Environment) -> Environment:
    """The standalone install too, on both inference clusters."""
    install.install_standalone(base)
    say("installed")
    return base


@pytest.fixture(scope="session")
def ledger(base: Environment) -> Iterator[Ledger]:
    """What happens to workloads."""
    made = Ledger(base.clusters.values())
    made.start()
    yield made
    made.close()
    base.counts["workloads deleted or restarted by mistake"] = len(made.harm)


@pytest.fixture(scope="session")
def small(installed: Environment, ledger: Ledger) -> str:
    """A tier of agents on the cluster west that several stories look at."""
    assert ledger
    installed.control.kube.apply(agents_tier("west", "small"))
    installed.control.kube.wait(TIER, "small", SYSTEM, conditions(Ready="True", RolledOut="True"))
    return "small"


@pytest.fixture(scope="session")
def fleet_runs(installed: Environment, ledger: Ledger) -> Environment:
    """The fleet of tests/e2e/fleet.py, all of it applied at once and now running."""
    assert ledger
    installed.control.kube.apply(*fleet.manifests())
    fleet.settled(installed)
    say("the fleet runs")
    return installed


@pytest.fixture(autouse=True)
def alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each story, everything runs that nobody ended."""
    yield
    say(request.node.name)
    if "world" in request.fixturenames:
        request.getfixturevalue("world").check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for log in sorted((FOLDER / "logs").glob("*.log")):
            if log.name.startswith(("crossplane", FUNCTION, PROVIDER)):
                said = [
                    line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line or "rror:" in line
                ]
                report.sections.append((f"last errors of {log.name}", "\n".join(line[:500] for line in said[-5:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, count in COUNTS.items():
        terminalreporter.write_line(f"{count:7} {what}")
