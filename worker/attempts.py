"""Marks that a process has begun to apply a command. They survive it, so a command that crashes its workers is found.

These are not the attempts of the gateway (`attempt_id`), which are requests that wait for an outcome.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Uuid, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert

from shared.connections import Connections
from shared.database import Statement
from shared.tables import attempt_marks
from worker.sessions import transaction


async def mark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> int:
    """Commit a mark of this process's attempt at the command; return the number of other processes' marks."""
    mark = {"command_id": command_id, "process_id": process_id}
    async with transaction(connections) as session:
        await MARK_ATTEMPT.fetch(session, **mark)
        [marks] = await COUNT_OTHER_MARKS.fetch(session, **mark)
        return int(marks[0])


async def unmark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> None:
    """Delete this process's mark, because it has survived the attempt."""
    async with transaction(connections) as session:
        await UNMARK_ATTEMPT.fetch(session, command_id=command_id, process_id=process_id)


async def clear_marks(connections: Connections, command_ids: Sequence[UUID]) -> None:
    """Delete the marks of commands that have an outcome."""
    async with transaction(connections) as session:
        await CLEAR_MARKS.fetch(session, ids=command_ids)


_MARKED_COMMAND = attempt_marks.c.command_id == bindparam("command_id", type_=Uuid())
_MARKING_PROCESS = bindparam("process_id", type_=Uuid())

MARK_ATTEMPT = Statement.compile(insert(attempt_marks).on_conflict_do_nothing())
COUNT_OTHER_MARKS = Statement.compile(
    select(func.count()).where(_MARKED_COMMAND, attempt_marks.c.process_id != _MARKING_PROCESS)
)
UNMARK_ATTEMPT = Statement.compile(
    delete(attempt_marks).where(_MARKED_COMMAND, attempt_marks.c.process_id == _MARKING_PROCESS)
)
CLEAR_MARKS = Statement.compile(
    delete(attempt_marks).where(attempt_marks.c.command_id == func.any(bindparam("ids", type_=ARRAY(Uuid()))))
)
