"""Assigns partitions to workers: a worker holds a slot, and the slots in use determine which worker each belongs to.

A slot is the smallest free number, held as an advisory lock on a connection of its own. It affects the distribution,
not the order: two workers with the same slot would share badly, but still apply each partition's commands in order.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from functools import cache

import structlog
from sqlalchemy import text

from shared.clock import Clock
from shared.database import Session, Statement, connect
from shared.primary import LOST, Primary
from worker.failures import describe
from worker.metrics import DATABASE_UP
from worker.settings import WorkerSettings

CHECK_INTERVAL_SECONDS = 2.0
FIRST_SLOT_TIMEOUT_SECONDS = 2.0
SILENCE_TIMEOUT_SECONDS = 5.0
"""Postgres has failed if it is silent for longer; an idle worker detects that here."""

log = structlog.get_logger()


@cache
def get_place(slot: int, partitions: int) -> int:
    """Return a slot's place on the ring of partitions; the first N slots are evenly spaced, for every N."""
    # Reversed, the bits are the binary digits of the van der Corput sequence: 0, 1/2, 1/4, 3/4, 1/8 …
    return sorted(range(partitions), key=lambda each: f"{each:b}"[::-1]).index(slot)


def find_slot(partition: int, slots: Collection[int], partitions: int) -> int | None:
    """Return the slot whose worker the partition belongs to: the last one on the ring up to it.

    A slot beyond the number of partitions has no place; its worker stands by. Returns None if no slot has one.
    """
    placed = [slot for slot in slots if slot < partitions]
    return min(placed, key=lambda slot: (partition - get_place(slot, partitions)) % partitions, default=None)


class PartitionAssignment:
    """This worker's slot; it may change when workers join or leave, but not while Postgres is unavailable."""

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        self._database_url = settings.database_url
        self.partitions = settings.partitions or 0
        """The broker's number of partitions once the worker is connected."""
        self._prefix = settings.queue_prefix
        self._clock = clock
        self._has_slot = asyncio.Event()
        self.slot: int | None = None
        self._slots: set[int] = set()
        """The slots that workers hold; empty while this one does not know."""

    def belongs_to_another(self, partition: int) -> bool:
        """Return whether the partition is another worker's; False while the slots are unknown."""
        return find_slot(partition, self._slots, self.partitions) not in {None, self.slot}

    async def wait_for_slot(self) -> None:
        """Wait a short time for the first slot; without one, this worker stands by until it has one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_slot.wait(), FIRST_SLOT_TIMEOUT_SECONDS)

    async def run(self) -> None:
        """Hold a slot until cancelled; retries failures."""
        while True:
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001 - transient, known or not; consuming continues meanwhile
                DATABASE_UP.set(0)
                log.warning("slot not held; Inkwell tries again by itself", slot=self.slot, error=describe(error))
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def _session(self) -> None:
        """Hold a slot on one connection until the first failure, which releases it."""
        session = await connect(self._database_url, "inkwell-worker slot")
        try:
            held = None
            while True:
                async with asyncio.timeout(SILENCE_TIMEOUT_SECONDS):
                    taken = {row["slot"] for row in await TAKEN.fetch(session, prefix=self._prefix)}
                    held = await self._choose_slot(session, held, taken)
                    await self._clock.synchronize(session)
                DATABASE_UP.set(1)
                self._adopt(held)
                self._slots = {*taken, held}
                await asyncio.sleep(CHECK_INTERVAL_SECONDS)
        except LOST:
            Primary.of(self._database_url.get_secret_value()).distrust(session)
            raise
        finally:
            self._slots = set()
            session.terminate()

    def _adopt(self, slot: int) -> None:
        self._has_slot.set()
        if slot != self.slot:
            log.info("slot taken", slot=slot, former=self.slot)
            self.slot = slot

    async def _choose_slot(self, session: Session, held: int | None, taken: set[int]) -> int:
        """Return the slot that the session holds from now on: a smaller one if `held` is not below their number."""
        if held is not None and held < len(taken):
            return held
        if held is None and self.slot is not None and await self._take(session, self.slot):
            return self.slot  # Postgres was unavailable; the former slot is still free
        slot = 0
        while slot != held and (slot in taken or not await self._take(session, slot)):
            slot += 1
        if held is not None and slot != held:  # only now, so that the worker always holds one
            await RELEASE.fetch(session, prefix=self._prefix, slot=held)
        return slot

    async def _take(self, session: Session, slot: int) -> bool:
        [(taken,)] = await TAKE.fetch(session, prefix=self._prefix, slot=slot)
        return bool(taken)


TAKEN = Statement.compile(
    text(
        "select objid::bigint as slot from pg_locks where locktype = 'advisory' and objsubid = 2 "
        "and classid::integer = hashtext(:prefix) "
        "and database = (select oid from pg_database where datname = current_database())"
    )
)
TAKE = Statement.compile(text("select pg_try_advisory_lock(hashtext(:prefix), :slot)"))
RELEASE = Statement.compile(text("select pg_advisory_unlock(hashtext(:prefix), :slot)"))
