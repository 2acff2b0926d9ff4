"""Runs a gateway: `python -m gateway`."""

import asyncio
import signal
import sys

import structlog
import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from gateway.app import create_app
from gateway.settings import GatewaySettings
from shared.database import EXIT_SCHEMA_BEHIND, SchemaBehindError, check_schema, create_engine
from shared.settings import load_settings
from shared.telemetry import configure_logging

SCHEMA_CHECK_SECONDS = 2.0

log = structlog.get_logger()


def main() -> None:
    """Serves until SIGTERM or SIGINT; exits with 2 for a wrong setting and 3 for a schema known to be behind."""
    settings = load_settings(GatewaySettings)
    configure_logging(settings, "inkwell-gateway")
    if asyncio.run(schema_is_behind(settings)):
        sys.exit(EXIT_SCHEMA_BEHIND)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout_seconds),
    )
    # uvicorn raises the signal again when it has stopped; a graceful stop is to exit with 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    uvicorn.Server(config).run()


async def schema_is_behind(settings: GatewaySettings) -> bool:
    """Whether the database is known to lack migrations; one that does not answer is not waited for."""
    engine = create_engine(settings.database_url, "inkwell-gateway", connections=1)
    try:
        async with asyncio.timeout(SCHEMA_CHECK_SECONDS), engine.connect() as connection:
            await check_schema(connection)
    except SchemaBehindError as error:
        log.error("the database's schema is behind", error=str(error))
        return True
    except (SQLAlchemyError, OSError) as error:
        log.warning("Postgres does not answer yet; starting without it", error=type(error).__name__)
    finally:
        await engine.dispose()
    return False


if __name__ == "__main__":
    main()
