"""Every decision record has the same form and a line in the index."""

import re
from pathlib import Path

import pytest

from dev.backend import ROOT

FOLDER = ROOT / "docs/decisions"
RECORDS = sorted(FOLDER.glob("0*.md"))
FORM = re.compile(
    r"# (?P<number>\d{4}): (?P<title>[^\n]+)\n\n"
    r"- Status: (?P<status>(?:accepted|superseded by \[\d{4}\])[^\n]*)\n"
    r"- Date: (?P<date>\d{4}-\d\d-\d\d)\n\n"
    r"## Context\n.+\n## Decision\n.+\n## Alternatives\n.+\n## Consequences\n.+",
    re.DOTALL,
)


def read(record: Path) -> dict[str, str]:
    found = FORM.match(record.read_text())
    assert found, f"{record.name} lacks a part, or has its parts in another order"
    return found.groupdict()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_record_has_every_part_in_order_and_its_line_in_the_index(record: Path) -> None:
    parts = read(record)

    line = f"| [{parts['number']}]({record.name}) | {parts['title']} | {parts['date']} | {parts['status']} |"
    assert record.name.startswith(parts["number"])
    assert line in (FOLDER / "README.md").read_text().splitlines()


def test_records_that_supersede_others_are_named_by_them() -> None:
    statuses = {record.name: read(record)["status"] for record in RECORDS}
    superseding = {
        (name, other) for name, status in statuses.items() for other in re.findall(r"supersedes .*?\((.+?)\)", status)
    }

    assert ("0030-compare-and-store.md", "0002-one-transaction-per-batch.md") in superseding
    for name, other in superseding:
        assert re.search(rf"superseded by \[\d+\]\({name}\)", statuses[other])
