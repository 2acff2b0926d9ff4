"""What each test has for itself on the shared servers: a database, a prefix for its queues, and their settings."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
from asyncpg import Connection, Record
from sqlalchemy import make_url

from dev.backend import ROOT, Services
from gateway.settings import GatewaySettings
from shared.topology import Topology
from tests.support import harness
from worker.settings import WorkerSettings

PARTITIONS = 2
SIGNING_IN = {
    "auth": "password",
    "login_limit": "1000/second",
    "login_address_limit": "1000/second",
    "registration_limit": "1000/second",
}


def with_database(url: str, name: str, role: str | None = None) -> str:
    parsed = make_url(url).set(database=name)
    if role:
        parsed = parsed.set(username=role, password=role)
    return parsed.render_as_string(hide_password=False)


def alembic(database_url: str, *arguments: str) -> str:
    """Runs Alembic as an operator does; returns its output."""
    environment = {**os.environ, "INKWELL_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout


async def create_template(servers: Services, admin: "Connection[Record]", name: str) -> None:
    """Creates a migrated database, of which `create_database` makes copies."""
    await admin.execute(f"create database {name}")
    await harness.create_roles(with_database(servers.database_url, name))
    alembic(with_database(servers.database_url, name, "inkwell_migrator"), "upgrade", "head")


async def create_database(admin: "Connection[Record]", name: str, template: str) -> None:
    """Creates a copy of a template."""
    await admin.execute(f"create database {name} template {template} owner inkwell_migrator")
    # The template has everything except the rights on the database itself.
    await admin.execute(
        "update pg_database set datacl = original.datacl from pg_database original"
        " where pg_database.datname = $1 and original.datname = $2",
        name,
        template,
    )


@asynccontextmanager
async def fresh_database(servers: Services, template: str) -> AsyncIterator[str]:
    """Yields the URL of a new database, for an administrator; drops the database after the block."""
    name = f"inkwell_test_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    await create_database(admin, name, template)
    yield with_database(servers.database_url, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@asynccontextmanager
async def fresh_prefix(servers: Services) -> AsyncIterator[str]:
    """A prefix for queues, which are deleted after the block."""
    prefix = f"test-{uuid4().hex[:12]}"
    yield prefix
    await harness.delete(servers, Topology(prefix, PARTITIONS))


def settings_of_gateway(servers: Services, database_url: str, queue_prefix: str, **changes: object) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {
            "database_url": with_database(database_url, make_url(database_url).database or "", "inkwell_gateway"),
            "broker_url": servers.broker_url_of("gateway"),
            "queue_prefix": queue_prefix,
            "partitions": PARTITIONS,
            "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
            "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
            "auth": "none",
        }
        | changes
    )


def settings_of_worker(servers: Services, database_url: str, queue_prefix: str) -> WorkerSettings:
    return WorkerSettings.model_validate(
        {
            "database_url": with_database(database_url, make_url(database_url).database or "", "inkwell_worker"),
            "broker_url": servers.broker_url_of("worker"),
            "queue_prefix": queue_prefix,
            "partitions": PARTITIONS,
        }
    )
