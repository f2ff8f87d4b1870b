"""The version table's probes find in the packages that are here what the record says of them."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from function.engines import table
from tests.conformance import runner
from tests.tools import released

RECORD: released.Record = json.loads((Path(__file__).parents[1] / "unit" / "released.json").read_text())
OWN = Path(str(metadata.distribution("lmcache").locate_file(".")))
MOONCAKE = next(package.released for package in table.PACKAGES if package.name == table.MOONCAKE)

HERE: dict[tuple[str, str], Path] = {
    **{(table.VLLM, version): Path(sys.prefix) / f"vllm-{version}" for version in ("0.11.0", "0.33.0")},
    **{(table.SGLANG, version): Path(sys.prefix) / f"sglang-{version}" for version in ("0.5.5", "0.5.23")},
    (table.AIBRIX, "0.8.0"): Path(sys.prefix) / "aibrix-0.8.0",
    (table.LMCACHE, runner.OLDEST): runner.beside(runner.OLDEST),
    (table.LMCACHE, metadata.version("lmcache")): OWN,
    (table.MOONCAKE, metadata.version(MOONCAKE)): OWN,
}


@pytest.mark.parametrize(("package", "version"), HERE, ids=str)
def test_a_package_shows_what_the_record_says(package: str, version: str) -> None:
    root = HERE[package, version]
    assert root.is_dir(), f"{root} is not there: run `make conformance`"
    assert released.evaluate(package, root) == RECORD[package][version]
