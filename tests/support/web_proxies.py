"""nginx and Apache as reverse proxies in front of a gateway, in common configurations."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.support.harness import eventually
from tests.support.proxy import free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
APACHE = shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")
APACHE_MODULES = "/usr/lib/apache2/modules"
NGINX_CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream gateway {{ server {gateway}; keepalive 8; }}
  server {{ listen 127.0.0.1:{port}; {server} }}
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
ProxyPass / http://{gateway}/
{server}
"""


@asynccontextmanager
async def nginx(gateway: httpx.AsyncClient, server: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway behind an nginx with these lines in its server block."""
    port, configuration = free_port(), folder / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(gateway=address_of(gateway), port=port, server=server))
    async with proxied([str(NGINX), "-p", str(folder), "-c", str(configuration)], port) as client:
        yield client


@asynccontextmanager
async def apache(gateway: httpx.AsyncClient, server: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway behind an Apache with these lines in its configuration."""
    port, configuration = free_port(), folder / "apache.conf"
    placed = {"gateway": address_of(gateway), "port": port, "server": server}
    configuration.write_text(APACHE_CONFIGURATION.format(folder=folder, modules=APACHE_MODULES, **placed))
    async with proxied([str(APACHE), "-f", str(configuration), "-D", "FOREGROUND"], port) as client:
        yield client


def address_of(gateway: httpx.AsyncClient) -> str:
    return f"{gateway.base_url.host}:{gateway.base_url.port}"


@asynccontextmanager
async def proxied(command: list[str], port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the proxy that the command starts."""
    running = await asyncio.create_subprocess_exec(*command)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await eventually(lambda: is_listening(client))
            yield client
    finally:
        running.terminate()
        await running.wait()


async def is_listening(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/live")).status_code > 0
    except httpx.TransportError:
        return False
