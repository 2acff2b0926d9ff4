"""A cluster of which one part or another fails all the time keeps every promise."""

import os

import pytest

from tests.faults.run import run

FAULTS_SECONDS = float(os.environ.get("FAULTS_SECONDS", "60"))
FEW_COMMANDS = 500
"""A run with fewer of them shows nothing."""
SEED = 1


@pytest.mark.needs_docker
async def test_promises_hold_while_everything_fails_now_and_then() -> None:
    verdict = await run(FAULTS_SECONDS, SEED)

    assert not verdict.violations
    assert verdict.commands > FEW_COMMANDS
