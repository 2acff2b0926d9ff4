"""The API's documentation: Swagger UI at /docs, which loads no files from other hosts."""

import asyncio
import json
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from gateway.http.operations import PUBLIC, Operations
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.resources import Gateway

PACKAGE = "fastapi-offline"
SCRIPT = "swagger-ui-bundle.js"
STYLE = "swagger-ui.css"
ICON = "favicon.png"
FILES = {SCRIPT: "text/javascript; charset=utf-8", STYLE: "text/css; charset=utf-8", ICON: "image/png"}
"""Media types by file."""
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The files' URLs contain their version."""


def build_docs_operations(app: FastAPI, root_path: str) -> Operations[Gateway]:
    """Return the operations that serve /openapi.json, and /docs with its files below `root_path`."""
    operations: Operations[Gateway] = Operations("docs")
    folder = f"/docs/{metadata.version(PACKAGE)}"
    files_url = root_path + folder
    page = get_swagger_ui_html(
        openapi_url=f"{root_path}/openapi.json",
        title=app.title,
        swagger_js_url=f"{files_url}/{SCRIPT}",
        swagger_css_url=f"{files_url}/{STYLE}",
        swagger_favicon_url=f"{files_url}/{ICON}",
    )
    policy = {"Content-Security-Policy": build_policy(page)}
    print_document = cache(lambda: json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode())
    files = Path(str(resources.files(PACKAGE.replace("-", "_")))) / "static"
    read_file = cache(lambda name: (files / name).read_bytes())

    @operations.add("GET", "/openapi.json", requires=PUBLIC, ignores_query=True)
    async def get_document(_: Gateway, __: Request) -> Response:
        return Response(print_document())

    @operations.add("GET", "/docs", requires=PUBLIC, ignores_query=True)
    async def show_page(_: Gateway, __: Request) -> Response:
        return Response(bytes(page.body), headers=policy, media_type="text/html; charset=utf-8")

    async def send_file(_: Gateway, request: Request) -> Response:
        name = Path(request.path).name
        return Response(await asyncio.to_thread(read_file, name), headers=IMMUTABLE, media_type=FILES[name])

    for name in FILES:
        operations.add("GET", f"{folder}/{name}", requires=PUBLIC, ignores_query=True)(send_file)
    return operations


def build_policy(page: HTMLResponse) -> str:
    """Return the page's Content-Security-Policy, which allows files of its origin, and its inline script by hash."""
    [script] = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    return POLICY.format(digest=b64encode(sha256(script).digest()).decode())
