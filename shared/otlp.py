"""OpenTelemetry's SDK, which records the steps and exports them; imported only where traces are wanted."""

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

from shared.tracing import CURRENT, UNRECORDED, Attributes, Kind, Step

NOWHERE = Context()
KINDS = {kind: trace.SpanKind[kind.name] for kind in Kind}

log = structlog.get_logger()


def exporting(service: str) -> "Recorder":
    """A recorder that exports in batches, from a thread; nobody waits for it."""
    reasons = Reasons()
    logger = logging.getLogger("opentelemetry.exporter")
    logger.addHandler(reasons)
    logger.propagate = False
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)  # each span that is dropped
    return Recorder(BatchSpanProcessor(ToldOnce(OTLPSpanExporter(), reasons)), service)


class TraceIds(RandomIdGenerator):
    """Draws the ids of traces, each of which the sampler has seen before there is a span."""

    next_id: int | None = None

    def generate_trace_id(self) -> int:
        """The id that the sampler picked, or a new one."""
        drawn, self.next_id = self.next_id, None
        return super().generate_trace_id() if drawn is None else drawn


class Recorder:
    """Makes spans of what the sampler picks; the standard variables say which, and where they go."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._ids = TraceIds()
        self._provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("inkwell")
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self,
        name: str,
        kind: Kind,
        parent: Step | str | None,
        attributes: Attributes | None,
        links: Sequence[Step] = (),
    ) -> Step:
        """A step that continues the trace, or begins one where there is none; unrecorded if it is not sampled."""
        if not parent and not self._begins(name):
            return UNRECORDED
        span = self._tracer.start_span(
            name,
            self._context(parent),
            KINDS[kind],
            attributes,
            _links(links) if links else None,
        )
        return RecordedStep(span) if span.is_recording() else UNRECORDED

    def _begins(self, name: str) -> bool:
        """Whether the sampler picks the next trace: to ask it alone costs a third of a span that is not recorded."""
        self._ids.next_id = trace_id = super(TraceIds, self._ids).generate_trace_id()
        return self._provider.sampler.should_sample(NOWHERE, trace_id, name).decision is Decision.RECORD_AND_SAMPLE

    def shut_down(self, timeout_seconds: float) -> None:
        """Exports what is left, but not for longer than this."""
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(timeout_seconds)

    def _context(self, parent: Step | str | None) -> Context:
        if isinstance(parent, RecordedStep):
            return trace.set_span_in_context(parent.span, NOWHERE)
        return self._propagator.extract({"traceparent": parent}, NOWHERE) if isinstance(parent, str) else NOWHERE


class RecordedStep(Step):
    """A step with a span, which ends with the block."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self._before: Token[Step] | None = None
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def __enter__(self) -> Self:
        """Makes it the current step."""
        self._before = CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the span; keeps an exception's class and SQLSTATE, since its message may repeat what users wrote."""
        if error is not None:
            if sqlstate := getattr(error, "sqlstate", None):
                self.span.set_attribute("db.response.status_code", str(sqlstate))
            self.fail(type(error).__name__)
        self.span.end()
        if self._before:
            CURRENT.reset(self._before)

    def describe(self, attributes: Attributes, name: str | None = None) -> None:
        """Adds attributes, and gives the span its final name."""
        self.span.set_attributes(attributes)
        if name:
            self.span.update_name(name)

    def fail(self, error_type: str) -> None:
        """Gives the span the status of an error."""
        self.span.set_attribute("error.type", error_type)
        self.span.set_status(trace.StatusCode.ERROR)


class Reasons(logging.Handler):
    """Keeps what the exporter last said, which it says again with each try."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it."""
        self.last = record.getMessage()


class ToldOnce(SpanExporter):
    """Logs once that spans are not taken, and once that they are again."""

    def __init__(self, exporter: SpanExporter, reasons: Reasons) -> None:
        self._exporter = exporter
        self._reasons = reasons
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports them, with the retries and deadlines of the standard variables."""
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            log.warning("traces are lost: nobody takes them; requests go on without", reason=self._reasons.last)
        elif self._is_failing and not is_failing:
            log.info("traces are taken again")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        """Gives up what is being tried."""
        self._exporter.shutdown()


def _links(steps: Sequence[Step]) -> list[trace.Link]:
    return [trace.Link(each.span.get_span_context()) for each in steps if isinstance(each, RecordedStep)]


def _resource(service: str) -> Resource:
    """Who exports: what the standard variables say, and the service's name where they say none."""
    told = Resource.create()
    is_named = not str(told.attributes[SERVICE_NAME]).startswith("unknown_service")
    return told if is_named else told.merge(Resource({SERVICE_NAME: service}))
