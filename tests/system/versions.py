"""Runs the system tests with a gateway or a worker of the previous version: `make versions`.

Each release moves the first commit to the release before it.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from dev.backend import ROOT

PREVIOUS = "eadd2c9061af8e397a76ad588f398ce2d169aa71"
"""The previous version, 1.0.0."""
BEFORE_LISTS = "4521b655fcfa21a04b775d21f38294368cc20123"
"""The oldest version beside which this one works: schema 0003, without lists, search and several writes at once."""
OF_THIS_VERSION_ALONE = [
    "test_alerts.py",
    "test_following.py",
    "test_million.py",
    "test_versions.py",
]
"""Features that the previous version lacks: some metrics, changes, exports and imports.

The last file starts both versions itself.
"""


def unpack(commit: str, folder: Path) -> None:
    """Extracts the services' source of a commit into a folder; needs git and the history."""
    command = ["git", "archive", commit, "gateway", "worker", "shared", "pyproject.toml"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as source:
        source.extractall(folder, filter="data")


def main() -> int:
    """Returns 1 if a test fails with either service of the previous version."""
    left_out = [f"--ignore=tests/system/{name}" for name in OF_THIS_VERSION_ALONE]
    with TemporaryDirectory(prefix="inkwell-previous-") as folder:
        unpack(PREVIOUS, Path(folder))
        failed = False
        for service in ("gateway", "worker"):
            print(f"the {service} of {PREVIOUS[:7]} with the others of this version", flush=True)
            command = [sys.executable, "-m", "pytest", "tests/system", *left_out, *sys.argv[1:]]
            environment = {**os.environ, f"{service.upper()}_TREE": folder}
            failed |= subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
