"""What the render tests need: Crossplane's own programs, and the function as a server.

Without Go nothing can be built, and the tests that need it are skipped; where none may be (CI=true) they fail.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from function.render import EXAMPLES
from tests.tools import build, crossplane


def built(*make: Callable[[], Path]) -> list[Path]:
    """Make what a test needs; ends the test where there is no Go."""
    try:
        return [one() for one in make]
    except build.GoMissing as missing:
        message = f"{missing}, so nothing is held against the real Crossplane and API server"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def xrd_tool() -> Path:
    """The program that says what an API server makes of an XRD."""
    return built(lambda: build.tool("xrd"))[0]


@pytest.fixture(scope="session")
def crossplane_tools() -> list[Path]:
    """Crossplane's CLI and the core that it renders with."""
    return built(lambda: build.tool("crossplane"), lambda: build.tool("core"))


@pytest.fixture(scope="session")
def provider_crds() -> Path:
    """A folder with the CRDs of provider-kubernetes."""
    return built(build.provider_package)[0] / "crds"


@pytest.fixture(scope="session")
def validator(crossplane_tools: list[Path]) -> list[Path]:
    """What `crossplane resource validate` needs."""
    return [*crossplane_tools, *built(build.validate_cache)]


@pytest.fixture(scope="session")
def functions(crossplane_tools: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of Functions whose one is this checkout's, served for the whole session."""
    assert crossplane_tools
    with crossplane.function_server() as server:
        yield crossplane.functions_file(
            EXAMPLES / "functions.yaml", server.address, tmp_path_factory.mktemp("functions")
        )
