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
MANY = 500
"""Fewer are no scan of all of it."""
UV = shutil.which("uv") or str(ROOT / ".uv/bin/uv")


def test_scanner_finds_nothing(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(text_of(overlay))
    command = [UV, "tool", "run", "--from", CHECKOV, "checkov", "--skip-download"]  # got by uv the first time

    config = ["--config-file", str(ROOT / "k8s/checkov.yaml"), "--directory", str(tmp_path)]
    scanned = subprocess.run([*command, *config], check=False, capture_output=True, text=True, timeout=300)

    if "Passed checks" not in scanned.stdout:
        pytest.skip(f"checkov cannot be had: {scanned.stderr[-200:]}")
    [(passed, failed)] = re.findall(r"Passed checks: (\d+), Failed checks: (\d+)", scanned.stdout)
    assert int(passed) > MANY
    assert failed == "0", scanned.stdout
