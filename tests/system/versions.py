"""Runs the system tests with a gateway or a worker of the previous version: `make versions`.

Each release moves both commits to the release before it.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from dev.backend import ROOT

PREVIOUS = "2ef81a74659a52bacfcc9d67d2ea4898f151f6d2"
"""The previous version: the last commit without metrics, alerts and traces."""
BEFORE_LISTS = "4521b655fcfa21a04b775d21f38294368cc20123"
"""The version before that: the last commit with schema 0003, without lists, search and several writes at once."""
OF_THIS_VERSION_ALONE = [
    "test_alerts.py",
    "test_traces.py",
    "test_hostile_messages.py",
    "test_repartition.py",
    "test_repeated_without_a_broker.py",
    "test_versions.py",
]
"""Features that the previous version lacks: metrics, traces, bounds on messages, partitions declared at the broker.

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
