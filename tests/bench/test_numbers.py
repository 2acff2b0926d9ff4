import shutil

import pytest

from bench.numbers import measured, table
from dev.backend import Services


@pytest.mark.needs_docker
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is missing")
async def test_operators_numbers_can_be_measured(servers: Services) -> None:
    numbers = {each.what: each.value for each in await measured(servers, rows=20_000, seconds=1)}

    assert numbers["sessions `inkwell-worker slot`"] == "1 idle, 1 loaded"
    assert int(numbers["a queued command, in its message"].split()[0].replace(",", "")) > 100
    assert int(numbers["pruning"].split()[0].replace(",", "")) > 0
    assert {"on the broker's disk", "in the broker's memory", "`commands`", "`notes`"} <= numbers.keys()


def test_numbers_are_printed_as_a_table() -> None:
    assert table([]) == "| | measured | how |\n|---|---|---|\n"
