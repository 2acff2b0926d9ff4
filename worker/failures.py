"""Classifies the failures of a batch. What `Applier` does not handle itself, the named module does.

rejected    an outcome of the fold, never an exception
unreadable  no command id can be read: `consumer` sends the message to the queue of unreadable ones
bug         a handler raised, or Postgres rejected the data: the command at fault becomes a `failed` row
repeated    the next command fails in the same way: `deliveries` parks the owner's commands until others succeed
slow        a command needs longer than it may, alone and repeatedly: it becomes a `failed` row
newer       a command of a newer version: `subscriptions` pauses its partition until the worker is upgraded
poison      every worker that tried the command crashed: it becomes a `failed` row
locked      another session has locked rows of some owners: `deliveries` parks their commands
transient   everything else, known or not: nothing is lost or decided, and `retry` tries the batch again
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto
from traceback import format_tb
from uuid import UUID, uuid4

import asyncpg
import structlog

from shared import errors
from shared.clock import elapsed_seconds
from shared.connections import CONNECTION_ERRORS, Connections
from shared.contracts import BadCommand, Command, Outcome, find_envelope
from shared.logs import bind_command
from worker.apply import (
    DEFAULTS,
    ApplyOptions,
    apply_batch,
    apply_in_transaction,
    find_locked,
    record_failure,
)
from worker.attempts import clear_marks, mark_attempt, unmark_attempt
from worker.cache import IDS_AHEAD, Cache
from worker.handlers import HandlerError
from worker.metrics import PAUSED
from worker.replays import replayed_at
from worker.sessions import TIMEOUT_SECONDS
from worker.store import ConflictError

DATA_ERROR_CLASSES = ("22", "23", "54")
"""The classes of SQLSTATE for invalid data, violated constraints, and data beyond a limit of Postgres."""
DEADLINE_ERRORS = (TimeoutError, asyncpg.QueryCanceledError)
MAX_CRASHES = 5
"""How many processes may crash while they try a command before it fails."""
MAX_SLOW_ATTEMPTS = 4
"""How often a process may run out of time with a command alone before it fails: the first time the usual deadline."""
SLOW_SECONDS = 45.0
"""The deadline for a command alone that has run out of time before."""
CONTROL_SECONDS = 1.0
"""If Postgres needs longer for a small transaction, then it is slow, and not the command."""

log = structlog.get_logger()


class FailureKind(Enum):
    """What to do about an exception of a batch."""

    BUG = auto()
    """Find the command at fault and fail it."""
    REPEATED = auto()
    """Park the owner's commands, and fail no more of them until the cause is known to be in the command."""
    TRANSIENT = auto()
    """Retry the batch."""


class RepeatedBugError(Exception):
    """A second command failed in the same way as the one before, so the cause may not be in the command."""

    def __init__(self, bug: str, owner: int | None) -> None:
        super().__init__(bug)
        self.owner = owner


def classify(error: Exception) -> FailureKind:
    """Return the kind of a failure: transient, unless it is known to be another."""
    match error:
        case HandlerError():
            return FailureKind.BUG
        case asyncpg.PostgresError() if str(error.sqlstate)[:2] in DATA_ERROR_CLASSES:
            return FailureKind.BUG
        case RepeatedBugError():
            return FailureKind.REPEATED
        case _:
            return FailureKind.TRANSIENT


