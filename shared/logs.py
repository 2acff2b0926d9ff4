"""Structured logs on stderr: constant events with fields, never user content."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from uuid import UUID

import structlog

from shared.settings import ServiceSettings
from shared.tracing.spans import find_trace_id

IDS: ContextVar[dict[str, str] | None] = ContextVar("inkwell.ids", default=None)
"""The ids for the log lines of this context; in one variable, since every request sets it."""


def configure_logging(settings: ServiceSettings, service: str) -> None:
    """Log the events of this process and its libraries to stderr, each on one line."""
    shared_processors: list[structlog.typing.Processor] = [
        merge_ids,
        partial(_add_service, service),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared_processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared_processors, structlog.stdlib.ExtraAdder(allow=[])],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_build_renderers(settings.log_format),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for library in ("aio_pika", "aiormq"):  # `shared.broker` logs the same errors once, without tracebacks
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if ignored := settings.database_url.get_secret_value().without_effect:
        structlog.get_logger().warning("parameters of INKWELL_DATABASE_URL without effect", parameters=ignored)


@contextmanager
def bind_command(command_id: UUID, traceparent: str | None) -> Iterator[None]:
    """Add the command's id, and the id of its trace if it is recorded, to the log lines of the block."""
    trace_id = find_trace_id(traceparent)
    before = IDS.set({"command_id": str(command_id)} | ({"trace_id": trace_id} if trace_id else {}))
    try:
        yield
    finally:
        IDS.reset(before)


def bind_ids(**ids: str) -> None:
    """Add ids to the log lines of this context."""
    if known := IDS.get():
        known |= ids


def merge_ids(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Return the event with the ids of this context."""
    event.update(IDS.get() or ())
    return event


def _add_service(
    service: str, _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Return the event with the service's name, which is not in the context, since threads have another."""
    event["service"] = service
    return event


def _build_renderers(log_format: str) -> list[structlog.typing.Processor]:
    if log_format == "auto":
        log_format = "console" if sys.stderr.isatty() else "json"
    if log_format == "console":
        return [structlog.dev.ConsoleRenderer()]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
