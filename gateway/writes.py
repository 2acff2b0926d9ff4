"""A write from the request to its answer: build the command, publish it, wait for its outcome, say what happened."""

import asyncio
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import get_args
from uuid import UUID, uuid4

from fastapi import Request, Response
from pydantic import BaseModel

from gateway.caller import EVERY_SCOPE
from gateway.conditions import etag
from gateway.dependencies import Gateway, caller_of, gateway_of
from gateway.errors import IDEMPOTENT_REPLAYED, ProblemError, overloaded, problem_of, retry_after
from gateway.idempotency import IDEMPOTENCY_KEY, command_id
from gateway.metrics import NOT_ACCEPTED
from gateway.preferences import DEFAULTS, PREFER, Preferences
from gateway.publisher import NotAcceptedError, OverloadedError, TooLargeError, UnconfirmedError
from gateway.queries import DatabaseUnavailableError
from gateway.replies import Attempt
from gateway.schemas import CommandState
from gateway.settings import GatewaySettings
from gateway.traces import publishing
from shared.contracts import (
    MAX_COMMAND_BYTES,
    NOBODY,
    Command,
    NoteCommand,
    Outcome,
    OutcomeStatus,
    Scope,
    outcome_for,
)
from shared.telemetry import identify_lines
from shared.tracing import Step

LOOK_UP_TIMEOUT_SECONDS = 1.0
KEY_LOOK_UP_TIMEOUT_SECONDS = 0.4
"""Follows the publish timeout, and has to fit into the second by which an answer may exceed its deadline."""
REPEAT_FREELY = "Repeat it as often as you like"
REPEAT_WITH_KEY = "An earlier one with the key may have one: repeat it with the same key, never as a new write"
ABOUT_NOTES = frozenset(model.model_fields["type"].default for model in get_args(NoteCommand))
"""The command types that write notes; the others write accounts."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which command a request is."""

    owner: int
    credentials_version: int
    command_id: UUID
    is_repeatable: bool
    """Whether the request carries a key, so that its repetition is the same command."""
    scopes: frozenset[Scope]
    """The scopes of the request's credentials."""
    issued_at: datetime
    may_expire: bool
    """Whether `issued_at` is Postgres' time."""


def identify(
    request: Request, model: type[Command], target: int | str | None = None, scope: str | None = None
) -> Identity:
    """The identity of the caller's command about the target, or of nobody's in a scope of its own."""
    key, command_type = IDEMPOTENCY_KEY.of(request), model.model_fields["type"].default
    clock = gateway_of(request).clock
    when = clock.now(), clock.is_synchronized
    if scope is not None:
        return Identity(NOBODY, 0, command_id(scope, command_type, target, key), key is not None, EVERY_SCOPE, *when)
    caller = caller_of(request)
    made = command_id(caller.owner, command_type, target, key)
    return Identity(caller.owner, caller.credentials_version, made, key is not None, caller.scopes, *when)


@dataclass(frozen=True, slots=True)
class Recipient:
    """The client that an answer is for."""

    scopes: Collection[Scope]
    """Without the scope to read a resource, the answer omits it."""
    prefix: str
    """The `root_path`, which every path begins with."""
    preferences: Preferences = DEFAULTS


def as_it_is(outcome: Outcome) -> Outcome:
    """The outcome."""
    return outcome


