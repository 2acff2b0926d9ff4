"""Records and exports spans with OpenTelemetry's SDK; imported only if tracing is enabled."""

import logging
from collections.abc import Sequence
from contextvars import Token
from threading import Thread
from types import TracebackType
from typing import Self

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.tracing.spans import CURRENT, NO_OP, Attributes, Span

NO_CONTEXT = Context()

log = structlog.get_logger()


def build_recorder(service: str) -> "SdkRecorder":
    """Return a recorder that exports in batches from a thread, so that no request waits for it."""
    reasons = Reasons()
    logger = logging.getLogger("opentelemetry.exporter")
    logger.addHandler(reasons)
    logger.propagate = False
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)  # warns of each dropped span
    return SdkRecorder(BatchSpanProcessor(QuietExporter(OTLPSpanExporter(), reasons)), service)


class TraceIds(RandomIdGenerator):
    """Generates the ids of traces: the sampler decides by the id, before the first span starts."""

    next_id: int | None = None

    def generate_trace_id(self) -> int:
        """Return the id that the sampler has accepted, or a new one."""
        chosen = self.next_id
        self.next_id = None
        return super().generate_trace_id() if chosen is None else chosen


class SdkRecorder:
    """Starts the spans of sampled traces; the standard variables configure sampler and exporter."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._ids = TraceIds()
        resource = _build_resource(service)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("inkwell")
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self,
        name: str,
        kind: trace.SpanKind,
        parent: Span | str | None,
        attributes: Attributes | None,
        links: Sequence[Span] = (),
    ) -> Span:
        """Start a span in its parent's trace, or in a new one; returns a no-op span unless it is sampled."""
        if not parent and not self._samples_next(name):
            return NO_OP
        span = self._tracer.start_span(
            name,
            self._context(parent),
            kind,
            attributes,
            _build_links(links) if links else None,
        )
        return RecordedSpan(span) if span.is_recording() else NO_OP

    def _samples_next(self, name: str) -> bool:
        """Whether the next trace is sampled; asking the sampler costs a third of an unrecorded span."""
        self._ids.next_id = trace_id = super(TraceIds, self._ids).generate_trace_id()
        return self._provider.sampler.should_sample(NO_CONTEXT, trace_id, name).decision is Decision.RECORD_AND_SAMPLE

    def shut_down(self, timeout_seconds: float) -> None:
        """Export the last spans, for no longer than this."""
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(timeout_seconds)

    def _context(self, parent: Span | str | None) -> Context:
        if isinstance(parent, RecordedSpan):
            return trace.set_span_in_context(parent.span, NO_CONTEXT)
        return self._propagator.extract({"traceparent": parent}, NO_CONTEXT) if isinstance(parent, str) else NO_CONTEXT


class RecordedSpan(Span):
    """A span that is exported after its block."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self._before: Token[Span] | None = None
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def __enter__(self) -> Self:
        """Make it the current span."""
        self._before = CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the span; records only the class and SQLSTATE of an exception: its message may quote users' texts."""
        if error is not None:
            if sqlstate := getattr(error, "sqlstate", None):
                self.span.set_attribute("db.response.status_code", str(sqlstate))
            self.fail(type(error).__name__)
        self.span.end()
        if self._before:
            CURRENT.reset(self._before)

    def update(self, attributes: Attributes, name: str | None = None) -> None:
        """Add attributes, and change the name."""
        self.span.set_attributes(attributes)
        if name:
            self.span.update_name(name)

    def fail(self, error_type: str) -> None:
        """Give the span the status of an error."""
        self.span.set_attribute("error.type", error_type)
        self.span.set_status(trace.StatusCode.ERROR)


class Reasons(logging.Handler):
    """Keeps the last message of the exporter, which logs one at each attempt."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.last = record.getMessage()


class QuietExporter(SpanExporter):
    """Logs once that spans cannot be exported, and once that they can again."""

    def __init__(self, exporter: SpanExporter, reasons: Reasons) -> None:
        self._exporter = exporter
        self._reasons = reasons
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans, with the retries and timeouts of the standard variables."""
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            log.warning("traces cannot be exported and are lost; requests are not affected", reason=self._reasons.last)
        elif self._is_failing and not is_failing:
            log.info("traces are exported again")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        """Abandon the exports in progress."""
        self._exporter.shutdown()


def _build_links(spans: Sequence[Span]) -> list[trace.Link]:
    return [trace.Link(each.span.get_span_context()) for each in spans if isinstance(each, RecordedSpan)]


def _build_resource(service: str) -> Resource:
    """Return the resource of the standard variables, with this service name unless they set one."""
    resource = Resource.create()
    is_named = not str(resource.attributes[SERVICE_NAME]).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({SERVICE_NAME: service}))
