"""The worker's command line when something is missing, in the way, or interrupts it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import aio_pika
import pytest
from asyncpg import Connection, Record

from dev.backend import ROOT
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import Publish, create
from tests.support.operator import Operator
from worker import newer_commands, repartition
from worker.command_line import change_partitions, operate_on_queue, read_arguments
from worker.settings import WorkerSettings

MANY_LETTERS = """
insert into commands (id, status, http_status, decided_at, reason, command)
select gen_random_uuid(), 'failed', 500, now(), 'data_error', '{}' from generate_series(1, 5000)
"""


async def test_list_whose_reader_has_gone_ends_without_a_complaint(
    database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    await database.execute(MANY_LETTERS)
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {
        "INKWELL_DATABASE_URL": str(worker_settings.database_url.get_secret_value()),
        "INKWELL_BROKER_URL": str(worker_settings.broker_url.get_secret_value()),
    }
    command = [sys.executable, "-m", "worker", "dead-letters", "list"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)

    assert done.returncode != 0
    assert b"Postgres does not answer" not in done.stderr
    assert b"Traceback" not in done.stderr


async def test_operator_of_a_database_that_lacks_migrations_is_told_to_migrate(
    database: "Connection[Record]", operator: Operator
) -> None:
    await database.execute("drop table alembic_version")

    code, _, error = await operator("dead-letters", "list")

    assert code == 3
    assert "alembic upgrade head" in error


@pytest.mark.usefixtures("publish")  # declares the queues
async def test_queue_without_newer_commands_has_none_to_fail(
    worker_settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(newer_commands, "QUIET_SECONDS", 0.2)

    code = await operate_on_queue(read_arguments(["queues", "fail-newer", "0"]), worker_settings)

    assert (code, capsys.readouterr().out.split()[0]) == (0, "0")


@pytest.mark.usefixtures("publish")  # declares the queues
async def test_number_of_partitions_stays_where_a_new_queue_has_other_arguments(
    channel: aio_pika.abc.AbstractChannel,
    worker_settings: WorkerSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = Topology(worker_settings.queue_prefix, 3).command_queue(2)
    await channel.declare_queue(wrong, durable=True)  # a classic one

    async with harness.worker(worker_settings):
        code = await change_partitions(read_arguments(["repartition", "3"]), worker_settings)
    await channel.queue_delete(wrong)

    assert code == 1
    assert "not done; the number is unchanged" in capsys.readouterr().err


@pytest.mark.usefixtures("publish")  # declares the queues
async def test_queue_that_somebody_still_consumes_is_not_deleted_and_the_operator_is_told(
    channel: aio_pika.abc.AbstractChannel,
    worker_settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(repartition, "LEAVE_CHECKS", 1)
    former = await channel.get_queue(Topology(worker_settings.queue_prefix, 2).command_queue(1))
    await former.consume(asyncio.Queue[object]().put, arguments={"x-priority": -1})

    settings = worker_settings.model_copy(update={"partitions": None})
    async with harness.worker(settings):
        code = await change_partitions(read_arguments(["repartition", "1"]), settings)

    assert code == 1
    assert "still has a consumer" in capsys.readouterr().err


async def test_interrupted_change_of_the_number_leaves_it_as_it_was(
    publish: Publish,
    worker_settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(repartition, "REPLY_SECONDS", 0.1)
    await publish(create())  # which no worker applies
    changing = asyncio.create_task(change_partitions(read_arguments(["repartition", "1"]), worker_settings))
    await asyncio.sleep(1)

    os.kill(os.getpid(), signal.SIGINT)

    async with asyncio.timeout(10):
        assert await changing == 1
    assert "interrupted" in capsys.readouterr().err


@pytest.fixture(autouse=True)
async def signals() -> AsyncIterator[None]:
    """The signals of the test's process, as they were."""
    yield
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


@pytest.mark.parametrize("abbreviated", [["dead-letters", "discard", "--al"], ["doctor", "--js"]])
def test_options_cannot_be_abbreviated(abbreviated: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        read_arguments(abbreviated)


@pytest.mark.usefixtures("database")
async def test_reason_that_no_dead_letter_has_selects_none_and_says_so(operator: Operator) -> None:
    assert await operator("dead-letters", "replay", "--all", "--reason", "expird") == (
        0,
        [],
        "no dead letter is selected\n",
    )
