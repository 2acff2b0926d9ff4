"""The steps of a batch: the processing of each command whose trace is recorded, and the transaction of them all.

A transaction is in one trace only, that of the first of them, and linked to the others. A worker begins no trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from shared.contracts import BadCommand, Outcome, OutcomeStatus, Received, Unreadable, envelope_of
from shared.tracing import UNRECORDED, Kind, Step, Tracing, start, step, trace_id_of
from worker.deliveries import Batch, Delivery


class Processing:
    """The recorded steps of a batch, each with the place of its command among those that have an outcome."""

    def __init__(self, steps: Sequence[tuple[int, Step]], commands: int) -> None:
        self._steps = steps
        self._commands = commands

    def applying(self) -> Step:
        """The step of a transaction."""
        if not self._steps:
            return UNRECORDED
        others = [each for _, each in self._steps[1:]]
        return step("apply batch", {"inkwell.batch.commands": self._commands}, links=others)

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        """Says what became of the commands."""
        for place, each in self._steps:
            each.describe({"inkwell.command.outcome": outcomes[place].status.value})
            if outcomes[place].status is OutcomeStatus.FAILED:
                each.fail(outcomes[place].reason or "failed")


@contextmanager
def processing(batch: Batch) -> Iterator[Processing]:
    """The steps of the batch during the block; the first of them is the current one."""
    with ExitStack() as stack:
        steps = list(_begun(batch)) if Tracing.recorder else []
        for _, each in reversed(steps):
            stack.enter_context(each)
        yield Processing(steps, len(batch.commands))


def _begun(batch: Batch) -> Iterator[tuple[int, Step]]:
    settled = [each for each in batch.received if not isinstance(each[1], Unreadable)]
    for place, (delivery, received) in enumerate(settled):
        if (each := _processed(delivery, received, len(settled))) is not UNRECORDED:
            yield place, each


def _processed(delivery: Delivery, received: Received, commands: int) -> Step:
    """The step of one command, in its trace if that is recorded."""
    envelope = None if isinstance(received, Unreadable) else envelope_of(received)
    if envelope is None or trace_id_of(envelope.traceparent) is None:
        return UNRECORDED
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
    return start(f"process {destination}", Kind.CONSUMER, envelope.traceparent, attributes)
