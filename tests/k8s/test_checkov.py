"""What a scanner for Kubernetes manifests finds; what it is not to look for is in k8s/checkov.yaml, and why."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dev.backend import ROOT
from tests.k8s.rendering import OVERLAYS, text_of

CHECKOV = "checkov==3.3.30"
"""Run apart from everything else: it wants other versions of what is used here."""
UV = shutil.which("uv") or ROOT / ".uv/bin/uv"


def checkov(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs it; the first time uv gets it."""
    command = [UV, "tool", "run", "--from", CHECKOV, "checkov", "--skip-download", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", autouse=True)
def is_there() -> None:
    if checkov("--version").returncode != 0:
        pytest.skip("checkov cannot be had")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scanner_finds_nothing(overlay: str, tmp_path: Path) -> None:
    (tmp_path / "manifests.yaml").write_text(text_of(overlay))

    scanned = checkov("--config-file", ROOT / "k8s/checkov.yaml", "--file", tmp_path / "manifests.yaml")

    assert scanned.returncode == 0, scanned.stdout
    [(passed, failed)] = re.findall(r"Passed checks: (\d+), Failed checks: (\d+)", scanned.stdout)
    assert int(passed) > 100
    assert failed == "0"
