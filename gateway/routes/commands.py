"""Commands: what became of a write that was answered before its outcome was known."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request, Response

from gateway.caller import EVERY_SCOPE
from gateway.command_urls import CommandTicket
from gateway.dependencies import Gateway, caller_of, gateway_of
from gateway.errors import ProblemError
from gateway.openapi import GET_COMMAND
from gateway.personal_tokens import revealed
from gateway.preferences import PREFER, Preferences
from gateway.requests import NO_QUERY, PlainRoute, described_by
from gateway.rules import MAY_POLL, MAY_WRITE
from gateway.schemas import Answer, CommandState
from gateway.writes import Recipient, answer, may_read, patience
from shared.contracts import NOBODY, CreateToken, Outcome, Scope, outcome_for
from shared.telemetry import identify_lines

FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
CREATE_TOKEN = CreateToken.model_fields["type"].default
TOKEN = {"parameters": [{"name": "token", "in": "path", "required": True, "schema": {"type": "string"}}]}

router = APIRouter(prefix="/commands", tags=["commands"], route_class=PlainRoute)


@router.get(
    "/{token}",
    response_model=CommandState,
    responses=GET_COMMAND,
    openapi_extra={"parameters": TOKEN["parameters"] + described_by(PREFER)["parameters"]} | MAY_POLL.openapi,
)
async def get_command(request: Request) -> Response:
    """The state of a write; `answer` is what it would have been answered, had it waited."""
    gateway, preferences = gateway_of(request), PREFER.of(request)
    ticket = await ticket_of(request)
    NO_QUERY.of(request)
    identify_lines(command_id=str(ticket.command_id))
    wait_seconds = patience(gateway, preferences) if preferences.wait_seconds else 0.0
    outcome = await awaited(gateway, finder(request, ticket), wait_seconds)
    scopes = EVERY_SCOPE if ticket.owner == NOBODY else caller_of(request).scopes
    if outcome and outcome.type == CREATE_TOKEN and may_read(scopes, outcome):
        outcome = revealed(gateway.settings, ticket.owner, outcome)
    state = undecided(gateway, ticket) if outcome is None else decided(ticket, outcome, request, scopes)
    headers = Preferences(wait_seconds=preferences.wait_seconds).kept(wait_seconds).applied_to(200)
    if outcome is None:
        headers["Retry-After"] = "1"
    return Response(state.model_dump_json(), headers=headers, media_type="application/json")


async def ticket_of(request: Request) -> CommandTicket:
    """What the URL holds; raises ProblemError 401 or 403, and 404 where it is not the caller's.

    A registration is nobody's yet: its URL alone, which only the registrant has, lets in.
    """
    ticket = gateway_of(request).command_urls.read(request.path_params["token"])
    if ticket and ticket.owner == NOBODY:
        return ticket
    await MAY_WRITE.admit(request)
    if ticket is None or ticket.owner != caller_of(request).owner:
        raise ProblemError(404, "command_not_found", "Command not found")
    return ticket


def finder(request: Request, ticket: CommandTicket) -> Callable[[], Awaitable[Outcome | None]]:
    """Looks for the outcome, for whoever may see it."""
    queries = gateway_of(request).queries
    if ticket.owner == NOBODY:
        return partial(queries.find_outcome, NOBODY, ticket.command_id)
    return partial(queries.poll_outcome, caller_of(request), ticket.command_id)


async def awaited(
    gateway: Gateway, find: Callable[[], Awaitable[Outcome | None]], wait_seconds: float
) -> Outcome | None:
    """The outcome, looked for until the wait is over; holds nothing between two looks."""
    now = asyncio.get_running_loop().time
    ends, pause = now() + wait_seconds, FIRST_POLL_SECONDS
    with gateway.replies.polled():
        while True:
            outcome = await find()
            if outcome or now() >= ends or gateway.draining.is_set():
                return outcome
            await asyncio.sleep(min(pause, ends - now()))
            pause = min(2 * pause, LAST_POLL_SECONDS)


def decided(ticket: CommandTicket, outcome: Outcome, request: Request, scopes: Collection[Scope]) -> CommandState:
    """The state of a command with an outcome, for a client with these scopes."""
    url, recipient = request.url.path, Recipient(scopes, gateway_of(request).settings.prefix)
    own = outcome_for(ticket.fingerprint, outcome)
    original = original_answer(answer(own, ticket.attempt_id, lambda: url, recipient))
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=own.status, answer=original)


def undecided(gateway: Gateway, ticket: CommandTicket) -> CommandState:
    """The state of a command without a row; raises ProblemError 410 once a row would have been pruned."""
    if gateway.clock.now() - ticket.issued_at > timedelta(days=gateway.settings.command_retention_days):
        raise ProblemError(410, "command_gone", "The command is older than outcomes are kept")
    status: Literal["pending", "unknown"] = "pending" if ticket.confirmed else "unknown"
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=status)


def original_answer(response: Response) -> Answer:
    """A response as a member of the command's state."""
    names = {name: "ETag" if name == "etag" else name.title() for name in response.headers if name != "content-length"}
    headers = {names[name]: response.headers[name] for name in names}
    return Answer(status=response.status_code, headers=headers, body=json.loads(bytes(response.body) or b"null"))
