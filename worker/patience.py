"""Has a batch settled although Postgres may not be able or willing for a while, and hands it back if that takes long.

Another worker may have better luck. A batch is tried again as a whole: what was committed already is found and told.
"""

import asyncio
from contextlib import suppress

import structlog

from shared.contracts import Outcome
from shared.messaging import choose_backoff
from worker.deliveries import Batch
from worker.failures import Kind, Settlement, describe, kind_of
from worker.metrics import RETRIES, TRANSACTION_DURATION
from worker.traces import Processing

PATIENCE_SECONDS = 15.0
"""How long a batch is tried again before its messages go back to the broker for another worker to try."""

log = structlog.get_logger()


class HandBackError(Exception):
    """The messages in hand must go back to the broker, in order: close their channels."""


async def settled(
    batch: Batch, settlement: Settlement, processing: Processing, stopping: asyncio.Event
) -> list[Outcome]:
    """The committed outcomes; a transient failure is waited out for a while, then handed back.

    Raises OwnersLockedError for owners whose commands have to wait.
    """
    patience_ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    failures = 0
    if not batch.commands:
        return []
    if batch.redelivered:
        settlement.forget()
    while True:
        try:
            with TRANSACTION_DURATION.time(), processing.applying():
                if batch.careful:
                    return await settlement.settle_carefully(batch.commands)
                return await settlement.settle(batch.commands)
        except Exception as error:
            if kind_of(error) in (Kind.PAUSE, Kind.LOCKED):
                raise
            RETRIES.inc()
            log.warning(
                "batch not applied; it stays unacknowledged and is tried again",
                commands=len(batch.commands),
                error=describe(error),
            )
        await pause(stopping, choose_backoff(failures))
        failures += 1
        if stopping.is_set() or asyncio.get_running_loop().time() > patience_ends:
            raise HandBackError


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until the worker stops."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
