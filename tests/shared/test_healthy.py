"""The health check of all containers: when it reports, and when it keeps checking."""

import subprocess
from pathlib import Path

import pytest

from dev.backend import ROOT
from dev.containers import IMAGES

CHECKS = """
export PATH=/fakes:$PATH
check() { sh /healthy.sh sh -c 'echo look; test -e /tmp/well'; echo "exit $?"; }
check; touch /tmp/well; check; check; rm /tmp/well; check; touch /tmp/well; check
"""
ONE_MINUTE = ["look", "sleep 10"] * 6
FAKE_SLEEP = '#!/bin/sh\necho "sleep $1"\n'

pytestmark = pytest.mark.needs_docker


def test_first_success_and_every_failure_are_reported_at_once_and_a_repeated_success_after_a_minute(
    tmp_path: Path,
) -> None:
    (tmp_path / "sleep").write_text(FAKE_SLEEP)
    (tmp_path / "sleep").chmod(0o755)
    mounts = f"--volume={ROOT}/shared/healthy.sh:/healthy.sh:ro", f"--volume={tmp_path}:/fakes:ro"
    command = ["docker", "run", "--rm", "--entrypoint=sh", *mounts, IMAGES["POSTGRES_IMAGE"], "-c", CHECKS]

    looks = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    failed, succeeded = ["look", "exit 1"], ["look", "exit 0"]
    assert looks == [*failed, *succeeded, *ONE_MINUTE, "exit 0", *failed, *succeeded]
