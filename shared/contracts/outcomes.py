"""The outcomes of commands, and the replies that carry them to the gateways."""

from enum import StrEnum
from http import HTTPStatus
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.contracts.accounts import NO_OWNER
from shared.contracts.commands import DeleteUser, Envelope


class Rejection(StrEnum):
    """Why a well-formed command is rejected; part of the API."""

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
    """The status of a command that has an outcome."""

    APPLIED = "applied"
    REJECTED = "rejected"
    FAILED = "failed"


class Outcome(BaseModel):
    """The committed result of a command, including the HTTP response."""

    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)

    id: UUID
    """The command's id."""
    type: str | None = None
    """The command's type."""
    status: OutcomeStatus
    http_status: int
    reason: str | None = None
    """Why the command was rejected or has failed: a stable code."""
    note_id: int | None = None
    note_version: int | None = None
    body: str | None = None
    """The response's body, JSON as text."""
    fingerprint: str | None = None
    """The fingerprint of the command that was decided."""
    attempt_id: UUID | None = None
    """The attempt whose command was decided."""


def outcome_for(fingerprint: str, outcome: Outcome) -> Outcome:
    """Return the outcome, or `idempotency_key_reused` if it belongs to a request with another fingerprint."""
    if fingerprint == outcome.fingerprint:
        return outcome
    return _refuse(outcome, Rejection.IDEMPOTENCY_KEY_REUSED)


def outcome_for_attempt(command: Envelope, outcome: Outcome, current_version: int | None) -> Outcome:
    """Return what an attempt at the command gets; `current_version` is of its owner's credentials, None without owner.

    A repetition whose credentials have ended gets `credentials_outdated`, as it would if it were the first. The attempt
    that was decided gets its outcome in any case: it may itself have ended its credentials.
    """
    is_outdated = command.owner != NO_OWNER and command.credentials_version != current_version
    is_decided = command.attempt_id == outcome.attempt_id
    if is_outdated and not is_decided and not _says_only_that_credentials_ended(outcome):
        return _refuse(outcome, Rejection.CREDENTIALS_OUTDATED)
    return outcome_for(command.fingerprint, outcome)


def _says_only_that_credentials_ended(outcome: Outcome) -> bool:
    """Whether anyone with credentials that have ended may get the outcome: it shows nothing else."""
    return outcome.reason == Rejection.CREDENTIALS_OUTDATED or outcome.type == DeleteUser.type_name()


def _refuse(outcome: Outcome, reason: Rejection) -> Outcome:
    """Return a rejection that is stored nowhere, with nothing of the outcome; it belongs to no attempt."""
    return Outcome(
        id=outcome.id,
        type=outcome.type,
        status=OutcomeStatus.REJECTED,
        http_status=REJECTION_STATUS[reason],
        reason=reason,
    )


class Reply(BaseModel, frozen=True):
    """Notifies a gateway that an attempt has an outcome, which the gateway looks up if the reply omits it."""

    attempt_id: UUID
    outcome: Outcome | None = None
