"""The pages are spelled in one way, and their lines are short."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.backend import ROOT

WORDING = {
    r"\bPostgres's": "Postgres'",
    r"\bPrometheus's": "Prometheus'",
    r"(?i)(?:\b|_)(?:author|initial|minim|normal|organ|optim|recogn|serial|summar|synchron)is(?:e[ds]?|ing|ation)\b": (
        "…ize"
    ),
    r"(?i)\b(?:behaviou|colou|favou|honou|neighbou)r": "…or",
    r"(?i)\blicence": "license",
    r"(?i)\bcancel(?:ed|ing)\b(?! (?:after|statement))": "cancelled, except where Postgres is quoted",
    r"(?i)\bwhite space\b": "whitespace",
}
GENERATED = {"docs/performance.md", "bench/performance.template.md"}
"""What `make bench` writes, and the template of it."""
UNBREAKABLE = re.compile(r"\s*\||\s*(?:- )?\S+$|- Status: ")
"""Rows of tables, single words, and the status of a decision, which its index repeats."""


def files(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def prose(page: Path) -> Iterator[str]:
    """The page's lines outside of code."""
    in_code = False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield line


@pytest.mark.parametrize(("other", "ours"), WORDING.items(), ids=WORDING.values())
def test_words_with_two_spellings_have_one(other: str, ours: str) -> None:
    texts = files(
        "*.md", "k8s/**/*.yaml", "observability/*.yml", "dev/*", "Makefile", "docker-compose*.yml", ".github/**"
    )

    assert len(texts) > 50
    found = [(text.name, found[0]) for text in texts for found in re.finditer(other, text.read_text())]
    assert found == [], f"write {ours}"


def test_lines_of_pages_have_at_most_120_characters() -> None:
    pages = [page for page in files("*.md", ":!tests/k8s/schemas") if str(page.relative_to(ROOT)) not in GENERATED]

    long = [
        f"{page.name}: {line}"
        for page in pages
        for line in prose(page)
        if len(line) > 120 and not UNBREAKABLE.match(line)
    ]
    assert long == []
