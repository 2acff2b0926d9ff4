"""Retries a batch while Postgres is unavailable; if that lasts, hands it back to the broker.

Another worker may still reach Postgres. A batch is retried as a whole, and finds the outcomes that were committed.
"""

import asyncio
from contextlib import suppress

import asyncpg
import structlog

from shared.broker import choose_backoff
from shared.contracts import Outcome
from worker.deliveries import Batch
from worker.failures import Applier, FailureKind, classify, describe
from worker.metrics import RETRIES, TRANSACTION_DURATION
from worker.traces import BatchTrace

RETRY_SECONDS = 15.0
"""How long a batch is retried before its messages go back to the broker."""

log = structlog.get_logger()


class HandBackError(Exception):
    """The unacknowledged messages must go back to the broker in order: close their channels."""


class OwnersLockedError(Exception):
    """Other sessions have locked rows of these owners, whose commands must wait; the other commands need not."""

    def __init__(self, owners: set[int], error: Exception) -> None:
        super().__init__(describe(error))
        self.owners = owners


async def apply_with_retries(
    batch: Batch, applier: Applier, trace: BatchTrace, stopping: asyncio.Event
) -> list[Outcome]:
    """Return the committed outcomes; retries transient failures for a while, then raises HandBackError.

    Raises OwnersLockedError or RepeatedBugError at once.
    """
    retry_ends = asyncio.get_running_loop().time() + RETRY_SECONDS
    failures = 0
    if batch.redelivered:
        applier.clear_cache()
    while True:
        try:
            with TRANSACTION_DURATION.time(), trace.start_transaction_span():
                return await _apply(batch, applier)
        except OwnersLockedError:
            raise
        except Exception as error:
            if classify(error) is FailureKind.REPEATED:
                raise
            RETRIES.inc()
            log.warning(
                "batch not applied; it stays unacknowledged and is tried again",
                commands=len(batch.commands),
                error=describe(error),
            )
        await pause(stopping, choose_backoff(failures))
        failures += 1
        if stopping.is_set() or asyncio.get_running_loop().time() > retry_ends:
            raise HandBackError


async def _apply(batch: Batch, applier: Applier) -> list[Outcome]:
    if not batch.commands:
        return []
    try:
        return await (applier.apply_isolated if batch.isolated else applier.apply)(batch.commands)
    except asyncpg.LockNotAvailableError as error:
        if owners := await applier.find_locked(batch.commands):
            raise OwnersLockedError(owners, error) from error
        raise


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait for this long, or until the worker stops."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
