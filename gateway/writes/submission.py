"""Handles a write from request to response: builds the command, publishes it, awaits its outcome."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from uuid import UUID, uuid4

from pydantic import BaseModel
from uuid_utils.compat import uuid7

from gateway.auth.keys import KeyedHashes
from gateway.caller import EVERY_SCOPE, Caller
from gateway.http.idempotency import IDEMPOTENCY_KEY, build_command_id
from gateway.http.openapi import describe_response
from gateway.http.prefer import PREFER, Preferences
from gateway.http.requests import OpenApi, Request
from gateway.http.responses import Response
from gateway.problems import (
    BODY_TOO_LARGE,
    COMMAND_FAILED,
    DISCARDED,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_KEY_SPENT,
    NOT_ACCEPTED,
    OVERLOADED,
    UNCONFIRMED,
    ProblemError,
    build_retry_after,
)
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import UNPUBLISHED
from gateway.telemetry.tracing import start_publish_span
from gateway.writes.command_urls import CommandUrls
from gateway.writes.outcomes import IDEMPOTENT_REPLAYED, Recipient, build_problem, build_response
from gateway.writes.publisher import (
    NotAcceptedError,
    OverloadedError,
    Publisher,
    TooLargeError,
    UnconfirmedError,
)
from gateway.writes.replies import Attempt, Replies
from gateway.writes.states import CommandState
from shared.clock import Clock
from shared.contracts import (
    MAX_COMMAND_BYTES,
    NO_OWNER,
    ChangeNotes,
    Command,
    NoteItems,
    NoteTarget,
    Outcome,
    OutcomeStatus,
    RegisterUser,
)
from shared.logs import bind_ids
from shared.tracing import Span

LOOK_UP_TIMEOUT_SECONDS = 1.0
"""How long one look at Postgres for an outcome may take."""
KEY_LOOK_UP_TIMEOUT_SECONDS = 0.4
"""The same after a failed publish: the publish timeout is over, and the response may be at most a second late."""
IMPORT_WAIT_SECONDS = 30.0
"""How long an import chunk waits for its outcome; longer than a restart of Postgres takes."""
REPLY_WAIT_SECONDS = 5.0
"""How long an import chunk waits for the reply before it looks for the outcome."""
LOOK_UP_INTERVAL_SECONDS = 1.0
"""How often it looks from then on."""
REPEAT_FREELY = "It is safe to repeat"
REPEAT_WITH_KEY = "An earlier request with the key may have one: repeat it with the same key, never as a new write"
WRITE_PROBLEMS = (
    DISCARDED,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_KEY_SPENT,
    COMMAND_FAILED,
    NOT_ACCEPTED,
    OVERLOADED,
    UNCONFIRMED,
)
"""The problems that any write may end in."""
WRITE_READERS = (PREFER, IDEMPOTENCY_KEY)
"""The readers of every write."""
WRITE_HEADERS = ("Preference-Applied", "Idempotent-Replayed")
"""The headers of a response to an applied write."""
ACCEPTED_RESPONSE: dict[int, OpenApi] = {
    202: describe_response(
        "Accepted; it will be applied, and its outcome will be at `Location`",
        "Location",
        "Retry-After",
        "Preference-Applied",
        model=CommandState,
    )
}
"""The response to a write whose outcome is not awaited."""
DELETE_RESPONSES = {204: describe_response("Deleted", *WRITE_HEADERS)} | ACCEPTED_RESPONSE
"""The responses to a deletion."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a request's command."""

    caller: Caller
    command_id: UUID
    is_repeatable: bool
    """Whether the request has a key, so that its repetition is the same command."""
    issued_at: datetime
    may_expire: bool
    """Whether `issued_at` is Postgres' time."""


REGISTRANT = Caller(NO_OWNER, credentials_version=0, scopes=EVERY_SCOPE)


