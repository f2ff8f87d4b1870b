"""A version is believed where it is certain, and not guessed at where it is not."""

import itertools

import pytest

from function.engines import versions
from function.engines.versions import Version

V0_11: Version = (0, 11, 0)
V0_20: Version = (0, 20, 2)
V0_22: Version = (0, 22, 0)

DIGEST = "sha256:" + "0123456789abcdef" * 4

TEXTS: dict[str, Version | None] = {
    "v0.11": (0, 11, 0),
    "0.11": (0, 11, 0),
    "v0.11.0": (0, 11, 0),
    "0.11.2": (0, 11, 2),
    "v0.11.0-cu129": (0, 11, 0),
    "v0.11.0-x86_64": (0, 11, 0),
    "v0.11.0-aarch64": (0, 11, 0),
    "v0.11.0-devel": (0, 11, 0),
    "0.11.0_ubuntu2404": (0, 11, 0),
    "0.11.0+cu129": (0, 11, 0),
    "v0.9.0.1": None,
    "v0.24.0.post1": (0, 24, 0),
    "v0.24.0.post1-cu129": (0, 24, 0),
    "v0.100.12": (0, 100, 12),
    "v0.11.0rc1": None,
    "v0.11rc1": None,
    "v0.24.0-rc1": None,
    "v0.24.0-dev": None,
    "v0.24.0-nightly": None,
    "v0.24.0-beta.2": None,
    "v0.24.0post1": (0, 24, 0),
    "0.24.1.dev5+g1234567": None,
    "latest": None,
    "nightly": None,
    "nightly-0123456789abcdef": None,
    "v0": None,
    "0": None,
    "": None,
    "v": None,
    "0.11.": None,
    "cu129-v0.11.0": None,
    " 0.11.0": None,
    "0.11.0\n": None,
    "0123456789abcdef": None,
}


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_a_version_is_three_numbers_and_a_candidate_is_none(text: str) -> None:
    assert versions.parse(text) == TEXTS[text]


IMAGES: dict[str, Version | None] = {
    "vllm/vllm-openai:v0.11": (0, 11, 0),
    "vllm/vllm-openai:v0.33.0": (0, 33, 0),
    "vllm/vllm-openai:v0.33.0-cu129": (0, 33, 0),
    "docker.io/vllm/vllm-openai:v0.24.0": (0, 24, 0),
    "host:5000/vllm/vllm-openai:v0.24.0": (0, 24, 0),
    "host.example:443/a/b/c/vllm-openai:v0.24.0": (0, 24, 0),
    "vllm-openai:v0.24.0": (0, 24, 0),
    f"vllm/vllm-openai:v0.24.0@{DIGEST}": (0, 24, 0),
    "quay.io/team/our-vllm-build:0.24.1": (0, 24, 1),
    f"vllm/vllm-openai@{DIGEST}": None,
    "vllm/vllm-openai": None,
    "host:5000/vllm/vllm-openai": None,
    f"host:5000/vllm/vllm-openai@{DIGEST}": None,
    "vllm/vllm-openai:latest": None,
    "vllm/vllm-openai:nightly": None,
    "vllm/vllm-openai:v0.11.0rc1": None,
    # These tags are LMCache's versions.
    "lmcache/vllm-openai:v0.5.6": None,
    "host:5000/mirror/lmcache/vllm-openai:v0.5.6": None,
    # These are the vendors' own versions.
    "vendor.example/nvidia/vllm:25.09-py3": None,
    "vendor.example/rhaiis/vllm-cuda-rhel9:3.2.0": None,
    # These are whoever's.
    "vllm/something-else:v0.24.0": None,
    "company/serving:v0.24.0": None,
    "v0.24.0": None,
    "": None,
}


@pytest.mark.parametrize("image", IMAGES)
def test_only_a_vllm_images_tag_says_vllms_version(image: str) -> None:
    assert versions.of_engine(None, image, "vllm") == IMAGES[image]


