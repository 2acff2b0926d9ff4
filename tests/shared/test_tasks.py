"""A task ends when it is to, even if a library drops a cancellation."""

import asyncio
from contextlib import suppress

import pytest

from shared import tasks


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