async def perform(
    request: Request,
    model: type[Command],
    data: BaseModel,
    identity: Identity | None = None,
    shown: Callable[[Outcome], Outcome] = as_it_is,
) -> Response:
    """Publishes the request's command and answers with its outcome, or 202 where none is known within the wait.

    Raises ProblemError 503 `not_accepted` or `overloaded` if this request certainly has no effect, and 504
    `unconfirmed` if that is unknown; if an earlier request with the key has an outcome, answers with that instead.
    """
    gateway, preferences = gateway_of(request), PREFER.of(request)
    identity = identity or identify(request, model, getattr(data, "note_id", None))
    step = publishing(gateway.settings, identity.owner, identity.command_id, model)
    command = new_command(request, model, data, identity, step.traceparent)
    identify_lines(command_id=str(command.id))
    wait_seconds = patience(gateway, preferences)
    wait_ends = asyncio.get_running_loop().time() + wait_seconds
    with gateway.replies.expected(command) as attempt:
        outcome = await publish(gateway, attempt, step, is_repeatable=identity.is_repeatable)
        if gateway.draining.is_set():  # since the wait was chosen
            wait_ends = 0.0
        if outcome is None and wait_seconds:
            outcome = await outcome_of(gateway, attempt, wait_ends)
    if outcome is None:
        return accepted(gateway, command, preferences.kept(wait_seconds))
    url = partial(gateway.command_urls.url, command, confirmed=True)
    recipient = Recipient(identity.scopes, gateway.settings.prefix, preferences)
    return answer(shown(outcome), command.attempt_id, url, recipient)


def new_command(
    request: Request, model: type[Command], data: BaseModel, identity: Identity, traceparent: str | None
) -> Command:
    """The command that the request is."""
    return model(
        id=identity.command_id,
        time=identity.issued_at,
        may_expire=identity.may_expire or None,
        owner=identity.owner,
        credentials_version=identity.credentials_version,
        fingerprint=fingerprint(gateway_of(request).settings, data, request.scope["query_string"]),
        attempt_id=uuid4(),
        traceparent=traceparent,
        data=data,
    )


def fingerprint(settings: GatewaySettings, data: BaseModel, query: bytes) -> str:
    """A keyed hash of what the request asks for; without the key nobody can guess the request from it.

    Gateways of different versions must agree on it, or a retry that meets the other one is refused. The digest of a
    personal token is not what the client asks for, and another one with each repetition.
    """
    key = settings.fingerprint_key.get_secret_value().encode()
    asked = data.model_dump_json(exclude_none=True, exclude={"secret_digest"}).encode() + b"?" + query
    return hashlib.blake2b(asked, digest_size=16, key=key[:64]).hexdigest()


def patience(gateway: Gateway, preferences: Preferences) -> float:
    """How many seconds to wait for the outcome; none while there is no room for waiting, or no time."""
    if gateway.draining.is_set() or gateway.replies.waiting >= gateway.settings.waiters_limit:
        return 0.0
    return preferences.wait_or(gateway.settings.wait_seconds)


async def publish(gateway: Gateway, attempt: Attempt, step: Step, *, is_repeatable: bool) -> Outcome | None:
    """Returns when the broker has confirmed the attempt, or its outcome came first; raises as `perform`.

    If the publish is not confirmed, returns the outcome of an earlier request with the same key, if there is one.
    """
    try:
        with step:
            await gateway.publisher.publish(attempt)
    except (NotAcceptedError, UnconfirmedError) as error:
        if is_repeatable and (outcome := await look_up(gateway, attempt.command, KEY_LOOK_UP_TIMEOUT_SECONDS)):
            return outcome
        problem = build_publish_problem(gateway, attempt.command, error, is_repeatable=is_repeatable)
        NOT_ACCEPTED.labels(problem.problem.code).inc()
        raise problem from None
    return None


def build_publish_problem(
    gateway: Gateway, command: Command, error: NotAcceptedError | UnconfirmedError, *, is_repeatable: bool
) -> ProblemError:
    """The problem for a write that the broker did not accept, or may not have accepted."""
    match error:
        case TooLargeError():
            return too_large()
        case OverloadedError():
            return overloaded(REPEAT_WITH_KEY if is_repeatable else REPEAT_FREELY)
        case NotAcceptedError():
            return not_accepted(REPEAT_WITH_KEY if is_repeatable else REPEAT_FREELY)
        case UnconfirmedError():
            return unconfirmed(gateway.command_urls.url(command, confirmed=False), may_repeat=is_repeatable)


async def outcome_of(gateway: Gateway, attempt: Attempt, deadline: float) -> Outcome | None:
    """What the reply says; without one in time, what one look finds committed."""
    try:
        async with asyncio.timeout_at(deadline):
            outcome = await attempt.decided
    except TimeoutError:
        outcome = None
    return outcome or await look_up(gateway, attempt.command)


