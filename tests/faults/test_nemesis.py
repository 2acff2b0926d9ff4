"""The nemesis injects what the page describes, at least thirty kinds of faults, and mends it."""

import re
from collections.abc import Iterator

import pytest

from tests.faults.nemesis import FAULTS
from tests.faults.report import PAGE
from tests.faults.rigs import RIGS

ROW = re.compile(r"^\| (`[a-z].*?`) \|", re.MULTILINE)
CLOCKS = "clocks"
"""The page describes the faults of this rig in a sentence."""


def described() -> Iterator[str]:
    """The names in the first cells of the page's tables; `-kill` stands for the name before with another end."""
    for row in ROW.findall(PAGE.read_text()):
        first, *others = re.findall("`(.+?)`", row)
        yield first
        yield from (f"{first.partition('-')[0]}{name}" if name.startswith("-") else name for name in others)


def test_page_describes_every_fault_of_every_rig() -> None:
    injected = {name for rig, each in RIGS.items() if rig != CLOCKS for name in each.faults}

    assert injected == set(described())


@pytest.mark.parametrize("rig", ["single", "clusters"])
def test_long_runs_have_at_least_thirty_kinds_of_faults(rig: str) -> None:
    assert len(RIGS[rig].faults) >= 30


def test_clusters_suffer_what_a_single_server_does_and_what_only_clusters_do() -> None:
    alone = FAULTS.keys() - RIGS["clusters"].faults.keys()

    assert alone == {"broker-restart", "broker-kill", "broker-pause", "postgres-disk-full"}
    assert RIGS["postgres-pair"].faults.keys() | RIGS["broker-nodes"].faults.keys() <= RIGS["clusters"].faults.keys()
