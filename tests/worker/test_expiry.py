"""A command expires by Postgres' clock, and only where its own time is Postgres' too."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.connections import Connections
from shared.contracts import BadCommand
from tests.support.commands import create
from worker.apply import ApplyOptions, apply_batch

OPTIONS = ApplyOptions(max_age=timedelta(days=3))
OLD = datetime.now(UTC) - timedelta(days=4)


async def test_command_with_a_time_of_postgres_expires(connections: Connections) -> None:
    old, young = create(time=OLD, may_expire=True), create(may_expire=True)

    outcomes = await apply_batch(connections, [old, young], OPTIONS)

    assert [(each.status, each.reason) for each in outcomes] == [("failed", "expired"), ("applied", None)]


@pytest.mark.parametrize("days", [-365, -30, -4, 4, 30, 365])
async def test_command_with_a_time_of_another_clock_is_applied_however_old_it_looks(
    connections: Connections, days: int
) -> None:
    time = datetime.now(UTC) + timedelta(days=days)

    [outcome] = await apply_batch(connections, [create(time=time)], OPTIONS)

    assert outcome.status == "applied"


async def test_command_whose_time_cannot_be_read_is_a_bad_command_as_before(connections: Connections) -> None:
    [outcome] = await apply_batch(connections, [BadCommand(create().id, "invalid_command", "{}")], OPTIONS)

    assert (outcome.status, outcome.reason) == ("failed", "invalid_command")
