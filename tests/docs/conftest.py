"""A real browser, without access to anything but the test's own server, and what runs on Node.js."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

NODE = Path(__file__).parent / "node"
NO_REGISTRY = re.compile("EAI_AGAIN|ENOTFOUND|ENETUNREACH|ECONNREFUSED|ETIMEDOUT")


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs of tests/docs/node, and the packages that they need, in their locked versions."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm and Node.js: apt-get install npm")
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(NODE, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    if NO_REGISTRY.search(installed.stderr):
        pytest.skip("needs npm's registry, which does not answer")
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture
async def page() -> "AsyncIterator[Page]":
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.async_api", reason="needs the dependency group browser: `make .venv/browser`"
    )
    async with playwright.async_playwright() as engine:
        browser = await engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield await browser.new_page()
        await browser.close()