class Submission:
    """Submits writes."""

    def __init__(  # noqa: PLR0913 - called in one place
        self,
        *,
        settings: GatewaySettings,
        clock: Clock,
        publisher: Publisher,
        replies: Replies,
        queries: Queries,
        command_urls: CommandUrls,
        keyed_hashes: KeyedHashes,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._publisher = publisher
        self._replies = replies
        self._queries = queries
        self._command_urls = command_urls
        self._keyed_hashes = keyed_hashes

    def identify(self, request: Request, model: type[Command], target: int | str | None = None) -> Identity:
        """Return the identity of the caller's command on the target."""
        caller = request.caller
        key = request[IDEMPOTENCY_KEY]
        return self._build_identity(caller, build_command_id(caller.owner, model.type_name(), target, key), key)

    def identify_registration(self, request: Request, namespace: str) -> Identity:
        """Return the identity of a registration, which has no owner; its key is unique within the namespace."""
        key = request[IDEMPOTENCY_KEY]
        return self._build_identity(REGISTRANT, build_command_id(namespace, RegisterUser.type_name(), None, key), key)

    def _build_identity(self, caller: Caller, command_id: UUID, key: str | None) -> Identity:
        return Identity(caller, command_id, key is not None, self._clock.now(), self._clock.is_synchronized)

    async def publish(self, caller: Caller, model: type[Command], data: BaseModel) -> None:
        """Publish a command on the gateway's own initiative; raises NotAcceptedError or UnconfirmedError."""
        identity = self._build_identity(caller, uuid7(), None)
        with self._replies.expect(self._build_command(model, data, identity)) as attempt:
            await self._publisher.publish(attempt)

    async def import_notes(self, caller: Caller, items: NoteItems, first_line: int, key: str | None) -> str | None:
        """Create the notes of an import chunk, and wait for the outcome for at most IMPORT_WAIT_SECONDS.

        With a key, the same chunk has one effect, however often it is imported. Returns None once the notes exist,
        or the command's URL if the outcome is still pending. Raises ProblemError as `perform`, or with the problem of
        the outcome.
        """
        command_id = build_command_id(caller.owner, ChangeNotes.type_name(), first_line, key)
        identity = self._build_identity(caller, command_id, key)
        span = start_publish_span(self._publisher.topology, caller.owner, command_id, ChangeNotes)
        # Version 2, because an older worker would ignore `created_date`: at 2 it pauses instead.
        command = self._build_command(ChangeNotes, items, identity, traceparent=span.traceparent, dataversion=2)
        outcome = await self._look_up(command) if key else None  # a repeated import costs no messages
        if outcome is None:
            with self._replies.expect(command) as attempt:
                outcome = await self._publish(attempt, span, is_repeatable=key is not None)
                outcome = outcome or await self._await_import(attempt)
        url = partial(self._command_urls.url, command, confirmed=True)
        if outcome is None:
            return url()
        if outcome.status is not OutcomeStatus.APPLIED:
            is_earlier = outcome.attempt_id not in (None, command.attempt_id)
            raise build_problem(outcome, url, {IDEMPOTENT_REPLAYED: "true"} if is_earlier else {})
        return None

    async def _await_import(self, attempt: Attempt) -> Outcome | None:
        """Return the outcome; looks it up every second after REPLY_WAIT_SECONDS, as while Postgres restarts."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + IMPORT_WAIT_SECONDS
        outcome = await self._await_outcome(attempt, loop.time() + REPLY_WAIT_SECONDS)
        while outcome is None and loop.time() < deadline and not self._replies.draining:
            await asyncio.sleep(LOOK_UP_INTERVAL_SECONDS)
            outcome = await self._look_up(attempt.command)
        return outcome

    async def perform(
        self,
        request: Request,
        model: type[Command],
        data: BaseModel,
        identity: Identity | None = None,
        reveal: Callable[[Outcome], Outcome] | None = None,
    ) -> Response:
        """Publish the request's command and answer with its outcome, or 202 if none arrives before the wait ends.

        `reveal` adds to the outcome what the worker does not know, such as a token's secret. Raises ProblemError 503
        `not_accepted` or `overloaded` if this request certainly had no effect, and 504 `unconfirmed` if that is
        unknown; if an earlier request with the key has an outcome, answers with that instead.
        """
        preferences = request[PREFER]
        target = data.note_id if isinstance(data, NoteTarget) else None
        identity = identity or self.identify(request, model, target)
        span = start_publish_span(self._publisher.topology, identity.caller.owner, identity.command_id, model)
        command = self._build_command(model, data, identity, request.query, span.traceparent)
        bind_ids(command_id=str(command.id))
        wait_seconds = self.choose_wait(preferences)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        with self._replies.expect(command) as attempt:
            outcome = await self._publish(attempt, span, is_repeatable=identity.is_repeatable)
            if outcome is None and wait_seconds:
                outcome = await self._await_outcome(attempt, deadline)
        if outcome is None:
            return self._accept(command, preferences.honor_wait(wait_seconds))
        url = partial(self._command_urls.url, command, confirmed=True)
        recipient = Recipient(identity.caller.scopes, self._settings.prefix, preferences)
        return build_response(reveal(outcome) if reveal else outcome, command.attempt_id, url, recipient)

    def choose_wait(self, preferences: Preferences) -> float:
        """Return how many seconds to wait for an outcome; 0 while the gateway drains or too many requests wait."""
        if self._replies.draining or self._replies.waiting >= self._settings.waiters_limit:
            return 0.0
        return preferences.wait_or(self._settings.wait_seconds)

    def _build_command(
        self,
        model: type[Command],
        data: BaseModel,
        identity: Identity,
        query: bytes = b"",
        traceparent: str | None = None,
        **members: int,
    ) -> Command:
        return model(
            **members,
            id=identity.command_id,
            time=identity.issued_at,
            may_expire=identity.may_expire or None,
            owner=identity.caller.owner,
            credentials_version=identity.caller.credentials_version,
            fingerprint=self._keyed_hashes.fingerprint(data, query),
            attempt_id=uuid4(),
            traceparent=traceparent,
            data=data,
        )

    async def _publish(self, attempt: Attempt, span: Span, *, is_repeatable: bool) -> Outcome | None:
        """Publish the attempt and wait for the confirm or the outcome; raises as `perform`.

        If the publish is not confirmed, returns the outcome of an earlier request with the same key, if there is one.
        """
        try:
            with span:
                await self._publisher.publish(attempt)
        except (NotAcceptedError, UnconfirmedError) as error:
            if is_repeatable and (outcome := await self._look_up(attempt.command, KEY_LOOK_UP_TIMEOUT_SECONDS)):
                return outcome
            problem = self._build_problem(attempt.command, error, is_repeatable=is_repeatable)
            UNPUBLISHED.labels(problem.kind.code).inc()
            raise problem from None
        return None

    def _build_problem(
        self, command: Command, error: NotAcceptedError | UnconfirmedError, *, is_repeatable: bool
    ) -> ProblemError:
        """Return the problem for a write that the broker did not accept, or may not have accepted."""
        advice = REPEAT_WITH_KEY if is_repeatable else REPEAT_FREELY
        match error:
            case TooLargeError():
                return ProblemError(BODY_TOO_LARGE, f"The write's command is larger than {MAX_COMMAND_BYTES} bytes")
            case OverloadedError():
                detail = f"Too many requests are waiting: this one has no effect. {advice}"
                return ProblemError(OVERLOADED, detail, headers=build_retry_after())
            case NotAcceptedError():
                detail = f"The broker did not accept the write: this request has no effect. {advice}"
                return ProblemError(NOT_ACCEPTED, detail, headers=build_retry_after())
            case UnconfirmedError():  # Retry-After only with a key: repeating it without one might write twice
                headers = build_retry_after() if is_repeatable else None
                url = self._command_urls.url(command, confirmed=False)
                return ProblemError(UNCONFIRMED, headers=headers, command=url)

    async def _await_outcome(self, attempt: Attempt, deadline: float) -> Outcome | None:
        """Return the outcome from the reply or, without one in time, from one look-up."""
        try:
            # While the gateway drains, a deadline in the past: only a reply that is already here counts.
            async with asyncio.timeout_at(0.0 if self._replies.draining else deadline):
                outcome = await attempt.decided
        except TimeoutError:
            outcome = None
        return outcome or await self._look_up(attempt.command)

    async def _look_up(self, command: Command, timeout_seconds: float = LOOK_UP_TIMEOUT_SECONDS) -> Outcome | None:
        """Return what the attempt gets; None if there is no outcome, or Postgres does not answer in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._queries.find_outcome(command)
        except (TimeoutError, DatabaseUnavailableError):
            return None

    def _accept(self, command: Command, preferences: Preferences) -> Response:
        """Return a 202: the broker has the command, which will reach its outcome."""
        state = CommandState(id=command.id, issued_at=command.time, status="pending")
        headers = {"Location": self._command_urls.url(command, confirmed=True), "Retry-After": "1"}
        headers |= preferences.build_header(HTTPStatus.ACCEPTED)
        return Response(state.model_dump_json(), HTTPStatus.ACCEPTED, headers)
