"""Conditional requests through proxies that compress, and change the entity tags of what they have compressed."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.canaries import NOTE
from tests.harness import eventually
from tests.proxy import free_port

NGINX, APACHE = shutil.which("nginx"), shutil.which("apache2")
NGINX_CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/bodies; proxy_temp_path {folder}/proxied;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  gzip on; gzip_proxied any; gzip_types application/json; gzip_min_length 0;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {url}; proxy_set_header Host $http_host; }}
  }}
}}
"""
APACHE_CONFIGURATION = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
Listen 127.0.0.1:{port}
ErrorLog /dev/stderr
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule filter_module {modules}/mod_filter.so
LoadModule deflate_module {modules}/mod_deflate.so
LoadModule brotli_module {modules}/mod_brotli.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
ProxyPass / {url}/
AddOutputFilterByType {filter} application/json
"""
MODULES = "/usr/lib/apache2/modules"


@asynccontextmanager
async def proxy(command: list[str], url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a proxy that is run by this command and answers at the URL."""
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            await eventually(lambda: answers(client))
            yield client
    finally:
        process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/live")).is_success
    except httpx.TransportError:
        return False


async def change_on_condition(proxied: httpx.AsyncClient, coding: str, tags: tuple[str, str]) -> None:
    """Reads, changes and reads again with the tags that the proxy tells, which are those of versions 1 and 2."""
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
    port, configuration = free_port(), tmp_path / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(folder=tmp_path, port=port, url=client.base_url))

    async with proxy([str(NGINX), "-c", str(configuration)], f"http://127.0.0.1:{port}") as proxied:
        await change_on_condition(proxied, "gzip", ('W/"1"', 'W/"2"'))


@pytest.mark.skipif(not APACHE, reason="Apache is missing")
@pytest.mark.parametrize(("coding", "output_filter"), [("gzip", "DEFLATE"), ("br", "BROTLI_COMPRESS")])
async def test_note_that_apache_has_compressed_is_changed_on_condition(
    client: httpx.AsyncClient, tmp_path: Path, coding: str, output_filter: str
) -> None:
    port, configuration = free_port(), tmp_path / "apache.conf"
    placed = {"folder": tmp_path, "port": port, "url": str(client.base_url).rstrip("/"), "modules": MODULES}
    configuration.write_text(APACHE_CONFIGURATION.format(**placed, filter=output_filter))

    command = [str(APACHE), "-f", str(configuration), "-D", "FOREGROUND"]
    async with proxy(command, f"http://127.0.0.1:{port}") as proxied:
        await change_on_condition(proxied, coding, (f'"1-{coding}"', f'"2-{coding}"'))
