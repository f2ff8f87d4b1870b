"""The version table says what the released packages show: tests/unit/released.json, which `make released` writes."""

import json
from pathlib import Path

import pytest

from function.engines import table, versions
from function.engines.versions import Version
from tests.tools import released
from tests.tools.table import page

RECORD: released.Record = json.loads((Path(__file__).parent / "released.json").read_text())
PACKAGES = {package.name: package for package in table.PACKAGES}
PROBED = [name for name, row in released.ROWS.items() if isinstance(row.probe, table.Probe)]


def shown(name: str) -> dict[Version, bool]:
    """In which releases a row was found to hold; of several with one triple, in all of them."""
    found: dict[Version, bool] = {}
    for text, rows in RECORD[released.ROWS[name].package].items():
        version = versions.parse(text)
        assert version
        found[version] = found.get(version, True) and rows[name]
    return found


@pytest.mark.parametrize("name", PROBED)
def test_a_row_holds_in_the_releases_that_show_it(name: str) -> None:
    row = released.ROWS[name]
    wrong = {versions.show(v): held for v, held in shown(name).items() if held != row.holds(v)}
    assert not wrong, f"{name}: correct function/engines/table.py, or run `make released` if a probe has changed"


@pytest.mark.parametrize("name", PROBED)
def test_where_a_row_begins_and_ends_was_looked_at_and_so_was_the_release_before(name: str) -> None:
    row, found = released.ROWS[name], shown(name)
    package, seen = PACKAGES[row.package], sorted(found)
    assert (seen[0], seen[-1]) == (package.oldest, package.newest)
    for boundary, begins in ((row.since, True), *([(row.until, False)] if row.until else [])):
        assert boundary in seen, versions.show(boundary)
        if boundary != package.oldest:
            assert (found[seen[seen.index(boundary) - 1]], found[boundary]) == (not begins, begins)


@pytest.mark.parametrize("package", table.PACKAGES, ids=lambda p: p.name)
def test_the_record_has_every_probe_of_every_release_and_no_other(package: table.Package) -> None:
    for version, rows in RECORD[package.name].items():
        assert rows.keys() == released.probed(package.name).keys(), f"{package.name} {version}: run `make released`"


def test_every_row_is_of_a_package_names_its_source_and_says_why_where_nothing_shows_it() -> None:
    for name, row in released.ROWS.items():
        assert row.package in PACKAGES, name
        assert row.source, name
        assert row.what, name
        assert row.until is None or row.since < row.until, name
        assert isinstance(row.probe, table.Probe) or len(row.probe.split()) == 1, name


def test_the_page_is_what_the_table_says() -> None:
    written = (Path(__file__).parents[2] / "docs" / "versions.md").read_text()
    assert written == page(), "docs/versions.md is not what the table says: run `make versions`"


def test_a_row_holds_from_its_first_version_and_before_its_last() -> None:
    row = table.Row(table.VLLM, since=(0, 12, 0), until=(0, 14, 0), what="x", source="y", probe="behaviour")
    held = [version for version in [(0, 11, 9), (0, 12, 0), (0, 13, 9), (0, 14, 0), (1, 0, 0)] if row.holds(version)]
    assert held == [(0, 12, 0), (0, 13, 9)]


def test_no_two_rows_say_what_one_image_holds_of_one_library() -> None:
    for i, one in enumerate(table.IMAGES):
        for other in table.IMAGES[i + 1 :]:
            same = (one.repository, one.library, one.flavour) == (other.repository, other.library, other.flavour)
            assert not same or one.until <= other.since or other.until <= one.since, (one, other)


def test_what_images_hold_is_said_by_a_source() -> None:
    for image in table.IMAGES:
        assert image.source
        assert image.since < image.until
        assert image.holds or (image.oldest, image.newest) == (None, None)


@pytest.mark.parametrize(("absent", "text", "held"), [(False, "a = 1", True), (False, "b", False), (True, "b", True)])
def test_a_probe_looks_for_a_text_in_files(tmp_path: Path, absent: bool, text: str, held: bool) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text("x\na = 1\n")
    assert released.shows(table.Probe("package/*.py", f"^{text}", absent), tmp_path) is held
    assert released.shows(table.Probe("elsewhere/*.py", text, absent), tmp_path) is absent
