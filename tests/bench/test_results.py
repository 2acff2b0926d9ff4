from bench.results import Measurement, Results, Spread
from bench.scenarios import Cell

DIRECT = Cell("create", "direct", owners=1, connections=64)
QUEUED = Cell("create", "Inkwell", owners=64, connections=64)


def measurement(cell: Cell, number: int, rate: float, written: int = 0) -> Measurement:
    return Measurement(
        cell,
        number,
        requests_per_second=rate,
        p50_ms=1,
        p99_ms=1,
        cpu_seconds_per_1000=1,
        answered=100,
        refused=0,
        broken=0,
        written=written,
        uncounted=64,
    )


def test_a_ratio_compares_measurements_of_the_same_round() -> None:
    rates = {DIRECT: [100, 200, 400], QUEUED: [200, 800, 1200]}
    measurements = [measurement(cell, number, rate) for cell in rates for number, rate in enumerate(rates[cell])]
    results = Results({}, rounds=3, seconds=1, measurements=measurements, troubles=[])
    assert results.ratio(QUEUED, "requests_per_second") == Spread(median=3, low=2, high=4)


def test_only_requests_under_way_may_be_written_without_a_response() -> None:
    assert [bool(measurement(QUEUED, 0, 1, written).problem) for written in (99, 100, 164, 165)] == [
        True,
        False,
        False,
        True,
    ]
