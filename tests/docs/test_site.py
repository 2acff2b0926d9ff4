"""The documentation site, as `make docs` builds it."""

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from dev.backend import ROOT
from dev.documentation import build, gather

if TYPE_CHECKING:
    from playwright.async_api import Page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="needs the dependency group docs: `make .venv/docs`")
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copy(ROOT / "zensical.toml", folder)
    assert build(folder) == 0
    return folder / "site"


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_readme_is_the_first_page_and_leads_to_the_others(site: Path) -> None:
    first = (site / "index.html").read_text()

    assert "async notes API" in first
    for link in ("guarantees/", "dead-letters/", "decisions/", "changelog/"):
        assert f'href="{link}' in first
        assert (site / link.partition("#")[0] / "index.html").is_file()


def test_search_finds_words_of_every_page(site: Path) -> None:
    found = json.dumps(json.loads((site / "search.json").read_text()))

    for page in (ROOT / "docs").rglob("*.md"):
        [title] = re.findall(r"\A# (.+)$", page.read_text(), re.MULTILINE)
        assert json.dumps(re.sub(r"[`*]", "", title))[1:-1].split(":")[0] in found


def test_no_page_loads_scripts_styles_or_fonts_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(?:https?:)?//[^>]*", page.read_text()) == []


def test_links_to_the_source_lead_to_the_repository_if_it_is_known(tmp_path: Path) -> None:
    gather(tmp_path, "https://code.example/inkwell")
    assert "(https://code.example/inkwell/blob/main/worker/fold.py)" in (tmp_path / "architecture.md").read_text()

    gather(tmp_path, None)
    assert "worker/fold.py)" not in (tmp_path / "architecture.md").read_text()


async def test_reference_shows_every_operation(url: str, page: "Page") -> None:
    document = json.loads((ROOT / "docs/openapi.json").read_text())
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))

    await page.goto(f"{url}/reference/")
    await page.locator("#operations-notes-listNotes").wait_for()

    operations = [method for path in document["paths"].values() for method in path if method != "parameters"]
    assert await page.locator("#swagger-ui .opblock").count() == len(operations)
    assert complaints == []
