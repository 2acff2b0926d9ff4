"""Behind reverse proxies: nginx with its defaults, and under a path prefix."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.web_proxies import NGINX, nginx
from worker.settings import WorkerSettings

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")
DEFAULTS = "location / { proxy_pass http://gateway; proxy_set_header Host $host; }"
KEPT_ALIVE = DEFAULTS.replace("}", 'proxy_http_version 1.1; proxy_set_header Connection ""; }')
REMOVED = "location /inkwell/ { proxy_pass http://gateway/; }"
LEFT = "location /inkwell/ { proxy_pass http://gateway; }"


@pytest.mark.parametrize("server", [DEFAULTS, KEPT_ALIVE], ids=["1.0", "1.1"])
async def test_nginx_proxies_every_write(shared_client: httpx.AsyncClient, tmp_path: Path, server: str) -> None:
    async with nginx(shared_client, server, tmp_path) as client:
        written = await client.post("/notes", json=NOTE)
        pieces = await client.post("/notes", content=chunks(), headers={"Content-Type": "application/json"})
        read = await client.get(written.headers["location"])

    assert (written.status_code, pieces.status_code, read.json()) == (201, 201, written.json())


async def chunks() -> AsyncIterator[bytes]:
    """A note whose length is not known in advance."""
    for part in (b'{"title": "Ink", ', b'"description": ""}'):
        yield part


async def test_connection_that_nginx_keeps_is_not_closed_under_a_write(
    shared_client: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with nginx(shared_client, KEPT_ALIVE, tmp_path) as client:
        await client.post("/notes", json=NOTE)
        await asyncio.sleep(6)  # uvicorn's own limit is 5 s

        assert (await client.post("/notes", json=NOTE)).status_code == 201


@pytest.mark.parametrize("server", [REMOVED, LEFT], ids=["removed", "left"])
async def test_every_url_has_the_prefix_of_the_proxy(
    password_settings: GatewaySettings, worker_settings: WorkerSettings, tmp_path: Path, server: str
) -> None:
    settings = GatewaySettings.model_validate(password_settings.model_dump() | {"root_path": "/inkwell"})
    async with (
        harness.worker(worker_settings),
        harness.gateway(settings) as gateway,
        nginx(gateway, server, tmp_path) as client,
    ):
        client.headers.update((await sign_up(gateway, "ada")).headers)
        written = [
            await client.post("/inkwell/users", json={"name": "bea", "password": PASSWORD}),
            await client.post("/inkwell/notes/", json=NOTE),
            await client.post("/inkwell/auth/tokens", json={"name": "script", "scopes": ["notes:read"]}),
            await client.post("/inkwell/notes", json=NOTE, headers={"Prefer": "respond-async"}),
        ]
        urls = [each.headers["location"] for each in written]
        state = await harness.decided(client, urls[-1])
        page = await client.get("/inkwell/notes?limit=1")
        urls += [state["answer"]["headers"]["Location"], *(link["url"] for link in page.links.values())]

        for url in urls:
            assert url.startswith("/inkwell/")
            assert (await client.get(url)).status_code == 200


@pytest.mark.parametrize("server", [REMOVED, LEFT], ids=["removed", "left"])
async def test_documentation_has_the_prefix_of_the_proxy(tmp_path: Path, server: str) -> None:
    settings = harness.settings_without_servers(auth="password", root_path="/inkwell")
    async with harness.gateway(settings) as gateway, nginx(gateway, server, tmp_path) as client:
        page = await client.get("/inkwell/docs")
        script = page.text.partition('<script src="')[2].partition('"')[0]
        document = (await client.get("/inkwell/openapi.json")).json()
        loaded = await client.get(script)

    assert (page.status_code, loaded.status_code) == (200, 200)
    assert "/inkwell/openapi.json" in page.text
    assert document["servers"] == [{"url": "/inkwell"}]
    assert (
        document["components"]["securitySchemes"]["password"]["flows"]["password"]["tokenUrl"] == "/inkwell/auth/token"
    )


async def test_probes_and_batches_are_what_they_are_without_the_prefix(gateway_settings: GatewaySettings) -> None:
    settings = gateway_settings.model_copy(update={"root_path": "/inkwell"})
    large = b'{"items": [' + b" " * 100_000 + b"]}"
    async with harness.gateway(settings) as client:
        for prefix in ("", "/inkwell"):
            assert (await client.get(f"{prefix}/health/live")).status_code == 200
            written = await client.post(
                f"{prefix}/notes/batch", content=large, headers={"Content-Type": "application/json"}
            )
            assert written.status_code == 422
            assert (await client.get(f"{prefix}/notes/batch")).headers["allow"] == "POST"
        for path in ("/inkwell/inkwell/notes", "/inkwellnotes", "/inkwell"):
            assert (await client.get(path)).status_code == 404
