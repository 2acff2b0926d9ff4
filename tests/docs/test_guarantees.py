"""Every promise has a number, under which the check of its violations is documented."""

import re

from dev.backend import ROOT

PROMISES = [f"I{number}" for number in range(1, 14)]


def test_promises_are_numbered_and_each_is_checked_under_its_number() -> None:
    guarantees, reliability = (ROOT / "docs/guarantees.md").read_text(), (ROOT / "docs/reliability.md").read_text()
    found = "".join(file.read_text() for file in (ROOT / "tests/faults").rglob("*.py"))

    assert re.findall(r"^\| (I\d+) \|", guarantees, re.MULTILINE) == PROMISES
    assert set(re.findall(r"^\| (I\d+), ", reliability, re.MULTILINE)) == set(PROMISES)
    assert set(re.findall(r"\"(I\d+): ", found)) == set(PROMISES)
