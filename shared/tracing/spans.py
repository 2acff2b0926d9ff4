"""Spans, recorded only if OpenTelemetry's variables enable tracing and the trace is sampled.

Otherwise a span costs one read of a context variable. Spans contain no user content, no secrets, no paths (one may be a
signed URL) and no values of SQL parameters, and clients cannot choose their names.
"""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

from opentelemetry.trace import SpanKind

_SAMPLED = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[13]")
"""The `traceparent` (W3C) of a trace that is recorded."""
Attributes = Mapping[str, str | int]


class Span:
    """A no-op span, and the interface of recorded ones; a recorded span is current during its block."""

    traceparent: str | None = None
    """The W3C `traceparent` with which another process continues the trace."""

    def __enter__(self) -> Self:
        """Make it the current span."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it; an exception marks it as failed."""

    def update(self, attributes: Attributes, name: str | None = None) -> None:
        """Add attributes, and change the name."""

    def fail(self, error_type: str) -> None:
        """Mark it as failed."""


NO_OP = Span()
CURRENT: ContextVar[Span] = ContextVar("inkwell.span", default=NO_OP)


class Recorder(Protocol):
    """Starts the spans of sampled traces."""

    def start(
        self,
        name: str,
        kind: SpanKind,
        parent: Span | str | None,
        attributes: Attributes | None,
        links: Sequence[Span] = (),
    ) -> Span:
        """Start a span in its parent's trace, or in a new one; returns a no-op span unless it is sampled."""

    def shut_down(self, timeout_seconds: float) -> None:
        """Export the last spans, for no longer than this."""


class Tracing:
    """Holds the process's recorder."""

    recorder: Recorder | None = None
    """None unless tracing is enabled."""


def start_root_span(
    name: str, kind: SpanKind, traceparent: str | None = None, attributes: Attributes | None = None
) -> Span:
    """Start the first span of this process, in the caller's trace or in a new one."""
    return Tracing.recorder.start(name, kind, traceparent, attributes) if Tracing.recorder else NO_OP


def start_span(
    name: str, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL, links: Sequence[Span] = ()
) -> Span:
    """Start a child of the current span; its name and attributes must not come from a client."""
    parent = CURRENT.get()
    if parent is NO_OP or Tracing.recorder is None:
        return NO_OP
    return Tracing.recorder.start(name, kind, parent, attributes, links)


def is_recording() -> bool:
    """Whether the current span is recorded, so that it is worth building attributes for a child."""
    return CURRENT.get() is not NO_OP


def find_trace_id(traceparent: str | None) -> str | None:
    """Return the id of the trace if it is recorded."""
    sampled = _SAMPLED.fullmatch(traceparent or "")
    return sampled[1] if sampled else None
