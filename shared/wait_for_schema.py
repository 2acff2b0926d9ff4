"""Waits until the database has the schema of this version: `python -m shared.wait_for_schema`, before a service starts.

Waits as long as the schema is known to be behind, but only briefly if Postgres does not answer: the services start
without it, so that gateways can accept writes.
"""

import asyncio
import sys

import asyncpg
from pydantic import Secret

from shared.database import SchemaBehindError, check_schema
from shared.database_url import DatabaseUrl
from shared.errors import describe_error
from shared.wait_for_postgres import EVERY_SECONDS, main

APPLICATION_NAME = "inkwell-wait-for-schema"
SILENCE_LIMIT_SECONDS = 10.0
"""How long to wait for a Postgres that does not answer."""


async def wait(url: Secret[DatabaseUrl]) -> None:
    """Wait until the schema is current, or Postgres has not answered for SILENCE_LIMIT_SECONDS."""
    loop = asyncio.get_running_loop()
    last_reply = loop.time()
    while loop.time() - last_reply < SILENCE_LIMIT_SECONDS:
        try:
            await check_schema(url, APPLICATION_NAME)
        except SchemaBehindError as error:
            last_reply = loop.time()
            sys.stderr.write(f"waiting: {error}\n")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            sys.stderr.write(f"waiting: Postgres does not answer: {describe_error(error)}\n")
        else:
            return
        await asyncio.sleep(EVERY_SECONDS)
    sys.stderr.write("Postgres does not answer; the service starts without it\n")


if __name__ == "__main__":
    main(wait)
