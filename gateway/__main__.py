"""Runs a gateway: `python -m gateway`."""

import asyncio
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from gateway.app import GatewayApp, create_app
from gateway.doctor import examine
from gateway.http.protocol import build_protocol
from gateway.resources import Gateway
from gateway.settings import GatewaySettings
from shared.connections import CONNECTION_ERRORS
from shared.database import EXIT_SCHEMA_BEHIND, SchemaBehindError, check_schema
from shared.errors import describe_error
from shared.listening import open_sockets
from shared.logs import configure_logging
from shared.metrics import serve_metrics
from shared.settings import load_settings
from shared.tracing import configure_tracing, shut_down_tracing

SCHEMA_CHECK_SECONDS = 2.0

log = structlog.get_logger()


def main() -> None:
    """Serve until SIGTERM or SIGINT; exits with 2 for a wrong setting and 3 for a schema known to be behind."""
    arguments = read_arguments(sys.argv[1:])
    settings = load_settings(GatewaySettings)
    configure_logging(settings, "inkwell-gateway")
    if arguments.subject == "doctor":
        sys.exit(asyncio.run(examine(settings, as_json=arguments.json)))
    serve_metrics(settings)
    configure_tracing("inkwell-gateway")
    if asyncio.run(is_schema_behind(settings)):
        sys.exit(EXIT_SCHEMA_BEHIND)
    sockets = open_sockets(settings.host, settings.port, "INKWELL_PORT")
    app = create_app(settings)
    GatewayServer(build_server_config(app, settings), app, settings.drain_delay_seconds).run(sockets)
    shut_down_tracing()


def build_server_config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    """Return uvicorn's configuration for the app."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=build_protocol(settings),
        ws="none",
        root_path=settings.prefix,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.drain_timeout_seconds),
    )


def read_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse the command line; `subject` is None to run a gateway. Exits with 2 for invalid arguments."""
    parser = ArgumentParser("python -m gateway", description="Without a subject: runs a gateway until SIGTERM.")
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", dest="subject")
    doctor = subjects.add_parser("doctor", help="check settings, Postgres and the broker, and suggest remedies")
    doctor.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser.parse_args(arguments)


class GatewayServer(uvicorn.Server):
    """Stops gracefully: reports not ready, answers waiting writes, refuses connections, finishes other requests."""

    def __init__(self, config: uvicorn.Config, app: GatewayApp, delay_seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._delay_seconds = delay_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, and keep the event loop for signals."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal; stop at once on a second one."""
        gateway = self._app.front.resources
        if self._loop is None or gateway is None or gateway.replies.draining:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._drain, gateway)

    def _drain(self, gateway: Gateway) -> None:
        log.info("draining: not ready, answering the waiting writes, ending the streams", seconds=self._delay_seconds)
        gateway.replies.drain()
        gateway.followers.drain()
        asyncio.get_running_loop().call_later(self._delay_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


async def is_schema_behind(settings: GatewaySettings) -> bool:
    """Whether the database is known to lack migrations; False if it does not answer in time."""
    try:
        async with asyncio.timeout(SCHEMA_CHECK_SECONDS):
            await check_schema(settings.database_url, "inkwell-gateway")
    except SchemaBehindError as error:
        log.error("the database's schema is behind", error=str(error))
        return True
    except CONNECTION_ERRORS as error:
        log.warning("Postgres does not answer yet; starting without it", error=describe_error(error))
    return False


if __name__ == "__main__":
    main()