class Applier:
    """Applies batches: all commands at once, or one by one to find the one at fault."""

    def __init__(self, connections: Connections, options: ApplyOptions = DEFAULTS) -> None:
        self._connections = connections
        self._options = options
        self._cache = Cache(IDS_AHEAD)
        self.process_id = uuid4()
        self._last_bug: str | None = None
        self._suspects: set[UUID] = set()
        """The commands of the batches that failed with that bug; if others succeed, its cause is in one of these."""
        self._slow_attempts = Counter[UUID]()
        """How often each command has taken too long although it was alone."""

    def clear_cache(self) -> None:
        """Forget owners and ids, because another worker may have written meanwhile."""
        self._cache.clear()

    async def apply(self, batch: Sequence[Command | BadCommand]) -> list[Outcome]:
        """Return the committed outcome of each command, in order.

        Raises RepeatedBugError, or the exception of a transient failure; then the batch can be applied again.
        """
        try:
            outcomes = await apply_batch(self._connections, batch, self._options, self._cache)
        except Exception as error:
            if classify(error) is not FailureKind.BUG:
                raise
            self._suspects.update(command.id for command in batch)
            return await self._apply_one_by_one(batch)
        if not self._suspects.issuperset(command.id for command in batch):
            self._forget_bug()
        return outcomes

    async def apply_isolated(self, batch: Sequence[Command | BadCommand]) -> list[Outcome]:
        """Like `apply`, but one by one and with marks, for a message that was returned often: it may crash its workers.

        A command fails once MAX_CRASHES processes have tried it and crashed before they stored its outcome. Transient
        failures do not count, because the process survives them; but a command that was too slow MAX_SLOW_ATTEMPTS
        times, while Postgres was not, fails as well.
        """
        outcomes = []
        for command in batch:
            with log_context(command):
                if await mark_attempt(self._connections, command.id, self.process_id) >= MAX_CRASHES:
                    outcomes.append(await self._give_up(command, "worker_killed"))
                elif self._slow_attempts[command.id] >= MAX_SLOW_ATTEMPTS:
                    outcomes.append(await self._give_up(command, "too_slow"))
                else:
                    outcomes += await self._survive(command)
                del self._slow_attempts[command.id]
        await clear_marks(self._connections, [command.id for command in batch])
        return outcomes

    async def find_locked(self, batch: Sequence[Command | BadCommand]) -> set[int]:
        """Return the owners with rows locked by another session; none if Postgres is unavailable."""
        with suppress(*CONNECTION_ERRORS, TimeoutError):
            return await find_locked(self._connections, batch)
        return set()

    async def _apply_alone(self, command: Command | BadCommand, seconds: float | None = None) -> list[Outcome]:
        return await apply_in_transaction(self._connections, [command], self._options, self._cache, seconds)

    async def _survive(self, command: Command | BadCommand) -> list[Outcome]:
        started = elapsed_seconds()
        seconds = SLOW_SECONDS if self._slow_attempts[command.id] else TIMEOUT_SECONDS
        try:
            return await self._apply_one_by_one([command], seconds)
        except BaseException as error:  # even a cancellation: the process has survived
            ended = elapsed_seconds()
            with suppress(Exception):
                await unmark_attempt(self._connections, command.id, self.process_id)
                is_late = isinstance(error, DEADLINE_ERRORS) and ended - started > 0.8 * seconds
                if is_late and elapsed_seconds() - ended < CONTROL_SECONDS:
                    self._slow_attempts[command.id] += 1
            raise

    async def _give_up(self, command: Command | BadCommand, reason: str) -> Outcome:
        try:
            outcome = await record_failure(self._connections, command, reason)
        except ConflictError:  # it has an outcome already; only the acknowledgement was lost
            return (await self._apply_alone(command))[0]
        log.error(
            "command failed and is kept as a dead letter: it crashed every worker, or was too slow, each time; "
            "its neighbors are applied",
            reason=reason,
        )
        return outcome

    async def _apply_one_by_one(
        self, batch: Sequence[Command | BadCommand], seconds: float | None = None
    ) -> list[Outcome]:
        outcomes = []
        for command in batch:
            with log_context(command):
                try:
                    outcomes += await self._apply_alone(command, seconds)
                except Exception as error:
                    if classify(error) is not FailureKind.BUG:
                        raise
                    outcomes.append(await self._fail(command, error))
        return outcomes

    def _forget_bug(self) -> None:
        self._last_bug = None
        self._suspects.clear()
        PAUSED.labels("repeated_bug").set(0)

    async def _fail(self, command: Command | BadCommand, error: Exception) -> Outcome:
        bug = _bug_key(error)
        is_replay = replayed_at(command) is not None  # an operator may replay many letters that fail in the same way
        if bug == self._last_bug and not is_replay:
            envelope = find_envelope(command)
            raise RepeatedBugError(bug, envelope.owner if envelope else None)
        outcome = await record_failure(self._connections, command, _reason(error))
        self._last_bug = self._last_bug if is_replay else bug
        log.error(
            "command failed and is kept as a dead letter; its neighbors are applied",
            reason=outcome.reason,
            error=describe(error),
            stack=_stack(error),
        )
        return outcome


def log_context(command: Command | BadCommand) -> AbstractContextManager[None]:
    """Add the command's id and trace to the log lines of the block."""
    envelope = find_envelope(command)
    return bind_command(command.id, envelope.traceparent if envelope else None)


def _stack(error: Exception) -> str | None:
    """Return a handler's traceback, without the exception's message, which may quote user content."""
    return "".join(format_tb(error.__cause__.__traceback__)) if error.__cause__ else None


def _reason(error: Exception) -> str:
    return "handler_error" if isinstance(error, HandlerError) else "data_error"


def _bug_key(error: Exception) -> str:
    """Return a key that failures with the same cause share."""
    cause = error.__cause__ or error if isinstance(error, HandlerError) else error
    return f"{type(cause).__name__} {getattr(cause, 'sqlstate', None)}"


def describe(error: Exception) -> str:
    """Describe the failure in one line; a handler's exception by its class only, as its text may quote user content."""
    return type(error.__cause__ or error).__name__ if isinstance(error, HandlerError) else errors.describe_error(error)
