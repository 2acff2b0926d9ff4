"""The README is short and claims no more than was measured."""

import re

from dev.backend import ROOT

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs/performance.md").read_text()


def test_readme_has_at_most_150_lines_of_at_most_120_characters() -> None:
    lines = README.splitlines()

    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_speeds_that_the_readme_claims_are_targets_that_were_met() -> None:
    claimed = set(re.findall(r"at least (\d+) times", README))

    met = set(re.findall(r"^\|.*\| ≥ (\d+) \S \|.*\| met \|$", PERFORMANCE, re.MULTILINE))
    assert claimed
    assert claimed - met == set()
