"""A write from the request to its answer: build the command, publish it, wait for its outcome, say what happened."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from uuid import uuid4

from fastapi import Request, Response
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from gateway.dependencies import Gateway, gateway_of, owner_of
from gateway.errors import ProblemError, problem_of
from gateway.publisher import NotAcceptedError, UnconfirmedError
from gateway.queries import DatabaseUnavailableError
from gateway.replies import Attempt
from gateway.schemas import CommandState
from shared.contracts import Command, Outcome, OutcomeStatus

IMPLICIT_CREDENTIALS_VERSION = 1
LOOK_UP_TIMEOUT_SECONDS = 1.0


def new_command(gateway: Gateway, owner: int, model: type[Command], data: BaseModel) -> Command:
    """A command of the owner, issued now."""
    return model(
        id=uuid7(),
        time=datetime.now(UTC),
        owner=owner,
        credentials_version=IMPLICIT_CREDENTIALS_VERSION,
        fingerprint=fingerprint(gateway, data),
        attempt_id=uuid4(),
        data=data,
    )


def fingerprint(gateway: Gateway, data: BaseModel) -> str:
    """A keyed hash of what the request asks for; without the key nobody can guess the request from it."""
    key = gateway.settings.fingerprint_key.get_secret_value().encode()
    return hashlib.blake2b(data.model_dump_json().encode(), digest_size=16, key=key[:64]).hexdigest()


async def perform(request: Request, model: type[Command], data: BaseModel) -> Response:
    """Publishes the request's command and answers with its outcome, or 202 where none is known within the wait.

    Raises ProblemError 503 `not_accepted` where it certainly has no effect and 504 `unconfirmed` where nobody
    can tell.
    """
    gateway = gateway_of(request)
    command = new_command(gateway, owner_of(request), model, data)
    wait_seconds = 0.0 if gateway.draining.is_set() else gateway.settings.wait_seconds
    wait_ends = asyncio.get_running_loop().time() + wait_seconds
    with gateway.replies.expected(command) as attempt:
        await publish(gateway, attempt)
        outcome = await outcome_of(gateway, attempt, wait_ends) if wait_seconds else None
    if outcome is None:
        return accepted(gateway, command)
    return answer(outcome, partial(gateway.command_urls.url, command, confirmed=True))


async def publish(gateway: Gateway, attempt: Attempt) -> None:
    """Returns when the broker has confirmed the attempt, or its outcome came first; raises as `perform`."""
    try:
        await gateway.publisher.publish(attempt)
    except NotAcceptedError:
        raise not_accepted() from None
    except UnconfirmedError:
        raise unconfirmed(gateway.command_urls.url(attempt.command, confirmed=False)) from None


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
            return await gateway.queries.find_outcome(command.owner, command.id)
    except (TimeoutError, DatabaseUnavailableError):
        return None


def answer(outcome: Outcome, command_url: Callable[[], str]) -> Response:
    """The response that a committed outcome is; only few of them need the command's URL."""
    if outcome.status is not OutcomeStatus.APPLIED:
        return problem_of(outcome, command_url()).response()
    headers = {"Location": f"/notes/{outcome.note_id}"} if outcome.http_status == HTTPStatus.CREATED else None
    return Response(outcome.body, outcome.http_status, headers, media_type="application/json" if outcome.body else None)


def accepted(gateway: Gateway, command: Command) -> Response:
    """202: the broker has the command, and it will reach its outcome."""
    state = CommandState(id=command.id, issued_at=command.time, status="pending")
    headers = {"Location": gateway.command_urls.url(command, confirmed=True), "Retry-After": "1"}
    return Response(state.model_dump_json(), HTTPStatus.ACCEPTED, headers, media_type="application/json")


def not_accepted() -> ProblemError:
    """503: the write has had no effect and never will."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not_accepted",
        "The broker did not take the write; it has no effect and can be repeated freely",
        headers={"Retry-After": "1"},
    )


def unconfirmed(command_url: str) -> ProblemError:
    """504: the broker may have the write; without a Retry-After, since repeating it might write twice."""
    return ProblemError(
        HTTPStatus.GATEWAY_TIMEOUT,
        "unconfirmed",
        "The broker has not confirmed the write in time; ask the command's URL what became of it",
        command=command_url,
    )
