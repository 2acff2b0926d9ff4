"""Conditional requests through proxies that compress responses and then change their entity tags."""

from pathlib import Path

import httpx
import pytest

from tests.support.canaries import NOTE
from tests.support.web_proxies import APACHE, NGINX, apache, nginx

GZIP = "gzip on; gzip_proxied any; gzip_types application/json; gzip_min_length 0;"
PROXY = "location / { proxy_pass http://gateway; proxy_set_header Host $host; }"


async def change_on_condition(proxied: httpx.AsyncClient, coding: str, tags: tuple[str, str]) -> None:
    """Reads, changes and reads again with the proxy's tags, which stand for versions 1 and 2."""
    path = (await proxied.post("/notes", json=NOTE)).headers["location"]
    read = await proxied.get(path, headers={"Accept-Encoding": coding})
    assert (read.headers["content-encoding"], read.headers["etag"]) == (coding, tags[0])

    conditional = {"Accept-Encoding": coding, "If-Match": read.headers["etag"]}
    changed = await proxied.put(path, json=NOTE | {"title": "Pen"}, headers=conditional)
    again = await proxied.put(path, json=NOTE | {"title": "Pencil"}, headers=conditional)
    read = await proxied.get(path, headers={"Accept-Encoding": coding, "If-None-Match": tags[1]})

    assert (changed.status_code, changed.headers["etag"], again.status_code) == (200, tags[1], 412)
    assert read.status_code == 304


@pytest.mark.skipif(not NGINX, reason="nginx is missing")
async def test_note_that_nginx_has_compressed_is_changed_on_condition(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with nginx(client, GZIP + PROXY, tmp_path) as proxied:
        await change_on_condition(proxied, "gzip", ('W/"1"', 'W/"2"'))


@pytest.mark.skipif(not APACHE, reason="Apache is missing")
@pytest.mark.parametrize(("coding", "output_filter"), [("gzip", "DEFLATE"), ("br", "BROTLI_COMPRESS")])
async def test_note_that_apache_has_compressed_is_changed_on_condition(
    client: httpx.AsyncClient, tmp_path: Path, coding: str, output_filter: str
) -> None:
    async with apache(client, f"AddOutputFilterByType {output_filter} application/json", tmp_path) as proxied:
        await change_on_condition(proxied, coding, (f'"1-{coding}"', f'"2-{coding}"'))
