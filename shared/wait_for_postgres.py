"""Waits without a limit until Postgres answers: `python -m shared.wait_for_postgres`, before a migration.

Any other problem, such as a wrong password, is left for the migration to report.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
from pydantic import Secret

from shared.database import connect
from shared.database_url import DatabaseUrl
from shared.errors import describe_error
from shared.settings import DatabaseSettings, load_settings

APPLICATION_NAME = "inkwell-wait-for-postgres"
EVERY_SECONDS = 1.0


def main(wait: Callable[[Secret[DatabaseUrl]], Coroutine[Any, Any, None]]) -> None:
    """Wait for the database of the settings; exits with 2 for a wrong setting."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which PID 1 ignores by default
    asyncio.run(wait(load_settings(DatabaseSettings).database_url))


async def wait(url: Secret[DatabaseUrl]) -> None:
    """Wait until Postgres has answered, if only by refusing the login."""
    while True:
        try:
            (await connect(url, APPLICATION_NAME)).terminate()
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError) as error:
            sys.stderr.write(f"waiting: Postgres does not answer: {describe_error(error)}\n")
        except asyncpg.PostgresError:
            return
        else:
            return
        await asyncio.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    main(wait)
