"""Ends asyncio tasks, even those in which a library has swallowed a cancellation.

Before Python 3.12, `asyncio.wait_for` swallows a cancellation that arrives together with the awaited result, and the
AMQP library one that arrives together with the end of a channel. The task then continues, perhaps forever.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

CANCEL_AGAIN_SECONDS = 5.0
"""Longer than a connection takes to close, which a second cancellation would interrupt."""


def is_cancelled() -> bool:
    """Whether the current task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, repeatedly if they continue, and return once all of them have ended."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)
