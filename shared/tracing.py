"""Traces, made only where OpenTelemetry's variables ask for them and the request at hand is sampled.

Everywhere else a step costs a look at a context variable. No step tells what users wrote, a secret, a path that may
hold a signed URL, or the value of an SQL parameter, and none has a name that a client can invent.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from enum import Enum, auto
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from shared.settings import refuse

if TYPE_CHECKING:
    from shared.otlp import Recorder

SHUTDOWN_SECONDS = 2.0
"""How long the end of a process may wait for its last spans to be taken."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SAMPLED = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[13]")
"""A `traceparent` (W3C) of a trace that is recorded; its trace's id."""
Attributes = Mapping[str, str | int]

log = structlog.get_logger()


class Kind(Enum):
    """What a span is of, in OpenTelemetry's words."""

    INTERNAL = auto()
    SERVER = auto()
    CLIENT = auto()
    PRODUCER = auto()
    CONSUMER = auto()


class Step:
    """A part of the work, current during its block; as it is here, one that nobody records."""

    traceparent: str | None = None
    """What tells others, in W3C's form, to go on with the trace."""

    def __enter__(self) -> Self:
        """Makes it the current step."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends it; one that ends in an exception has failed."""

    def describe(self, attributes: Attributes, name: str | None = None) -> None:
        """Adds what has been found out."""

    def fail(self, error_type: str) -> None:
        """Marks it as failed."""


UNRECORDED = Step()
CURRENT: ContextVar[Step] = ContextVar("inkwell.step", default=UNRECORDED)


class Tracing:
    """What this process records its steps with: nothing, until it is told otherwise."""

    recorder: "Recorder | None" = None


def configure_tracing(service: str) -> None:
    """Has the steps of this process recorded and exported, if the environment says where to.

    Exits with 2 where it asks for what there is not.
    """
    if not is_wanted(os.environ):
        return
    try:
        from shared.otlp import exporting  # noqa: PLC0415 - costs time and memory, and is an extra
    except ImportError as error:
        refuse(f"{ENDPOINTS[1]}: traces need Inkwell's extra `traces` ({error})")
    Tracing.recorder = exporting(service)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces; exits with 2 where it is a kind that there is not."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = any(environment.get(name) for name in ENDPOINTS)
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        refuse("OTEL_TRACES_EXPORTER: Should be `otlp` or `none`")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if (has_endpoint or exporter) and protocol != "http/protobuf":
        refuse("OTEL_EXPORTER_OTLP_PROTOCOL: Should be `http/protobuf`")
    return has_endpoint or exporter == "otlp"


def shut_down_tracing() -> None:
    """Has the last spans exported; what is not taken in SHUTDOWN_SECONDS is lost."""
    if Tracing.recorder:
        Tracing.recorder.shut_down(SHUTDOWN_SECONDS)


def start(name: str, kind: Kind, traceparent: str | None = None, attributes: Attributes | None = None) -> Step:
    """A first step of this process, in the trace of whoever asks for it or in a new one, if it is sampled."""
    return Tracing.recorder.start(name, kind, traceparent, attributes) if Tracing.recorder else UNRECORDED


def step(name: str, attributes: Attributes, kind: Kind = Kind.INTERNAL, links: Sequence[Step] = ()) -> Step:
    """A step within the current one; its name and attributes belong to the code, not to what is worked on."""
    parent = CURRENT.get()
    if parent is UNRECORDED or Tracing.recorder is None:
        return UNRECORDED
    return Tracing.recorder.start(name, kind, parent, attributes, links)


def is_recorded() -> bool:
    """Whether the current step is recorded, so that it pays to describe one within it."""
    return CURRENT.get() is not UNRECORDED


def trace_id_of(traceparent: str | None) -> str | None:
    """The id of the trace, if it is recorded."""
    found = SAMPLED.fullmatch(traceparent or "")
    return found[1] if found else None
