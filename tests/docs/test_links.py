"""Links have targets: those of every page, and the pages that code and configuration name."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dev.backend import ROOT

FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
NAMED_PAGE = re.compile(r"docs/[\w/-]+\.(?:md|json|svg)(?:#[\w-]+)?")


def files(*patterns: str) -> list[Path]:
    """The files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links to this repository."""
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if not re.match(r"[a-z]+:", target):
            yield target


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as code hosts generate them."""
    found: list[str] = []
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w -]", "", text).replace(" ", "-")
        again = found.count(anchor)
        found.append(f"{anchor}-{again}" if again else anchor)
    return frozenset(found)


def leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    there = (page.parent / name).resolve() if name else page
    return there.exists() and (not anchor or anchor in anchors(there))


def test_links_of_every_page_lead_to_a_file_and_a_heading() -> None:
    pages = files("*.md", ":!*.template.md")

    assert ROOT / "README.md" in pages
    assert [f"{page.name}: {each}" for page in pages for each in links(page) if not leads_somewhere(page, each)] == []


def test_pages_that_code_and_configuration_name_exist() -> None:
    named = {
        (file.name, name)
        for file in files(
            "*.py", "*.yml", "*.yaml", "*.sh", "*.toml", "*.sql", "Makefile", "Dockerfile", ".env.example"
        )
        for name in NAMED_PAGE.findall(file.read_text())
    }

    assert len(named) > 30
    assert [each for each in named if not leads_somewhere(ROOT / "pages", each[1])] == []
