"""The outcomes of commands, and the replies that carry them to the gateways."""

from enum import StrEnum
from http import HTTPStatus
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Rejection(StrEnum):
    """Why a well-formed command must have no effect; part of the API."""

    NOTE_NOT_FOUND = "note_not_found"
    PRECONDITION_FAILED = "precondition_failed"
    CREDENTIALS_OUTDATED = "credentials_outdated"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    DISCARDED = "discarded"
    NAME_TAKEN = "name_taken"
    TOKEN_NOT_FOUND = "token_not_found"  # noqa: S105 - a word


REJECTION_STATUS = {
    Rejection.NOTE_NOT_FOUND: HTTPStatus.NOT_FOUND,
    Rejection.PRECONDITION_FAILED: HTTPStatus.PRECONDITION_FAILED,
    Rejection.CREDENTIALS_OUTDATED: HTTPStatus.UNAUTHORIZED,
    Rejection.IDEMPOTENCY_KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Rejection.DISCARDED: HTTPStatus.GONE,
    Rejection.NAME_TAKEN: HTTPStatus.CONFLICT,
    Rejection.TOKEN_NOT_FOUND: HTTPStatus.NOT_FOUND,
}


class OutcomeStatus(StrEnum):
    """What became of a command."""

    APPLIED = "applied"
    REJECTED = "rejected"
    FAILED = "failed"


class Outcome(BaseModel):
    """What the database has committed about a command, with the HTTP answer."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    type: str | None = None
    status: OutcomeStatus
    http_status: int
    reason: str | None = None
    note_id: int | None = None
    note_version: int | None = None
    body: str | None = None
    fingerprint: str | None = None
    attempt_id: UUID | None = None


def outcome_for(fingerprint: str, outcome: Outcome) -> Outcome:
    """What the request with this fingerprint is told: the outcome, unless it is another request's of the same id."""
    if fingerprint == outcome.fingerprint:
        return outcome
    reason = Rejection.IDEMPOTENCY_KEY_REUSED
    return Outcome(
        id=outcome.id,
        type=outcome.type,
        status=OutcomeStatus.REJECTED,
        http_status=REJECTION_STATUS[reason],
        reason=reason,
    )


class Reply(BaseModel, frozen=True):
    """The hint that an attempt is decided; without an outcome it says only "look it up"."""

    attempt_id: UUID
    outcome: Outcome | None = None
