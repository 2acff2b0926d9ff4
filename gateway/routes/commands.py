"""Commands: what became of a write that was answered before its outcome was known."""

import json
from datetime import UTC, datetime, timedelta
from typing import Literal

from fastapi import APIRouter, Request, Response

from gateway.command_urls import CommandTicket
from gateway.dependencies import Gateway, gateway_of, owner_of
from gateway.errors import Problem, ProblemError
from gateway.schemas import Answer, CommandState
from gateway.writes import answer
from shared.contracts import reused_key

router = APIRouter(prefix="/commands", tags=["commands"])


@router.get("/{token}", responses={404: {"model": Problem}, 410: {"model": Problem}})
async def get_command(request: Request, token: str) -> CommandState:
    """The state of a write; `answer` is what it would have been answered, had it waited."""
    gateway = gateway_of(request)
    ticket = gateway.command_urls.read(token, owner_of(request))
    if ticket is None:
        raise ProblemError(404, "command_not_found", "Command not found")
    outcome = await gateway.queries.find_outcome(ticket.owner, ticket.command_id)
    if outcome is None:
        return undecided(gateway, ticket)
    if outcome.fingerprint != ticket.fingerprint:
        outcome = reused_key(outcome.id)
    original = original_answer(answer(outcome, lambda: request.url.path))
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=outcome.status, answer=original)


def undecided(gateway: Gateway, ticket: CommandTicket) -> CommandState:
    """The state of a command without a row; raises ProblemError 410 once a row would have been pruned."""
    if datetime.now(UTC) - ticket.issued_at > timedelta(days=gateway.settings.command_retention_days):
        raise ProblemError(410, "command_gone", "The command is older than outcomes are kept")
    status: Literal["pending", "unknown"] = "pending" if ticket.confirmed else "unknown"
    return CommandState(id=ticket.command_id, issued_at=ticket.issued_at, status=status)


def original_answer(response: Response) -> Answer:
    """A response as a member of the command's state."""
    headers = {name.title(): value for name, value in response.headers.items() if name != "content-length"}
    return Answer(status=response.status_code, headers=headers, body=json.loads(bytes(response.body) or b"null"))
