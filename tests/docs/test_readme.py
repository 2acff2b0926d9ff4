"""The README is short and claims no more than was measured."""

import re

from dev.backend import ROOT

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs/performance.md").read_text()


def test_readme_has_at_most_150_lines_of_at_most_120_characters() -> None:
    lines = README.splitlines()

    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_speeds_that_the_readme_claims_are_the_measured_ones() -> None:
    claimed = set(re.findall(r"about\s+(\d+)\s+times\s+\(([\d.]+)\s+to\s+([\d.]+)\)", README))

    rows = re.findall(r"\| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \| (?:met|\*\*not met\*\*) \|$", PERFORMANCE, re.MULTILINE)
    measured = {(f"{float(median):.0f}", *(f"{float(end):.1f}" for end in ends)) for median, *ends in rows}
    assert len(claimed) == 5
    assert claimed - measured == set()


def test_readme_says_how_many_targets_are_met() -> None:
    targets = PERFORMANCE.partition("## Targets")[2].partition("\n## ")[0]
    results = re.findall(r"\| (met|\*\*not met\*\*) \|$", targets, re.MULTILINE)

    assert f"Of the {len(results)} measured targets {results.count('met')}" in " ".join(README.split())
