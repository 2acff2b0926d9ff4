"""The API's documentation for people: Swagger UI at /docs, from files of this host alone."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

PACKAGE = "fastapi-offline"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The files' URLs name their version."""


def install_docs(app: FastAPI, root_path: str) -> None:
    """Serves /docs and its files; the page loads them from below `root_path`."""
    folder = f"/docs/{metadata.version(PACKAGE)}"
    files_url = root_path + folder
    page = get_swagger_ui_html(
        openapi_url=root_path + (app.openapi_url or ""),
        title=app.title,
        swagger_js_url=f"{files_url}/{SCRIPT}",
        swagger_css_url=f"{files_url}/{STYLE}",
        swagger_favicon_url=f"{files_url}/{ICON}",
    )
    page.headers["Content-Security-Policy"] = policy_of(page)
    files = Path(str(resources.files(PACKAGE.replace("-", "_")))) / "static"

    async def show_page(_: Request) -> Response:
        return page

    async def send_file(request: Request) -> Response:
        return FileResponse(files / Path(request.url.path).name, headers=FOR_EVER)

    app.add_route("/docs", show_page, include_in_schema=False)
    for name in (SCRIPT, STYLE, ICON):
        app.add_route(f"{folder}/{name}", send_file, include_in_schema=False)


def policy_of(page: HTMLResponse) -> str:
    """What the page may load: files of its origin, and of scripts in the page this one alone."""
    [script] = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    return POLICY.format(digest=b64encode(sha256(script).digest()).decode())
