"""In process: LMCache inside the engine, of the oldest supported version and of the current one."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conformance import cases, runner
from tests.conformance.conftest import Run, Server
from tests.conformance.pods import Manifest, Process, process
from tests.examples import PASSWORD, USERNAME

KEYS = ("chunk_size", "local_cpu", "max_local_cpu_size", "local_disk", "max_local_disk_size", "remote_url")

ODD_CREDENTIALS = (
    (USERNAME, PASSWORD),
    ("", "@:/%#?&+ =\\\"'$()"),
    ("us@er:%2f", "100%25"),
    ("", "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss wort"),
)


def engine(port: int, **secret: str) -> Process:
    """The seed's engine, with its Redis at a port of this machine."""
    manifests = cases.changed("lmcache", tier=cases.redis_at(port), secret=secret or None)
    return process(manifests, "Deployment", "engine")


def shows(log: str, subject: Process) -> bool:
    """Tell whether a log gives the password away, as it is or as the URL has it."""
    return PASSWORD in log or str(urlsplit(subject.env["LMCACHE_REMOTE_URL"]).password) in log


@pytest.fixture(scope="module")
def unreachable() -> Process:
    return engine(runner.free_port())


@pytest.fixture(scope="module")
def seeds(lmcache: Run, unreachable: Process) -> runner.Outcome:
    """The seed's example, whose Redis does not answer."""
    urls = [
        engine(6379, password=password, **({"username": username} if username else {})).env["LMCACHE_REMOTE_URL"]
        for username, password in ODD_CREDENTIALS
    ]
    return lmcache(unreachable, config=KEYS, remote="look", urls=urls)


@pytest.fixture(scope="module")
def whole(lmcache: Run) -> runner.Outcome:
    """The example of a whole tier in process, behind TLS."""
    subject = cases.engine("lmcache-inprocess")
    return lmcache(subject, config=KEYS, urls=[subject.env["LMCACHE_REMOTE_URL"]])


def test_the_file_is_read_as_it_is_meant_and_the_environment_wins(seeds: runner.Outcome, unreachable: Process) -> None:
    """Unknown keys are only warned of, and the URL must come from the environment alone."""
    assert "Unknown configuration key" not in seeds.log
    assert seeds.found["config"] == {
        "chunk_size": 256,
        "local_cpu": True,
        "max_local_cpu_size": 2,
        "local_disk": None,
        "max_local_disk_size": 0,
        "remote_url": unreachable.env["LMCACHE_REMOTE_URL"],
    }


def test_a_whole_tier_is_shared_out_among_ranks(whole: runner.Outcome) -> None:
    assert "Unknown configuration key" not in whole.log
    tier, config = cases.tier_spec("lmcache-inprocess"), whole.found["config"]
    # 200 GiB for 4 GPUs are 50 each, and 32 of them: pinned memory is rounded up to a power of two.
    assert config["max_local_cpu_size"] == 32
    assert config["local_disk"] == "/var/lib/lmcache/"
    # 45 % of 800 GiB for 4: a container that starts again finds the files of the one before.
    assert tier["diskTier"]["sizePerNode"] == "800Gi"
    assert config["max_local_disk_size"] == 90


def test_nothing_is_reported_to_lmcaches_makers(seeds: runner.Outcome, whole: runner.Outcome) -> None:
    """From 0.4.5 on, a usage report holds the Redis URL, password and all."""
    assert (seeds.found["reports_usage"], whole.found["reports_usage"]) == (False, False)


def test_user_and_password_come_out_of_the_url_as_they_went_in(seeds: runner.Outcome) -> None:
    """A URL is the only way to give credentials to LMCache before 0.4.5."""
    found = [(url["username"] or "", url["password"]) for url in seeds.found["urls"]]
    assert found == list(ODD_CREDENTIALS)


def test_a_tier_with_tls_is_reached_with_tls(whole: runner.Outcome) -> None:
    assert whole.found["urls"] == [
        {"host": "redis.internal.example", "port": 6380, "username": USERNAME, "password": PASSWORD, "tls": True}
    ]


def test_the_password_is_in_no_log_line_when_redis_cannot_be_reached(
    seeds: runner.Outcome, unreachable: Process
) -> None:
    assert "Remote connection failed" in seeds.log
    assert not shows(seeds.log, unreachable)


def test_the_password_is_in_no_log_line_when_redis_refuses_it(redis: Server, lmcache: Run) -> None:
    subject = engine(redis.port, username="nobody", password=PASSWORD)
    log = lmcache(subject, remote="look").log
    assert "invalid username-password pair" in log
    assert not shows(log, subject)


def test_without_our_log_level_the_password_is_logged(lmcache: Run, unreachable: Process) -> None:
    """Why LMCACHE_LOG_LEVEL is set at all: once this fails for every version, it can go."""
    env = {name: value for name, value in unreachable.env.items() if name != "LMCACHE_LOG_LEVEL"}
    assert shows(lmcache(replace(unreachable, env=env), remote="look").log, unreachable)


def test_a_newer_engine_gets_its_credentials_apart_from_the_url(redis: Server, tmp_path: Path) -> None:
    """From 0.4.5 on there is `resp`, by LMCache's own client, for which no log level is needed."""

    def tier(manifest: Manifest) -> None:
        manifest["spec"]["lmcache"]["mode"] = "InProcess"
        manifest["spec"]["placement"] = {"gpusPerNode": 8}
        cases.redis_at(redis.port)(manifest)

    def deployment(manifest: Manifest) -> None:
        manifest["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.33.0"

    subject = process(cases.changed("lmcache", tier=tier, deployment=deployment), "Deployment", "engine")
    assert subject.env["LMCACHE_REMOTE_URL"] == f"resp://127.0.0.1:{redis.port}"
    redis.admin.flushall()
    task: dict[str, Any] = {"remote": "store"}
    outcome = runner.in_process(runner.CURRENT, subject, task, tmp_path)
    assert redis.admin.dbsize() == len(outcome.found["keys"])
    assert PASSWORD not in outcome.log
