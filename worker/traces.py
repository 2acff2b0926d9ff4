"""The spans of a batch: one for each command whose trace is recorded, and one for their transaction.

The transaction's span belongs to the trace of the first command and links to the others. A worker starts no trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from shared.contracts import BadCommand, Command, Outcome, OutcomeStatus, find_envelope
from shared.tracing import NO_OP, Span, SpanKind, Tracing, find_trace_id, start_root_span, start_span
from worker.deliveries import Batch, Delivery


class BatchTrace:
    """The recorded spans of a batch, each with the index of its command among those that get an outcome."""

    def __init__(self, spans: Sequence[tuple[int, Span]], commands: int) -> None:
        self._spans = spans
        self._commands = commands

    def start_transaction_span(self) -> Span:
        """Start the span of a transaction; a batch that is retried has several."""
        if not self._spans:
            return NO_OP
        others = [span for _, span in self._spans[1:]]
        return start_span("apply batch", {"inkwell.batch.commands": self._commands}, links=others)

    def record_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Record the outcomes of the commands."""
        for position, span in self._spans:
            outcome = outcomes[position]
            span.update({"inkwell.command.outcome": outcome.status.value})
            if outcome.status is OutcomeStatus.FAILED:
                span.fail(outcome.reason or "failed")


@contextmanager
def trace_batch(batch: Batch) -> Iterator[BatchTrace]:
    """Record the batch's spans during the block; the first is the current one."""
    with ExitStack() as stack:
        spans = list(_start_spans(batch)) if Tracing.recorder else []
        for _, span in reversed(spans):
            stack.enter_context(span)
        yield BatchTrace(spans, len(batch.commands))


def _start_spans(batch: Batch) -> Iterator[tuple[int, Span]]:
    commands = batch.decodable
    for position, (delivery, command) in enumerate(commands):
        if (span := _start_span(delivery, command, len(commands))) is not NO_OP:
            yield position, span


def _start_span(delivery: Delivery, command: Command | BadCommand, commands: int) -> Span:
    """Start the span of one command; a no-op span if its trace is not recorded."""
    envelope = find_envelope(command)
    if envelope is None or find_trace_id(envelope.traceparent) is None:
        return NO_OP
    destination = f"{delivery.message.exchange}:{delivery.message.routing_key}"
    attributes: dict[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": destination,
        "messaging.message.id": str(envelope.id),
        "messaging.batch.message_count": commands,
        "inkwell.command.type": "unknown" if isinstance(command, BadCommand) else command.type,
    }
    return start_root_span(f"process {destination}", SpanKind.CONSUMER, envelope.traceparent, attributes)
