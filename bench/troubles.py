"""What clients see during a fault: a load of 25 seconds with the fault in its middle."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil

from bench.contenders import DIRECT, INKWELL, INKWELL_202, Contender, Stage
from bench.database import Database
from bench.load import Response, run_h2load
from bench.results import Series

CONTENDERS = (DIRECT, INKWELL, INKWELL_202)
BEFORE_SECONDS = 5
TROUBLE_SECONDS = 10
LOAD_SECONDS = 25
SLICE_SECONDS = 0.5
BURST_WRITES = 5000
BURST_CONNECTIONS = 250


async def slow(_: Contender, database: Database, __: Stage) -> list[Response]:
    """Every statement that writes notes takes 100 ms longer."""
    await database.slow_down()
    await asyncio.sleep(TROUBLE_SECONDS)
    await database.speed_up()
    return []


async def paused(_: Contender, __: Database, stage: Stage) -> list[Response]:
    """Postgres is paused."""
    with stage.postgres.paused():
        await asyncio.sleep(TROUBLE_SECONDS)
    return []


async def burst(contender: Contender, _: Database, __: Stage) -> list[Response]:
    """Many more clients arrive at once; returns their responses."""
    return await run_h2load(contender, BURST_CONNECTIONS, f"-n{BURST_WRITES}")


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault under a load of this many connections."""

    title: str
    connections: int
    happen: Callable[[Contender, Database, Stage], Awaitable[list[Response]]]
    """Runs the fault; returns the responses to its own writes."""


TROUBLES = {
    "slow": Trouble(f"Postgres takes 100 ms longer for each write, for {TROUBLE_SECONDS} s", 64, slow),
    "paused": Trouble(f"Postgres stands still for {TROUBLE_SECONDS} s", 64, paused),
    "burst": Trouble(f"{BURST_WRITES:,} writes at once, over {BURST_CONNECTIONS} connections", 8, burst),
}


async def endure(name: str, contender: Contender, stage: Stage) -> Series:
    """The contender's responses around one fault, and whether every accepted write was stored."""
    if contender.database is None:
        raise ValueError(f"{contender.name} stores nothing")
    trouble = TROUBLES[name]
    await contender.database.reset(owners=1, notes_per_owner=0)
    started = time.time()
    steady = asyncio.create_task(run_h2load(contender, trouble.connections, f"-D{LOAD_SECONDS}"))
    await asyncio.sleep(BEFORE_SECONDS)
    own = await trouble.happen(contender, contender.database, stage)
    responses = sorted(await steady + own, key=lambda response: response.time)
    ended = time.monotonic()
    accepted = sum(200 <= response.status < 300 for response in responses)
    written = await contender.database.settled("POST", accepted)
    slices = _slices(responses, started)
    statuses = sorted({response.status for response in responses})
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


def _slices(responses: list[Response], started: float) -> list[list[Response]]:
    """The responses, which are sorted by time, in slices."""
    slices: list[list[Response]] = [[] for _ in range(ceil((responses[-1].time - started) / SLICE_SECONDS) + 1)]
    for response in responses:
        slices[int((response.time - started) / SLICE_SECONDS)].append(response)
    return slices


def _quantile(responses: list[Response], share: float) -> float | None:
    """The latency in milliseconds of this share of the responses."""
    times = sorted(response.seconds * 1000 for response in responses)
    return times[min(len(times) - 1, int(share * len(times)))] if times else None
