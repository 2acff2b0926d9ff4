"""Applies batches as a worker does that meets others: what does not succeed at once is tried again."""

from collections.abc import Sequence
from contextlib import suppress

from asyncpg import LockNotAvailableError

from shared.connections import Connections
from shared.contracts import BadCommand, Command, Outcome
from worker.apply import ConflictError, apply_batch
from worker.cache import Cache


async def apply_with_others(
    connections: Connections, batch: Sequence[Command | BadCommand], cache: Cache | None = None
) -> list[Outcome]:
    """As `apply_batch`, while others hold locks now and then."""
    while True:
        with suppress(ConflictError, LockNotAvailableError):
            return await apply_batch(connections, batch, cache=cache)
