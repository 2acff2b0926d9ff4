"""Runs a worker (`python -m worker`), or a command for operators (`python -m worker SUBJECT …`)."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop

from shared.connections import Connections
from shared.database import EXIT_SCHEMA_BEHIND, SchemaBehindError
from shared.listening import open_sockets
from shared.logs import configure_logging
from shared.metrics import serve_metrics, watch_loop
from shared.settings import load_settings
from shared.tasks import end_tasks, start_in_background
from shared.tracing import configure_tracing, shut_down_tracing
from worker.command_line import read_arguments
from worker.consumer import Consumer
from worker.health import create_health_app
from worker.housekeeping import Housekeeping
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings

log = structlog.get_logger()


def main() -> None:
    """Consume until SIGTERM or SIGINT; exit with 2 for an invalid setting and 3 for a schema that is behind."""
    arguments = read_arguments(sys.argv[1:])
    settings = load_settings(WorkerSettings)
    configure_logging(settings, "inkwell-worker")
    if arguments.run:
        sys.exit(uvloop.run(arguments.run(arguments, settings)))
    serve_metrics(settings)
    configure_tracing("inkwell-worker")
    sockets = open_sockets(settings.worker_health_host, settings.worker_health_port, "INKWELL_WORKER_HEALTH_PORT")
    exit_code = uvloop.run(run(settings, sockets))
    shut_down_tracing()
    sys.exit(exit_code)


async def run(settings: WorkerSettings, health_sockets: list[socket.socket]) -> int:
    """Run the worker until it stops; return the exit code."""
    connections = Connections(settings.database_url, "inkwell-worker", 1, SESSION_SETTINGS)
    consumer = Consumer(settings, connections)
    background = start_in_background(
        housekeeping=Housekeeping(settings).run(),
        probes=serve_health(consumer, health_sockets),
        metrics=watch_loop(consumer.update_metrics),
        primary=connections.watch_primary(),
    )
    housekeeping = background[0]
    consuming = asyncio.create_task(consumer.run())
    stopping = stop_on_signals(consumer, housekeeping, consuming, settings.drain_timeout_seconds)
    try:
        await consuming
    except SchemaBehindError as error:
        log.error("the database's schema is behind", error=str(error))
        return EXIT_SCHEMA_BEHIND
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
        log.warning("drain timeout: what is not committed will be delivered again")
    finally:
        await end_tasks(background)
        connections.close()
    log.info("stopped")
    return 0


def stop_on_signals(
    consumer: Consumer, housekeeping: asyncio.Task[None], consuming: asyncio.Task[None], drain_timeout_seconds: float
) -> asyncio.Event:
    """Stop on SIGTERM or SIGINT after the current batch; after the timeout, cancel it: it will be delivered again.

    The first of these signals sets the returned event.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        log.info("stopping after the current batch")
        stopping.set()
        housekeeping.cancel()
        consumer.stop()
        loop.call_later(drain_timeout_seconds, consuming.cancel)

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop)
    return stopping


class HealthServer(uvicorn.Server):
    """A server that leaves signals to the worker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


async def serve_health(consumer: Consumer, sockets: list[socket.socket]) -> None:
    """Serve the probes until cancelled."""
    config = uvicorn.Config(create_health_app(consumer), log_config=None, access_log=False, lifespan="off")
    await HealthServer(config).serve(sockets)


if __name__ == "__main__":
    main()
