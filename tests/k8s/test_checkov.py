"""A scanner for Kubernetes manifests finds nothing; k8s/checkov.yaml lists skipped checks with reasons."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dev.backend import ROOT
from tests.support.rendering import COMPONENTS, OVERLAYS, text_of

CHECKOV = "checkov==3.3.30"
"""Runs in its own environment, since it needs other versions of shared dependencies."""
MANY = 500
"""A scan with fewer checks is incomplete."""
UV = shutil.which("uv") or str(ROOT / ".uv/bin/uv")
OF_CHECKOV = [UV, "tool", "run", "--from", CHECKOV]
"""The beginning of a command that runs beside checkov, which uv downloads on first use."""


def test_scanner_finds_nothing(tmp_path: Path) -> None:
    for overlay in (*OVERLAYS, *COMPONENTS):
        (tmp_path / f"{overlay}.yaml").write_text(text_of(overlay))
    got = subprocess.run([*OF_CHECKOV, "python", "-c", ""], check=False, capture_output=True, text=True, timeout=300)
    if got.returncode:
        pytest.skip(f"checkov cannot be had: {got.stderr[-200:]}")

    config = ["--config-file", str(ROOT / "k8s/checkov.yaml"), "--directory", str(tmp_path)]
    command = [*OF_CHECKOV, "checkov", "--skip-download", *config]
    scanned = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)

    found = re.search(r"Passed checks: (\d+), Failed checks: (\d+)", scanned.stdout)
    assert found, scanned.stdout + scanned.stderr
    assert int(found[1]) > MANY
    assert found[2] == "0", scanned.stdout


def test_nothing_is_left_out_by_the_scanner_without_a_reason() -> None:
    _, skipped = (ROOT / "k8s/checkov.yaml").read_text().split("skip-check:\n")

    assert len(skipped.splitlines()) <= 3
    assert all(re.fullmatch(r"  - CKV2?_K8S_\d+ # \w.+", line) for line in skipped.splitlines())
    assert not any("checkov.io/skip" in text_of(overlay) for overlay in OVERLAYS)
