"""A version is believed where it is certain, and not guessed at where it is not."""

import pytest

from function import releases
from function.engines import versions
from function.engines.table import LMCACHE, MOONCAKE, NIXL
from function.engines.versions import Bundled, Version

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


BUNDLED: dict[tuple[str, str], Bundled] = {
    # In LMCache's own images the tag is LMCache's version.
    ("lmcache/vllm-openai:v0.5.6", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    ("lmcache/vllm-openai:v0.5.6-cu129", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    ("lmcache/standalone:v0.5.6", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    ("docker.io/lmcache/vllm-openai:v0.3.9.post2", LMCACHE): Bundled(True, (0, 3, 9), (0, 3, 9)),
    ("lmcache/vllm-openai:v0.3.9post2", LMCACHE): Bundled(True, (0, 3, 9), (0, 3, 9)),
    ("host:5000/lmcache/vllm-openai:v0.4.5", LMCACHE): Bundled(True, (0, 4, 5), (0, 4, 5)),
    (f"lmcache/vllm-openai:v0.5.6@{DIGEST}", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    ("lmcache:v0.5.6", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    # They hold it without saying which.
    (f"lmcache/vllm-openai@{DIGEST}", LMCACHE): Bundled(True),
    ("lmcache/vllm-openai", LMCACHE): Bundled(True),
    ("host:5000/lmcache/vllm-openai", LMCACHE): Bundled(True),
    ("lmcache/vllm-openai:latest", LMCACHE): Bundled(True),
    ("lmcache/vllm-openai:v0.5.6rc1", LMCACHE): Bundled(True),
    ("lmcache/vllm-openai:v0.5.6", MOONCAKE): Bundled(False),
    ("lmcache/vllm-openai:v0.5.6-lightweight", MOONCAKE): Bundled(),
    ("lmcache/vllm-openai:v0.5.5", MOONCAKE): Bundled(),
    ("lmcache/vllm-openai:v0.5.6", NIXL): Bundled(True),
    # What others build is theirs.
    ("vllm/vllm-openai:v0.5.6", LMCACHE): Bundled(),
    ("company/not-lmcache:v0.5.6", LMCACHE): Bundled(),
    ("company/vllm-openai:v0.33.0", LMCACHE): Bundled(),
    ("vllm/vllm-openai-rocm:v0.33.0", LMCACHE): Bundled(),
    # Sources disagree.
    ("vllm/vllm-openai:v0.11", LMCACHE): Bundled(),
    ("vllm/vllm-openai:v0.13.0", NIXL): Bundled(),
    ("vllm/vllm-openai:v0.14.0", LMCACHE): Bundled(True),
    ("vllm/vllm-openai:v0.16.0", LMCACHE): Bundled(True, (0, 3, 9)),
    ("vllm/vllm-openai:v0.14.0", NIXL): Bundled(True),
    ("vllm/vllm-openai:v0.19.1", LMCACHE): Bundled(True, (0, 4, 3), (0, 4, 3)),
    ("vllm/vllm-openai:v0.24.0", LMCACHE): Bundled(True, (0, 3, 9), (0, 5, 5)),
    ("vllm/vllm-openai:v0.32.0", LMCACHE): Bundled(True, (0, 3, 9)),
    ("vllm/vllm-openai:v0.32.0-cu129", LMCACHE): Bundled(True, (0, 4, 4), (0, 4, 4)),
    ("vllm/vllm-openai:v0.33.0", LMCACHE): Bundled(True, (0, 5, 6)),
    ("mirror.example/vllm/vllm-openai:v0.33.0-x86_64-cu129", LMCACHE): Bundled(True, (0, 5, 6), (0, 5, 6)),
    ("vllm/vllm-openai:v0.34.0", LMCACHE): Bundled(),
    ("vllm/vllm-openai:latest", LMCACHE): Bundled(),
    ("vllm/vllm-openai:v0.16.0", MOONCAKE): Bundled(False),
    ("vllm/vllm-openai:v0.17.0", MOONCAKE): Bundled(True, (0, 3, 8)),
    ("vllm/vllm-openai:v0.27.1", MOONCAKE): Bundled(True, (0, 3, 10), (0, 3, 10)),
    ("vllm/vllm-openai:v0.28.0", MOONCAKE): Bundled(True, (0, 3, 12)),
    ("lmsysorg/sglang:v0.5.5", MOONCAKE): Bundled(True, (0, 3, 7), (0, 3, 7)),
    ("lmsysorg/sglang:v0.5.10", MOONCAKE): Bundled(),
    ("lmsysorg/sglang:v0.5.23-cu130", MOONCAKE): Bundled(True, (0, 3, 13), (0, 3, 13)),
    ("lmsysorg/sglang:v0.5.23", LMCACHE): Bundled(False),
}


@pytest.mark.parametrize(("image", "library"), BUNDLED, ids=" ".join)
def test_what_an_image_holds_is_told_where_somebody_has_looked(image: str, library: str) -> None:
    assert versions.bundled(image, library) == BUNDLED[image, library]


AGENTS: dict[tuple[str, str], Version | None] = {
    ("lmcache/standalone:v0.5.6", LMCACHE): (0, 5, 6),
    ("kvcacheai/mooncake:0.3.13.post1", MOONCAKE): (0, 3, 13),
    ("company/agent:v0.5.4", LMCACHE): (0, 5, 4),
    # Its tag is SGLang's version.
    ("lmsysorg/sglang:v0.5.23", MOONCAKE): (0, 3, 13),
    ("vllm/vllm-openai:v0.33.0", LMCACHE): None,
    ("company/agent:build-7", LMCACHE): None,
    ("host:5000/agent", MOONCAKE): None,
    (f"company/agent@{DIGEST}", MOONCAKE): None,
}


@pytest.mark.parametrize(("image", "library"), AGENTS, ids=" ".join)
def test_an_agents_version_is_told_by_its_image_or_its_tag(image: str, library: str) -> None:
    assert versions.agent(image, library).version == AGENTS[image, library]


def test_the_release_says_what_its_agents_run() -> None:
    for release in releases.RELEASES.values():
        assert versions.agent(release.mooncake_image, MOONCAKE).version
        found = versions.agent(release.lmcache_image, LMCACHE).version
        assert found == versions.parse(release.lmcache_version)


def held(oldest: Version | None, newest: Version | None = None) -> Bundled:
    return Bundled(holds=True, oldest=oldest, newest=newest)


# A library, what an agent and an engine hold of it, and whether these are known not to go together.
SKEWS = [
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held((0, 3, 13), (0, 3, 13)), False),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held((0, 3, 12), (0, 3, 12)), True),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held((0, 3, 14)), True),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held(None, (0, 3, 12)), True),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held((0, 3, 8), (0, 3, 12)), True),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held((0, 3, 12)), False),
    (MOONCAKE, held((0, 3, 13), (0, 3, 13)), held(None), False),
    (MOONCAKE, held(None), held((0, 3, 13), (0, 3, 13)), False),
    (MOONCAKE, Bundled(), Bundled(), False),
    # Since 0.5.5 any two go together.
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 5, 5), (0, 5, 5)), False),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 5, 9), (0, 5, 9)), False),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 5, 4), (0, 5, 4)), True),
    (LMCACHE, held((0, 5, 4), (0, 5, 4)), held((0, 5, 4), (0, 5, 4)), False),
    (LMCACHE, held((0, 5, 4), (0, 5, 4)), held((0, 5, 3), (0, 5, 3)), True),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 6, 0), (0, 6, 0)), True),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 6, 0)), True),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 3, 9), (0, 5, 5)), False),
    (LMCACHE, held((0, 5, 6), (0, 5, 6)), held((0, 3, 9), (0, 5, 4)), True),
]


@pytest.mark.parametrize(("library", "agent", "engine", "apart"), SKEWS, ids=str)
def test_only_what_is_known_not_to_go_together_is_kept_apart(
    library: str, agent: Bundled, engine: Bundled, apart: bool
) -> None:
    assert versions.apart(library, agent, engine) is apart
    assert versions.apart(library, engine, agent) is apart


@pytest.mark.parametrize(
    ("version", "lmcache"),
    [
        ((0, 11, 0), (0, 3, 7)),
        ((0, 20, 1), (0, 3, 7)),
        ((0, 20, 2), (0, 4, 5)),
        ((0, 33, 0), (0, 4, 5)),
        ((1, 0, 0), (0, 4, 5)),
    ],
)
def test_what_may_be_relied_on_beside_an_engine_that_nobody_has_looked_into(version: Version, lmcache: Version) -> None:
    assert versions.oldest_lmcache(version).oldest == lmcache


@pytest.mark.parametrize("version", [(0, 11, 0), (0, 3, 9), (10, 20, 30)])
def test_a_version_that_is_shown_can_be_read_again(version: Version) -> None:
    assert versions.parse(versions.show(version)) == version
    assert versions.show((0, 11, 0)) == "0.11.0"
