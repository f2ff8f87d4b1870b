"""Builds the packages with Crossplane's own CLI: `python -m tests.tools.packages FOLDER [RUNTIME_IMAGE.tar]`.

The Function's runtime image comes from a builder such as `docker build -o type=docker,dest=image.tar .`; without it the
Function's package holds its metadata alone.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools import build

CONTENTS: dict[str, tuple[str, ...]] = {
    "function": (),
    "configuration": (
        "apis/kvoffloadtier.yaml",
        "apis/kvoffloadfleet.yaml",
        "compositions/kvoffloadtier.yaml",
        "compositions/kvoffloadfleet.yaml",
    ),
    "standalone-configuration": (
        "apis/standalone/inferencecluster.yaml",
        "apis/standalone/modeldeployment.yaml",
        "compositions/standalone/inferencecluster.yaml",
        "compositions/standalone/modeldeployment.yaml",
    ),
}


def packages(target: Path, runtime: Path | None = None) -> list[Path]:
    """Build every package into a folder, the runtime image's tarball inside the Function's, and return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    built = []
    for name, files in CONTENTS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shutil.copy(Path("package") / name / "crossplane.yaml", root)
            for file in files:
                shutil.copy(file, root / file.replace("/", "-"))
            package = target / f"{name}.xpkg"
            command = [str(build.tool("crossplane")), "xpkg", "build", f"--package-root={root}"]
            command += [f"--package-file={package.absolute()}", f"--examples-root={root / 'none'}"]
            if runtime and name == "function":
                command.append(f"--embed-runtime-image-tarball={runtime.absolute()}")
            subprocess.run(command, check=True)
        built.append(package)
    return built


if __name__ == "__main__":
    for path in packages(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None):
        print(path)
