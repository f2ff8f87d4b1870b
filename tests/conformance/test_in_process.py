"""In process: LMCache inside the engine, of the oldest supported version and of the current one."""

import re
from collections.abc import Callable

import pytest
from function.sizing import quantity

from tests.conformance import cases, runner
from tests.conformance.conftest import Server
from tests.conformance.pods import Process, process
from tests.examples import PASSWORD, USERNAME

Run = Callable[..., runner.Outcome]

KEYS = ("chunk_size", "local_cpu", "max_local_cpu_size", "local_disk", "max_local_disk_size", "remote_url")


def engine(port: int, **changes: object) -> Process:
    """The seed's engine, with its Redis at a port of this machine."""
    manifests = cases.changed("lmcache", tier=cases.redis_at(port), **changes)  # type: ignore[arg-type]
    return process(manifests, "Deployment", "engine")


@pytest.mark.parametrize("name", ["lmcache", "lmcache-inprocess"])
def test_the_configuration_is_read_as_it_is_meant_and_the_environment_wins(lmcache: Run, name: str) -> None:
    """Unknown keys are only warned of, and a URL in the environment has to replace whatever the file says."""
    tier, subject = cases.tier_spec(name), cases.engine(name)
    outcome = lmcache(subject, config=KEYS)
    assert "Unknown configuration key" not in outcome.log
    config = outcome.found["config"]
    assert config["remote_url"] == subject.env["LMCACHE_REMOTE_URL"]
    assert (config["chunk_size"], config["local_cpu"]) == (tier.get("chunkSize", 256), True)
    if tier.get("mode") == "InProcess":
        # 4 GPUs a node: a quarter of it each, rounded down to a power of two, since pinned memory is rounded up to one.
        assert config["max_local_cpu_size"] == 32
        assert config["local_disk"] == "/var/lib/lmcache/"
        assert 0 < 4 * config["max_local_disk_size"] * 1024**3 < quantity(tier["diskTier"]["sizePerNode"])
    else:
        assert (config["max_local_cpu_size"], config["local_disk"]) == (2, None)
    assert not outcome.found["reports_usage"], "a usage report holds the Redis URL, password and all, from 0.4.5 on"


ODD_CREDENTIALS = [
    (USERNAME, PASSWORD),
    ("", "@:/%#?&+ =\\\"'$()"),
    ("us@er:%2f", "100%25"),
    ("", "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss wort"),
]


def test_user_and_password_come_out_of_the_url_as_they_went_in(lmcache: Run) -> None:
    """A URL is the only way to give credentials to LMCache before 0.4.5, and its parser knows no mercy."""

    def url(username: str, password: str) -> str:
        secret = {"password": password} | ({"username": username} if username else {})
        return engine(6379, secret=secret).env["LMCACHE_REMOTE_URL"]

    outcome = lmcache(engine(6379), urls=[url(*credentials) for credentials in ODD_CREDENTIALS])
    for found, (username, password) in zip(outcome.found["urls"], ODD_CREDENTIALS, strict=True):
        assert (found["username"] or "", found["password"]) == (username, password)
        assert (found["host"], found["port"], found["tls"]) == ("127.0.0.1", 6379, False)


def test_a_tier_with_tls_is_reached_with_tls(lmcache: Run) -> None:
    subject = cases.engine("lmcache-inprocess")
    [found] = lmcache(subject, urls=[subject.env["LMCACHE_REMOTE_URL"]]).found["urls"]
    assert found["tls"]
    assert (found["host"], found["port"]) == ("redis.internal.example", 6380)
    assert (found["username"], found["password"]) == (USERNAME, PASSWORD)


def shows(log: str, subject: Process) -> bool:
    """Tell whether a log gives the password away, as it is or as the URL has it."""
    encoded = re.fullmatch(r"rediss?://[^:]*:(.*)@[^@]*", subject.env["LMCACHE_REMOTE_URL"])
    assert encoded
    return PASSWORD in log or encoded[1] in log


def test_the_password_is_in_no_log_line_when_redis_cannot_be_reached(lmcache: Run) -> None:
    subject = engine(runner.free_port())
    outcome = lmcache(subject, remote="look")
    assert "Remote connection failed" in outcome.log
    assert not shows(outcome.log, subject)


def test_the_password_is_in_no_log_line_when_redis_refuses_it(redis: Server, lmcache: Run) -> None:
    subject = engine(redis.port, secret={"username": "nobody", "password": PASSWORD})
    outcome = lmcache(subject, remote="look")
    assert "invalid username-password pair" in outcome.log
    assert not shows(outcome.log, subject)


def test_without_our_log_level_the_password_is_logged(lmcache: Run) -> None:
    """Why LMCACHE_LOG_LEVEL is set at all; once this fails for every version, it can go."""
    subject = engine(runner.free_port())
    del subject.env["LMCACHE_LOG_LEVEL"]  # type: ignore[attr-defined]
    assert shows(lmcache(subject, remote="look").log, subject)
