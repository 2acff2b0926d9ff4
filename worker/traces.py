"""The spans of a batch: one for processing each command whose trace is recorded, and one for their transaction.

The transaction's span is in the trace of the first command, and linked to the others. A worker starts no trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from shared.contracts import BadCommand, Outcome, OutcomeStatus, Received, Unreadable, find_envelope
from shared.tracing import NO_OP, Span, SpanKind, Tracing, find_trace_id, start_root_span, start_span
from worker.deliveries import Batch, Delivery


class Processing:
    """The recorded spans of a batch, each with the index of its command among those that have an outcome."""

    def __init__(self, spans: Sequence[tuple[int, Span]], commands: int) -> None:
        self._spans = spans
        self._commands = commands

    def applying(self) -> Span:
        """Return the span of a transaction."""
        if not self._spans:
            return NO_OP
        others = [each for _, each in self._spans[1:]]
        return start_span("apply batch", {"inkwell.batch.commands": self._commands}, links=others)

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        """Record the outcomes of the commands."""
        for place, each in self._spans:
            each.update({"inkwell.command.outcome": outcomes[place].status.value})
            if outcomes[place].status is OutcomeStatus.FAILED:
                each.fail(outcomes[place].reason or "failed")


@contextmanager
def processing(batch: Batch) -> Iterator[Processing]:
    """Open the batch's spans for the block; the first of them is the current one."""
    with ExitStack() as stack:
        spans = list(_begun(batch)) if Tracing.recorder else []
        for _, each in reversed(spans):
            stack.enter_context(each)
        yield Processing(spans, len(batch.commands))


def _begun(batch: Batch) -> Iterator[tuple[int, Span]]:
    decided = [each for each in batch.received if not isinstance(each[1], Unreadable)]
    for place, (delivery, received) in enumerate(decided):
        if (each := _processed(delivery, received, len(decided))) is not NO_OP:
            yield place, each


def _processed(delivery: Delivery, received: Received, commands: int) -> Span:
    """Return the span of one command, or a no-op span if its trace is not recorded."""
    envelope = None if isinstance(received, Unreadable) else find_envelope(received)
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
        "inkwell.command.type": "unknown" if isinstance(received, BadCommand | Unreadable) else received.type,
    }
    return start_root_span(f"process {destination}", SpanKind.CONSUMER, envelope.traceparent, attributes)
