"""Keeps a wheel's Python files, where the others need a GPU: `python -m tests.conformance.unpack WHEELS TARGET`."""

import sys
import zipfile
from pathlib import Path

# Python, the folders that SGLang looks for, and a version.
KEPT = (".py", "/", "/METADATA")


def unpack(wheels: Path, target: Path) -> None:
    """Write the Python files of every wheel in a folder below `target`."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [name for name in archive.namelist() if name.endswith(KEPT)])


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