async def look_up(
    gateway: Gateway, command: Command, timeout_seconds: float = LOOK_UP_TIMEOUT_SECONDS
) -> Outcome | None:
    """One look at what is committed; None also where Postgres does not answer at once."""
    try:
        async with asyncio.timeout(timeout_seconds):
            outcome = await gateway.queries.find_outcome(command.owner, command.id)
    except (TimeoutError, DatabaseUnavailableError):
        return None
    return outcome and outcome_for(command.fingerprint, outcome)


def answer(outcome: Outcome, attempt_id: UUID, command_url: Callable[[], str], recipient: Recipient) -> Response:
    """The response that a committed outcome is to one of the attempts at it."""
    headers: dict[str, str] = {}
    if outcome.attempt_id not in (None, attempt_id):
        headers[IDEMPOTENT_REPLAYED] = "true"
    if outcome.note_version is not None and outcome.status is not OutcomeStatus.FAILED:
        headers["ETag"] = etag(outcome.note_version)
    if outcome.status is not OutcomeStatus.APPLIED:
        return problem_of(outcome, command_url, headers).response()
    if outcome.http_status == HTTPStatus.CREATED:
        headers["Location"] = recipient.prefix + location(outcome)
    preferences = recipient.preferences
    if not may_read(recipient.scopes, outcome):
        preferences = preferences.without_representation()
        outcome = outcome.model_copy(update={"body": None})
    return applied(outcome, headers, preferences)


def may_read(scopes: Collection[Scope], outcome: Outcome) -> bool:
    """Whether credentials with these scopes may read what the command has written."""
    return (Scope.READ if outcome.type in ABOUT_NOTES else Scope.ACCOUNT) in scopes


def location(outcome: Outcome) -> str:
    """The path of the created resource, without the prefix."""
    match outcome.type:
        case "user.register":
            return "/users/me"
        case "token.create":
            return f"/auth/tokens/{outcome.id}"
        case _:
            return f"/notes/{outcome.note_id}"


def applied(outcome: Outcome, headers: dict[str, str], preferences: Preferences) -> Response:
    """A write that has happened, with as much of a body as the client prefers."""
    headers |= preferences.applied_to(outcome.http_status)
    if preferences.minimal or not outcome.body:
        empty = HTTPStatus.NO_CONTENT if outcome.http_status == HTTPStatus.OK else outcome.http_status
        return Response(None, empty, headers)
    return Response(outcome.body, outcome.http_status, headers, media_type="application/json")


def accepted(gateway: Gateway, command: Command, preferences: Preferences) -> Response:
    """202: the broker has the command, and it will reach its outcome."""
    state = CommandState(id=command.id, issued_at=command.time, status="pending")
    headers = {"Location": gateway.command_urls.url(command, confirmed=True), "Retry-After": "1"}
    headers |= preferences.applied_to(HTTPStatus.ACCEPTED)
    return Response(state.model_dump_json(), HTTPStatus.ACCEPTED, headers, media_type="application/json")


def too_large() -> ProblemError:
    """413: the write's command exceeds the broker's message limit."""
    detail = f"The write takes more than {MAX_COMMAND_BYTES} bytes as a command"
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", detail)


def not_accepted(advice: str) -> ProblemError:
    """503: this request has had no effect and never will."""
    detail = f"The broker did not accept the write: this request has no effect. {advice}"
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "not_accepted", detail, headers=retry_after())


def unconfirmed(command_url: str, *, may_repeat: bool) -> ProblemError:
    """504: the broker may have the write; Retry-After only with a key, since repeating it without might write twice."""
    return ProblemError(
        HTTPStatus.GATEWAY_TIMEOUT,
        "unconfirmed",
        "The broker has not confirmed the write in time; repeat it with the same Idempotency-Key, or ask the command's "
        "URL what became of it",
        headers=retry_after() if may_repeat else None,
        command=command_url,
    )