@pytest.mark.parametrize(
    ("said", "image", "version"),
    [
        ("0.24.0", "vllm/vllm-openai:v0.11.0", (0, 24, 0)),
        ("v0.11", "vllm/vllm-openai:v0.33.0", (0, 11, 0)),
        ("0.33.0", "lmcache/vllm-openai:v0.5.6", (0, 33, 0)),
        ("0.33.0", "company/serving:2026-11-22", (0, 33, 0)),
        ("0.33.0", f"vllm/vllm-openai@{DIGEST}", (0, 33, 0)),
        # The API refuses this one; should it come through, the image does not stand in for what the user said.
        ("next", "vllm/vllm-openai:v0.33.0", None),
    ],
)
def test_what_the_user_says_wins_over_the_tag(said: str, image: str, version: Version | None) -> None:
    assert versions.of_engine(said, image, "vllm") == version


LMCACHE_IMAGES: dict[str, Version | None] = {
    "lmcache/vllm-openai:v0.5.6": (0, 5, 6),
    "lmcache/vllm-openai:v0.5.6-cu129": (0, 5, 6),
    "lmcache/standalone:v0.5.6": (0, 5, 6),
    "docker.io/lmcache/vllm-openai:v0.3.9.post2": (0, 3, 9),
    "lmcache/vllm-openai:v0.3.9post2": (0, 3, 9),
    "host:5000/lmcache/vllm-openai:v0.4.5": (0, 4, 5),
    f"lmcache/vllm-openai:v0.5.6@{DIGEST}": (0, 5, 6),
    f"lmcache/vllm-openai@{DIGEST}": None,
    "lmcache/vllm-openai": None,
    "host:5000/lmcache/vllm-openai": None,
    "lmcache/vllm-openai:latest": None,
    "lmcache/vllm-openai:v0.5.6rc1": None,
    "vllm/vllm-openai:v0.5.6": None,
    "company/not-lmcache:v0.5.6": None,
    "lmcache:v0.5.6": (0, 5, 6),
}


@pytest.mark.parametrize("image", LMCACHE_IMAGES)
def test_only_lmcaches_own_images_say_lmcaches_version(image: str) -> None:
    assert versions.lmcache_of_image(image) == LMCACHE_IMAGES[image]


ROWS: dict[Version, Version | None] = {
    (0, 0, 1): None,
    (0, 10, 99): None,
    (0, 11, 0): V0_11,
    (0, 11, 1): V0_11,
    (0, 19, 0): V0_11,
    (0, 20, 1): V0_11,
    (0, 20, 2): V0_20,
    (0, 21, 9): V0_20,
    (0, 22, 0): V0_22,
    (0, 33, 0): V0_22,
    (1, 0, 0): V0_22,
}


@pytest.mark.parametrize("version", ROWS, ids=versions.show)
def test_the_newest_row_that_is_not_newer_holds_and_none_for_what_is_older_than_the_table(version: Version) -> None:
    row = versions.vllm(version)
    assert (row.since if row else None) == ROWS[version]


@pytest.mark.parametrize(
    ("version", "multiprocess", "lmcache"),
    [
        ((0, 11, 0), False, (0, 3, 7)),
        ((0, 20, 2), False, (0, 4, 5)),
        ((0, 22, 0), True, (0, 4, 5)),
    ],
)
def test_what_the_table_says(version: Version, multiprocess: bool, lmcache: Version) -> None:
    row = versions.vllm(version)
    assert row
    assert (row.multiprocess, row.oldest_lmcache) == (multiprocess, lmcache)


def test_the_table_is_in_order_and_names_its_sources() -> None:
    assert all(a.since < b.since for a, b in itertools.pairwise(versions.VLLM_TABLE))
    assert all(row.source for row in versions.VLLM_TABLE)


@pytest.mark.parametrize("version", [(0, 11, 0), (0, 3, 9), (10, 20, 30)])
def test_a_version_that_is_shown_can_be_read_again(version: Version) -> None:
    assert versions.parse(versions.show(version)) == version
    assert versions.show((0, 11, 0)) == "0.11.0"
