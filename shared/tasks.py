"""Ends asyncio tasks, even those in which a library has dropped a cancellation.

`asyncio.wait_for`, before Python 3.12, drops a cancellation that comes together with what it waits for, and the AMQP
library one that comes together with the end of a channel. The task goes on then, perhaps forever.
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
    """Cancel the tasks, again if they go on, and return once all of them have ended."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)
