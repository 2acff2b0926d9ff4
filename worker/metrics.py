"""The worker's metrics; no label has more values than there are partitions or types of commands."""

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram

from shared.contracts import BadCommand, Command, Outcome, OutcomeStatus

BATCH_COMMANDS = Histogram(
    "inkwell_worker_batch_commands", "Commands in a batch", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
)
TRANSACTION_DURATION = Histogram(
    "inkwell_worker_transaction_duration_seconds",
    "From the start of an attempt to apply a batch to its end",
)
APPLY_DELAY = Histogram(
    "inkwell_command_apply_delay_seconds",
    "From the request or replay of a command to its committed outcome",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 3600),
)
COMMANDS = Counter("inkwell_worker_commands", "Commands that got an outcome", ["type", "outcome"])
FAILED = Counter("inkwell_worker_failed_commands", "Commands that failed and are kept for an operator")
DELIVERIES = Counter("inkwell_worker_deliveries", "Messages received, by partition", ["partition"])
REDELIVERED = Counter("inkwell_worker_redelivered_messages", "Messages received again, not acknowledged before")
UNREADABLE = Counter("inkwell_worker_unreadable_messages", "Messages moved to the queue of unreadable messages")
HINTS_DROPPED = Counter("inkwell_worker_hints_dropped", "Hints of changes dropped because too many were pending")
RETRIES = Counter("inkwell_worker_retries", "Attempts to apply a batch that failed and were retried")
PAUSED = Gauge("inkwell_worker_paused", "1 while commands wait for an operator", ["reason"])
for _reason in ("newer_version", "repeated_bug"):
    PAUSED.labels(_reason)  # exported from the start: Prometheus cannot see a change to a series without a value before
PARTITIONS = Gauge("inkwell_worker_partitions", "Partitions that this worker subscribes to")
OLDEST = Gauge(
    "inkwell_worker_oldest_message_seconds",
    "Age of the oldest message in this process; 0 without one",
)
DATABASE_UP = Gauge("inkwell_database_up", "1 while Postgres answers this worker")


def count_applied(
    commands: Iterable[Command | BadCommand],
    outcomes: Sequence[Outcome],
    now: datetime,
    *,
    redelivered: int,
    unreadable: int,
) -> None:
    """Count a batch that was applied, and observe how long its commands took."""
    counts = Tally[tuple[str, OutcomeStatus]]()
    for command, outcome in zip(commands, outcomes, strict=True):
        if isinstance(command, BadCommand):
            counts["unknown", outcome.status] += 1
        else:
            counts[command.type, outcome.status] += 1
            APPLY_DELAY.observe((now - (command.replayed_at or command.time)).total_seconds())
    for labels, count in counts.items():
        COMMANDS.labels(*labels).inc(count)
    BATCH_COMMANDS.observe(len(outcomes))
    FAILED.inc(sum(outcome.status is OutcomeStatus.FAILED for outcome in outcomes))
    REDELIVERED.inc(redelivered)
    UNREADABLE.inc(unreadable)
