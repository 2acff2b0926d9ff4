"""Applies batches like a worker among others, which retries after a conflict."""

from collections.abc import Sequence
from contextlib import suppress

from asyncpg import LockNotAvailableError

from shared.connections import Connections
from shared.contracts import BadCommand, Command, Outcome
from worker.apply import apply_batch
from worker.cache import Cache
from worker.store import ConflictError


async def apply_with_others(
    connections: Connections, batch: Sequence[Command | BadCommand], cache: Cache | None = None
) -> list[Outcome]:
    """`apply_batch`, retried while another session holds a lock or has written in between."""
    while True:
        with suppress(ConflictError, LockNotAvailableError):
            return await apply_batch(connections, batch, cache=cache)
