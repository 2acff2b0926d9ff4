"""One measurement: the same notes, a warm-up, the load, and a check that every answered write was stored."""

from contextlib import nullcontext

from bench.contenders import Contender
from bench.load import Responses, run_wrk
from bench.results import Measurement
from bench.scenarios import SCENARIOS, Cell
from bench.servers import cpu_seconds

WARM_UP_SECONDS = 1


async def measure(cell: Cell, contender: Contender, number: int, seconds: int) -> Measurement:
    """A measurement in the round with this number; every accepted write is stored before it returns.

    The processor time therefore includes the worker's, also after a 202.
    """
    scenario = SCENARIOS[cell.scenario]
    if contender.database:
        notes = scenario.notes_per_owner
        await contender.database.reset(cell.owners, notes, slow=scenario.slow_database, texts=scenario.texts)
    _, before = await _load(cell, contender, WARM_UP_SECONDS, 0)
    cpu_before, http_before = cpu_seconds(contender.processes), cpu_seconds(contender.processes[:1])
    responses, written = await _load(cell, contender, seconds, before or 0)
    return Measurement(
        cell,
        number,
        requests_per_second=responses.requests / responses.seconds,
        p50_ms=responses.p50_ms,
        p99_ms=responses.p99_ms,
        cpu_seconds_per_1000=1000 * (cpu_seconds(contender.processes) - cpu_before) / max(1, responses.requests),
        http_cpu_seconds_per_1000=1000
        * (cpu_seconds(contender.processes[:1]) - http_before)
        / max(1, responses.requests),
        answered=responses.good,
        refused=responses.refused,
        broken=responses.broken,
        written=None if written is None else written - (before or 0),
        uncounted=cell.connections + (contender.database.overcounted(scenario.method) if contender.database else 0),
    )


async def _load(cell: Cell, contender: Contender, seconds: int, before: int) -> tuple[Responses, int | None]:
    """The responses, and the number of stored writes once all are complete; None without writes."""
    scenario = SCENARIOS[cell.scenario]
    changing = contender.database.changing() if contender.database and scenario.changing else nullcontext()
    async with changing:
        responses = await run_wrk(contender, scenario, cell.owners, cell.connections, seconds)
    if contender.database is None or scenario.method == "GET":
        return responses, None
    return responses, await contender.database.settled(scenario.method, before + responses.good)
