"""Starts background tasks, and ends tasks, even those in which a library has swallowed a cancellation.

Before Python 3.12, `asyncio.wait_for` swallows a cancellation that arrives together with the awaited result, and the
AMQP library one that arrives together with the end of a channel. The task then continues, perhaps forever.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from traceback import format_tb
from typing import Any

import structlog

from shared.errors import describe_error

CANCEL_AGAIN_SECONDS = 5.0
"""Longer than a connection takes to close, which a second cancellation would interrupt."""

log = structlog.get_logger()


def is_cancelled() -> bool:
    """Whether the current task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def start_in_background(**coroutines: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
    """Start a task of this name for each, which runs until it is cancelled; logs it if one fails."""
    tasks = [asyncio.create_task(each, name=name) for name, each in coroutines.items()]
    for task in tasks:
        task.add_done_callback(_log_failure)
    return tasks


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error(
            "bug: a background task has failed, and the service goes on without it; restart it, and please report this",
            task=task.get_name(),
            error=describe_error(error),
            stack="".join(format_tb(error.__traceback__)),
        )


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, repeatedly if they continue, and return once all of them have ended."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)
