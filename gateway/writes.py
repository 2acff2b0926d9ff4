"""A write from the request to its answer: build the command, publish it, wait for its outcome, say what happened."""

import asyncio
import hashlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from uuid import UUID, uuid4

from fastapi import Request, Response
from pydantic import BaseModel

from gateway.conditions import etag
from gateway.dependencies import Gateway, gateway_of, owner_of
from gateway.errors import ProblemError, problem_of
from gateway.idempotency import IDEMPOTENCY_KEY, command_id
from gateway.preferences import PREFER, Preferences
from gateway.publisher import NotAcceptedError, OverloadedError, UnconfirmedError
from gateway.queries import DatabaseUnavailableError
from gateway.replies import Attempt
from gateway.schemas import CommandState
from gateway.settings import GatewaySettings
from shared.contracts import Command, Outcome, OutcomeStatus, outcome_for

IMPLICIT_CREDENTIALS_VERSION = 1
LOOK_UP_TIMEOUT_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 5


async def perform(request: Request, model: type[Command], data: BaseModel) -> Response:
    """Publishes the request's command and answers with its outcome, or 202 where none is known within the wait.

    Raises ProblemError 503 `not_accepted` or `overloaded` where it certainly has no effect, and 504 `unconfirmed`
    where nobody can tell.
    """
    gateway, preferences = gateway_of(request), PREFER.of(request)
    key = IDEMPOTENCY_KEY.of(request)
    command = new_command(request, model, data, key)
    wait_seconds = patience(gateway, preferences)
    wait_ends = asyncio.get_running_loop().time() + wait_seconds
    with gateway.replies.expected(command) as attempt:
        await publish(gateway, attempt, may_repeat=key is not None)
        outcome = await outcome_of(gateway, attempt, wait_ends) if wait_seconds else None
    if outcome is None:
        return accepted(gateway, command, preferences)
    url = partial(gateway.command_urls.url, command, confirmed=True)
    return answer(outcome, command.attempt_id, url, preferences)


def new_command(request: Request, model: type[Command], data: BaseModel, key: str | None) -> Command:
    """The command that the request is, issued now."""
    gateway, owner = gateway_of(request), owner_of(request)
    note_id = getattr(data, "note_id", None)
    return model(
        id=command_id(owner, model.model_fields["type"].default, note_id, key),
        time=datetime.now(UTC),
        owner=owner,
        credentials_version=IMPLICIT_CREDENTIALS_VERSION,
        fingerprint=fingerprint(gateway.settings, data, request.scope["query_string"]),
        attempt_id=uuid4(),
        data=data,
    )


def fingerprint(settings: GatewaySettings, data: BaseModel, query: bytes) -> str:
    """A keyed hash of what the request asks for; without the key nobody can guess the request from it.

    Gateways of different versions must agree on it, or a retry that meets the other one is refused.
    """
    key = settings.fingerprint_key.get_secret_value().encode()
    asked = data.model_dump_json(exclude_none=True).encode() + b"?" + query
    return hashlib.blake2b(asked, digest_size=16, key=key[:64]).hexdigest()


def patience(gateway: Gateway, preferences: Preferences) -> float:
    """How many seconds to wait for the outcome; none while there is no room for waiting, or no time."""
    if gateway.draining.is_set() or gateway.replies.waiting >= gateway.settings.waiters_limit:
        return 0.0
    return preferences.wait_or(gateway.settings.wait_seconds)


async def publish(gateway: Gateway, attempt: Attempt, *, may_repeat: bool) -> None:
    """Returns when the broker has confirmed the attempt, or its outcome came first; raises as `perform`."""
    try:
        await gateway.publisher.publish(attempt)
    except OverloadedError:
        raise overloaded() from None
    except NotAcceptedError:
        raise not_accepted() from None
    except UnconfirmedError:
        url = gateway.command_urls.url(attempt.command, confirmed=False)
        raise unconfirmed(url, may_repeat=may_repeat) from None


async def outcome_of(gateway: Gateway, attempt: Attempt, deadline: float) -> Outcome | None:
    """What the reply says; without one in time, what one look finds committed."""
    try:
        async with asyncio.timeout_at(deadline):
            outcome = await attempt.decided
    except TimeoutError:
        outcome = None
    return outcome or await look_up(gateway, attempt.command)


async def look_up(gateway: Gateway, command: Command) -> Outcome | None:
    """One look at what is committed; None also where Postgres does not answer at once."""
    try:
        async with asyncio.timeout(LOOK_UP_TIMEOUT_SECONDS):
            outcome = await gateway.queries.find_outcome(command.owner, command.id)
    except (TimeoutError, DatabaseUnavailableError):
        return None
    return outcome and outcome_for(command.fingerprint, outcome)


def answer(
    outcome: Outcome, attempt_id: UUID, command_url: Callable[[], str], preferences: Preferences | None = None
) -> Response:
    """The response that a committed outcome is to one of the attempts at it."""
    headers: dict[str, str] = {}
    if outcome.attempt_id not in (None, attempt_id):
        headers["Idempotent-Replayed"] = "true"
    if outcome.note_version is not None and outcome.status is not OutcomeStatus.FAILED:
        headers["ETag"] = etag(outcome.note_version)
    if outcome.status is not OutcomeStatus.APPLIED:
        return problem_of(outcome, command_url, headers).response()
    if outcome.http_status == HTTPStatus.CREATED:
        headers["Location"] = f"/notes/{outcome.note_id}"
    return applied(outcome, headers, preferences or Preferences())


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


def not_accepted() -> ProblemError:
    """503: the write has had no effect and never will."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not_accepted",
        "The broker did not take the write; it has no effect and can be repeated freely",
        headers=retry_after(),
    )


def overloaded() -> ProblemError:
    """503: as `not_accepted`, because too much waits already."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "overloaded",
        "Too many writes wait already; this one has no effect and can be repeated freely, later",
        headers=retry_after(),
    )


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


def retry_after() -> dict[str, str]:
    """Seconds until a retry is welcome; drawn, so that the refused do not all come back at once."""
    return {"Retry-After": str(random.randint(1, MAX_RETRY_AFTER_SECONDS))}  # noqa: S311 - keeps no secret
