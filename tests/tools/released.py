"""Holds the version table to the released packages: `python -m tests.tools.released RECORD [PACKAGE==VERSION ...]`.

Every release that the table speaks of is fetched, one wheel at a time, and RECORD says what its probes found. With
releases named, only these are fetched anew, and the rest of the record stays.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from function.engines import table, versions

Record = dict[str, dict[str, dict[str, bool]]]

ROWS: Mapping[str, table.Row] = {name: row for name, row in vars(table).items() if isinstance(row, table.Row)}
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def probed(package: str) -> dict[str, table.Probe]:
    """The probes of a package, by the names of their rows."""
    return {
        name: row.probe for name, row in ROWS.items() if row.package == package and isinstance(row.probe, table.Probe)
    }


def shows(probe: table.Probe, root: Path) -> bool:
    """Evaluate a probe on an unpacked package."""
    pattern = re.compile(probe.text, re.MULTILINE)
    found = any(pattern.search(file.read_text(errors="replace")) for file in root.glob(probe.files))
    return found is not probe.absent


def evaluate(package: str, root: Path) -> dict[str, bool]:
    """Evaluate a package's probes, by the names of their rows."""
    return {name: shows(probe, root) for name, probe in probed(package).items()}


def releases(package: table.Package) -> Iterator[str]:
    """Name the releases that the table speaks of, as the package index knows them."""
    command = [*_PIP, "index", "versions", package.released]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for text in re.findall(r"Available versions: (.*)", answer)[0].split(", "):
        version = versions.parse(text)
        if version and package.oldest <= version <= package.newest:
            yield text


def fetch(released: str, version: str, target: Path) -> None:
    """Unpack the Python files of a release, and keep nothing else of it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", folder]
        subprocess.run([*_PIP, "download", *options, f"{released}=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [name for name in archive.namelist() if name.endswith(".py")])


def write(path: Path, record: Record) -> None:
    """Write a record, each release a line."""
    lines = []
    for package in table.PACKAGES:
        found = sorted(record.get(package.name, {}).items(), key=lambda item: _order(item[0]))
        rows = ",\n".join(f"    {json.dumps(version)}: {json.dumps(rows)}" for version, rows in found)
        lines.append(f"  {json.dumps(package.name)}: {{\n{rows}\n  }}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def main(path: Path, named: list[str]) -> None:
    """Fetch what is named, or all, and bring the record up to date after each release."""
    record: Record = json.loads(path.read_text()) if named and path.exists() else {}
    for package in table.PACKAGES:
        mine = [word.partition("==")[2] for word in named if word.partition("==")[0] == package.released]
        for version in mine if named else releases(package):
            print(f"{package.released} {version}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                fetch(package.released, version, Path(folder))
                record.setdefault(package.name, {})[version] = evaluate(package.name, Path(folder))
            write(path, record)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
