"""PgBouncer in front of Postgres in its default configuration, except for addresses and users."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url

from tests.support.harness import eventually
from tests.support.proxy import free_port

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
USERS = ("inkwell_gateway", "inkwell_worker", "inkwell_migrator")
CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir = {folder}
auth_type = scram-sha-256
auth_file = {folder}/users.txt
{settings}
"""


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    port: int
    folder: Path
    """The folder of its socket."""

    def url(self, url: object, role: str) -> URL:
        """The URL of the same database through the pooler, for a role whose password is its name."""
        return make_url(str(url)).set(host="127.0.0.1", port=self.port, username=role, password=role)


@asynccontextmanager
async def pgbouncer(server: str, settings: Mapping[str, str], **files: str) -> AsyncIterator[Pooler]:
    """A pooler in front of the server of this URL, with these settings and files in its folder."""
    port = free_port()
    with TemporaryDirectory(prefix="pgbouncer-") as name:
        command = _prepare(Path(name), make_url(server), port, settings, files)
        running = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        try:
            await eventually(lambda: _is_listening(port))
            yield Pooler(port, Path(name))
        finally:
            running.terminate()
            await running.communicate()


def _prepare(folder: Path, server: URL, port: int, settings: Mapping[str, str], files: Mapping[str, str]) -> list[str]:
    """Writes the files; returns the command that starts it, as a user other than root."""
    own = "\n".join(f"{name} = {value.format(folder=folder)}" for name, value in settings.items())
    configuration = CONFIGURATION.format(host=server.host, port=server.port, own_port=port, folder=folder, settings=own)
    users = "\n".join(f'"{user}" "{user}"' for user in USERS)
    for name, content in {"pgbouncer.ini": configuration, "users.txt": users, **files}.items():
        (folder / name).write_text(content)
    command = [str(PGBOUNCER), str(folder / "pgbouncer.ini")]
    if os.geteuid() != 0:
        return command
    shutil.chown(folder, "nobody")
    return [*command, "-u", "nobody"]


async def _is_listening(port: int) -> bool:
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False
