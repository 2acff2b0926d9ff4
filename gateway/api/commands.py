"""Commands: the state of a write whose outcome its response did not have."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Literal

from pydantic import BaseModel

from gateway.auth.personal_tokens import reveal_token
from gateway.caller import EVERY_SCOPE
from gateway.http.openapi import describe_response
from gateway.http.operations import Operations
from gateway.http.parameters import Parameters
from gateway.http.prefer import PREFER, Preferences
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.problems import COMMAND_GONE, COMMAND_NOT_FOUND, ProblemError
from gateway.resources import Gateway
from gateway.writes.command_urls import CommandTicket
from gateway.writes.outcomes import Recipient, build_response, may_read
from gateway.writes.states import CommandState, OriginalAnswer
from shared.contracts import NO_OWNER, CreateToken, Outcome, Scope, outcome_for
from shared.logs import bind_ids

FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0


class _CommandPath(BaseModel):
    token: str


COMMAND_PATH = Parameters(_CommandPath, "path")

operations: Operations[Gateway] = Operations("commands")


def is_registration(gateway: Gateway, request: Request) -> bool:
    """Whether the URL is that of a registration: it has no owner yet, and only the registrant knows the URL."""
    ticket = gateway.command_urls.read(request.path_parameters["token"])
    return ticket is not None and ticket.owner == NO_OWNER


@operations.add(
    "GET",
    "/commands/{token}",
    requires=Scope.WRITE,
    exempts=is_registration,
    inputs=(COMMAND_PATH, PREFER),
    returns=CommandState,
    responses={
        200: describe_response(
            "The state of the write; `answer` has no body if the credentials lack the scope to read it",
            "Retry-After",
            "Preference-Applied",
        )
    },
    problems=(COMMAND_NOT_FOUND, COMMAND_GONE),
)
async def get_command(gateway: Gateway, request: Request) -> Response:
    """Returns the state of a write; `answer` is the response that it would have had."""
    ticket = _read_ticket(gateway, request)
    preferences = request[PREFER]
    bind_ids(command_id=str(ticket.command_id))
    wait_seconds = gateway.submission.choose_wait(preferences) if preferences.wait_seconds else 0.0
    if ticket.owner == NO_OWNER:  # there is no caller
        scopes = EVERY_SCOPE
        look_up = partial(gateway.queries.find_registration, ticket.command_id)
    else:
        scopes = request.caller.scopes
        look_up = partial(gateway.queries.poll_outcome, request.caller, ticket.command_id)
    outcome = await _poll(gateway, look_up, wait_seconds)
    if outcome and outcome.type == CreateToken.type_name() and may_read(scopes, outcome):
        outcome = reveal_token(gateway.keyed_hashes, ticket.owner, outcome)
    headers = Preferences(wait_seconds=preferences.wait_seconds).honor_wait(wait_seconds).build_header(200)
    if outcome is None:
        headers["Retry-After"] = "1"
        return Response(_describe_undecided(gateway, ticket).model_dump_json(), headers=headers)
    return Response(_describe_decided(gateway, request, ticket, outcome, scopes).model_dump_json(), headers=headers)


def _read_ticket(gateway: Gateway, request: Request) -> CommandTicket:
    """Return the URL's content; raises ProblemError 404 unless it is the caller's or a registration's."""
    ticket = gateway.command_urls.read(request[COMMAND_PATH].token)
    # A request for a registration's URL has no caller: the order of the comparisons matters.
    if ticket is None or (ticket.owner != NO_OWNER and ticket.owner != request.caller.owner):  # noqa: PLR1714
        raise ProblemError(COMMAND_NOT_FOUND)
    return ticket


async def _poll(
    gateway: Gateway, look_up: Callable[[], Awaitable[Outcome | None]], wait_seconds: float
) -> Outcome | None:
    """Poll for the outcome until the wait is over; holds no connection between polls."""
    now = asyncio.get_running_loop().time
    deadline = now() + wait_seconds
    pause = FIRST_POLL_SECONDS
    with gateway.replies.count_poll():
        while True:
            outcome = await look_up()
            if outcome or now() >= deadline or gateway.replies.draining:
                return outcome
            await asyncio.sleep(min(pause, deadline - now()))
            pause = min(2 * pause, LAST_POLL_SECONDS)


def _describe_decided(
    gateway: Gateway, request: Request, ticket: CommandTicket, outcome: Outcome, scopes: Collection[Scope]
) -> CommandState:
    """Return the state of a command with an outcome, for a client with these scopes."""
    prefix = gateway.settings.prefix
    outcome = outcome_for(ticket.fingerprint, outcome)
    response = build_response(outcome, ticket.attempt_id, lambda: request.url_path, Recipient(scopes, prefix))
    body = json.loads(response.body or "null")
    original = OriginalAnswer(status=response.status, headers=response.all_headers, body=body)
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=outcome.status, answer=original)


def _describe_undecided(gateway: Gateway, ticket: CommandTicket) -> CommandState:
    """Return the state of a command without a row; raises ProblemError 410 once a row would have been pruned."""
    if gateway.clock.now() - ticket.issued_at > timedelta(days=gateway.settings.command_retention_days):
        raise ProblemError(COMMAND_GONE)
    status: Literal["pending", "unknown"] = "pending" if ticket.confirmed else "unknown"
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=status)
