"""A task ends when it is to, even if a library drops a cancellation, and one that fails is reported."""

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from shared import tasks

CANARY = "what a user wrote"


async def drop_the_first_cancellation() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def test_task_that_drops_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CANCEL_AGAIN_SECONDS", 0.05)
    started = [asyncio.create_task(each) for each in (drop_the_first_cancellation(), asyncio.sleep(60))]
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await tasks.end_tasks(started)

    assert [task.cancelled() for task in started] == [True, True]


async def test_there_may_be_no_task_to_end() -> None:
    await tasks.end_tasks([])


async def fail() -> None:
    raise KeyError(CANARY)


async def test_background_task_that_fails_is_reported_without_what_users_wrote() -> None:
    with capture_logs() as logs:
        [failing, running] = tasks.start_in_background(failing=fail(), running=asyncio.sleep(60))
        await asyncio.wait([failing])
        await asyncio.sleep(0)  # until its callbacks have run
        await tasks.end_tasks([running])

    [line] = logs
    assert (line["log_level"], line["task"], line["error"]) == ("error", "failing", "KeyError")
    assert "in fail" in line["stack"]
    assert CANARY not in str(line)
