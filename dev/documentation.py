"""Builds the documentation site in the folder `site`; a warning fails the build: `make docs`."""

import os
import re
import shutil
import subprocess
import sys
from os.path import relpath
from pathlib import Path

import fastapi_offline

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ".site/pages"
"""The folder for the pages, as in zensical.toml."""
OUTSIDE_DOCS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"
REFERENCE = """
<link rel="stylesheet" href="swagger-ui.css">
<script src="swagger-ui-bundle.js"></script>
<script>
  SwaggerUIBundle({ url: "../openapi.json", dom_id: "#swagger-ui", supportedSubmitMethods: [], validatorUrl: null });
</script>
"""
CODE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^][]*\])*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def gather(pages: Path, repository: str | None) -> None:
    """Copy the pages and their images; links out of the site become links to the repository, or plain text."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("*.md"))
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        shutil.copy(SWAGGER_UI / name, pages)
    sources = [*DOCS.rglob("*.md"), *(ROOT / name for name in OUTSIDE_DOCS)]
    places = {source: _place(source) for source in sources}
    for source, place in places.items():
        target = pages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _with_links(source, places, repository)
        target.write_text(text + REFERENCE if place == "reference.md" else text)


def _place(source: Path) -> str:
    """The path of a page in the site."""
    if source.parent == ROOT:
        return OUTSIDE_DOCS[source.name]
    return source.relative_to(DOCS).as_posix().replace("README.md", "index.md")


def _with_links(source: Path, places: dict[Path, str], repository: str | None) -> str:
    """The page's text with the links of the site."""
    folder = Path(places[source]).parent

    def link(found: re.Match[str]) -> str:
        text, name, anchor = found[1], found[2], found[3] or ""
        target = (source.parent / name).resolve()
        if target in places:
            return f"[{text}]({relpath(places[target], folder)}{anchor})"
        if DOCS in target.parents or not target.exists():
            return found[0]
        return f"[{text}]({repository}/blob/main/{target.relative_to(ROOT)})" if repository else text

    return "".join(
        part if part.lstrip().startswith("```") else LINK.sub(link, part) for part in CODE.split(source.read_text())
    )


def build(folder: Path = ROOT) -> int:
    """Build the site of the folder's zensical.toml; returns the builder's exit code."""
    gather(folder / PAGES, os.environ.get("REPOSITORY_URL"))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(build())
