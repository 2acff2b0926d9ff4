"""How much slower reads are for an owner of a million notes than for an owner of a thousand."""

from statistics import median

from bench.contenders import Contender, Stage
from bench.database import COMMON_WORD, RARE_WORD
from bench.load import run_wrk
from bench.results import Scale, Spread, times
from bench.scenarios import LISTED_NOTES, Scenario
from gateway.api.pages import Cursor

SMALL, LARGE = 1_000, 1_000_000
COMMON = "search, a word in half of the notes"
MISSING, MISSING_TEXT = "search, a text that no note has", "xuokk"
OTHER_OWNERS = 10_000
"""Owners in the large database, with ten notes each."""
SECONDS, ROUNDS = 2, 3
AT_MOST = 3.0
P95_MS = {COMMON: 50.0, MISSING: 250.0}
"""What takes longer with more notes, and how long it may take."""


def reads(notes: int, first: int) -> dict[str, str]:
    """The path of each read, for the owner of this many notes with ids from the first on."""
    page = min(10_000, notes // LISTED_NOTES)
    cursor = Cursor(order="id", id=first - 1 + (page - 1) * LISTED_NOTES)
    return {
        "one note": f"/notes/{first + notes // 2}",
        "list, first page": "/notes",
        "list, page 10,000": f"/notes?cursor={cursor.encoded}",
        "search, a rare word": f"/notes/search?q={RARE_WORD}",
        COMMON: f"/notes/search?q={COMMON_WORD}",
        MISSING: f"/notes/search?q={MISSING_TEXT}",
    }


async def scaled(stage: Stage, notes: int) -> list[Scale]:
    """All reads, alternately for the owner of a thousand notes and for the owner of this many."""
    small, large = await stage.reader("small"), await stage.reader("large")
    paths = []
    for contender, count, others in ((small, SMALL, 0), (large, notes, OTHER_OWNERS)):
        assert contender.database  # noqa: S101 - a reader has one
        await contender.database.fill(count, others)
        paths.append(reads(count, 1 + 5 * others))
    return [
        Scale(read, number, await timed(small, paths[0][read]), await timed(large, paths[1][read]))
        for number in range(ROUNDS)
        for read in paths[0]
    ]


async def timed(contender: Contender, path: str) -> tuple[float, float]:
    """The p50 and the p95 of a read, in milliseconds, alone on one connection."""
    scenario = Scenario(path, "GET", path, (contender.name,))
    await run_wrk(contender, scenario, owners=1, connections=1, seconds=1)
    responses = await run_wrk(contender, scenario, owners=1, connections=1, seconds=SECONDS)
    if responses.refused or responses.broken:
        raise RuntimeError(f"{path}: {responses.refused} refused, {responses.broken} broken")
    return responses.p50_ms, responses.p95_ms


def table(scales: list[Scale]) -> str:
    """The reads as a Markdown table with verdicts."""
    if not scales:
        return ""
    rows = "".join(
        _row([each for each in scales if each.read == read]) for read in dict.fromkeys(s.read for s in scales)
    )
    header = "| read | 1,000 notes: p50 | a million: p50 | p95 | ratio of p50 (rounds) | target | result |\n"
    return f"{header}|---|---:|---:|---:|---|---|---|\n{rows}"


def _row(rounds: list[Scale]) -> str:
    ratio = Spread.of(each.large[0] / each.small[0] for each in rounds)
    p95 = median(each.large[1] for each in rounds)
    at_most_ms = P95_MS.get(rounds[0].read)
    wanted = f"p95 ≤ {at_most_ms:.0f} ms" if at_most_ms else f"< {times(AT_MOST)}"
    met = p95 <= at_most_ms if at_most_ms else ratio.median < AT_MOST
    times_ms = [f"{median(value):.2f} ms" for value in ([s.small[0] for s in rounds], [s.large[0] for s in rounds])]
    verdict = "met" if met else "**not met**"
    return f"| {' | '.join([rounds[0].read, *times_ms, f'{p95:.2f} ms', str(ratio), wanted, verdict])} |\n"
