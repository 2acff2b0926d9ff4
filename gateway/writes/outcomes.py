"""Builds the response to a write from its committed outcome."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import get_args
from uuid import UUID

from gateway.http.conditional import build_etag
from gateway.http.prefer import DEFAULTS, Preferences
from gateway.http.responses import Response, render
from gateway.problems import (
    COMMAND_FAILED,
    CREDENTIALS_OUTDATED,
    IDEMPOTENCY_KEY_SPENT,
    INVALID_TOKEN_CHALLENGE,
    PROBLEM_TYPES,
    ProblemError,
)
from shared.contracts import NoteCommand, Outcome, OutcomeStatus, Scope

IDEMPOTENT_REPLAYED = "Idempotent-Replayed"
NOTE_COMMANDS = frozenset(model.type_name() for model in get_args(NoteCommand))
"""The types of commands that write notes; other commands write accounts."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """The client that a response is for."""

    scopes: Collection[Scope]
    """A response omits a resource that these scopes may not read."""
    prefix: str
    """The `root_path`, with which every URL's path begins."""
    preferences: Preferences = DEFAULTS


def build_response(
    outcome: Outcome, attempt_id: UUID, command_url: Callable[[], str], recipient: Recipient
) -> Response:
    """Return the response to an attempt at a command with this outcome."""
    headers: dict[str, str] = {}
    if outcome.attempt_id not in (None, attempt_id):
        headers[IDEMPOTENT_REPLAYED] = "true"
    if outcome.note_version is not None and outcome.status is not OutcomeStatus.FAILED:
        headers["ETag"] = build_etag(outcome.note_version)
    if outcome.status is not OutcomeStatus.APPLIED:
        return render(build_problem(outcome, command_url, headers))
    if outcome.http_status == HTTPStatus.CREATED:
        headers["Location"] = recipient.prefix + _build_location(outcome)
    preferences = recipient.preferences
    body = outcome.body
    if not may_read(recipient.scopes, outcome):
        preferences = preferences.without_representation()
        body = None
    headers |= preferences.build_header(outcome.http_status)
    if preferences.minimal or not body:
        status = HTTPStatus.NO_CONTENT if outcome.http_status == HTTPStatus.OK else outcome.http_status
        return Response(status=status, headers=headers)
    return Response(body, outcome.http_status, headers)


def build_problem(outcome: Outcome, command_url: Callable[[], str], headers: dict[str, str]) -> ProblemError:
    """Return the problem of a rejected or failed outcome."""
    if outcome.status is OutcomeStatus.FAILED:
        return ProblemError(COMMAND_FAILED, headers=headers, command=command_url())
    problem = PROBLEM_TYPES[outcome.reason or ""]
    if problem is CREDENTIALS_OUTDATED and IDEMPOTENT_REPLAYED in headers:
        return ProblemError(IDEMPOTENCY_KEY_SPENT, headers=headers)  # even with new credentials, this key is rejected
    if problem is CREDENTIALS_OUTDATED:
        headers = headers | INVALID_TOKEN_CHALLENGE
    item = json.loads(outcome.body).get("item") if outcome.body else None
    return ProblemError(problem, headers=headers, item=item)


def may_read(scopes: Collection[Scope], outcome: Outcome) -> bool:
    """Whether credentials with these scopes may read the resource that the command wrote."""
    return (Scope.READ if outcome.type in NOTE_COMMANDS else Scope.ACCOUNT) in scopes


def _build_location(outcome: Outcome) -> str:
    """Return the path of the created resource, without the prefix."""
    match outcome.type:
        case "user.register":
            return "/users/me"
        case "token.create":
            return f"/auth/tokens/{outcome.id}"
        case _:
            return f"/notes/{outcome.note_id}"
