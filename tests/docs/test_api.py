"""docs/api.md lists every operation."""

import re

from dev.backend import ROOT
from gateway.problems import PROBLEM_TYPES

PAGE = (ROOT / "docs/api.md").read_text()


def test_codes_are_listed_by_status_and_code() -> None:
    listed = re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", PAGE, re.MULTILINE)

    assert [(int(status), code) for code, status in listed] == sorted(
        (each.status, code) for code, each in PROBLEM_TYPES.items()
    )
