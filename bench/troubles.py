"""What clients see during a fault: a load of 25 seconds with the fault in its middle."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil

from bench.contenders import DIRECT, INKWELL, INKWELL_202, Contender, Stage
from bench.database import Database
from bench.load import Answer, run_h2load
from bench.results import Series

CONTENDERS = (DIRECT, INKWELL, INKWELL_202)
BEFORE_SECONDS = 5
TROUBLE_SECONDS = 10
LOAD_SECONDS = 25
SLICE_SECONDS = 0.5
BURST_WRITES = 5000
BURST_CONNECTIONS = 250


async def slow(_: Contender, database: Database, __: Stage) -> list[Answer]:
    """Every statement that writes notes takes 100 ms longer."""
    await database.slow_down()
    await asyncio.sleep(TROUBLE_SECONDS)
    await database.speed_up()
    return []


async def paused(_: Contender, __: Database, stage: Stage) -> list[Answer]:
    """Postgres is paused."""
    with stage.postgres.paused():
        await asyncio.sleep(TROUBLE_SECONDS)
    return []


async def burst(contender: Contender, _: Database, __: Stage) -> list[Answer]:
    """Many more clients arrive at once; returns their answers."""
    return await run_h2load(contender, BURST_CONNECTIONS, f"-n{BURST_WRITES}")


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault under a load of this many connections."""

    title: str
    connections: int
    happen: Callable[[Contender, Database, Stage], Awaitable[list[Answer]]]
    """Runs the fault; returns the answers to its own writes."""


TROUBLES = {
    "slow": Trouble(f"Postgres takes 100 ms longer for each write, for {TROUBLE_SECONDS} s", 64, slow),
    "paused": Trouble(f"Postgres stands still for {TROUBLE_SECONDS} s", 64, paused),
    "burst": Trouble(f"{BURST_WRITES:,} writes at once, over {BURST_CONNECTIONS} connections", 8, burst),
}


async def endure(name: str, contender: Contender, stage: Stage) -> Series:
    """The contender's answers around one fault, and whether every accepted write was stored."""
    if contender.database is None:
        raise ValueError(f"{contender.name} stores nothing")
    trouble = TROUBLES[name]
    await contender.database.reset(owners=1, notes_per_owner=0)
    started = time.time()
    steady = asyncio.create_task(run_h2load(contender, trouble.connections, f"-D{LOAD_SECONDS}"))
    await asyncio.sleep(BEFORE_SECONDS)
    own = await trouble.happen(contender, contender.database, stage)
    answers = sorted(await steady + own, key=lambda answer: answer.time)
    ended = time.monotonic()
    accepted = sum(200 <= answer.status < 300 for answer in answers)
    written = await contender.database.settled("POST", accepted)
    slices = _slices(answers, started)
    statuses = sorted({answer.status for answer in answers})
    return Series(
        name,
        contender.name,
        seconds=[number * SLICE_SECONDS for number in range(len(slices))],
        answers={s: [sum(a.status == s for a in each) / SLICE_SECONDS for each in slices] for s in statuses},
        p50_ms=[_quantile(each, 0.5) for each in slices],
        p99_ms=[_quantile(each, 0.99) for each in slices],
        accepted=accepted,
        written=written,
        settled_seconds=time.monotonic() - ended,
    )


def _slices(answers: list[Answer], started: float) -> list[list[Answer]]:
    """The answers, which are sorted by time, in slices."""
    slices: list[list[Answer]] = [[] for _ in range(ceil((answers[-1].time - started) / SLICE_SECONDS) + 1)]
    for answer in answers:
        slices[int((answer.time - started) / SLICE_SECONDS)].append(answer)
    return slices


def _quantile(answers: list[Answer], share: float) -> float | None:
    """The latency in milliseconds of this share of the answers."""
    times = sorted(answer.seconds * 1000 for answer in answers)
    return times[min(len(times) - 1, int(share * len(times)))] if times else None
