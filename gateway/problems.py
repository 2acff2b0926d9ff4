"""Every problem that a client can get (RFC 9457): its `code` is stable, `title` and `detail` are for people.

To add a code, add an entry below: the front renders it, and the OpenAPI document lists it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel

from shared.contracts import Rejection

MAX_RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What all problems with one code have in common."""

    code: str
    status: int
    detail: str
    """The default detail."""
    headers: tuple[str, ...] = ()
    """Headers that the response always has."""
    possible_headers: tuple[str, ...] = ()
    """Headers that the response may have."""


REALM = 'Bearer realm="inkwell"'
CHALLENGE = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
"""The challenge that RFC 6750 requires in a 401 to a request with credentials."""
_CHALLENGE = ("WWW-Authenticate",)
_RETRY = ("Retry-After",)

BAD_REQUEST = ProblemType("bad_request", 400, "Not an HTTP request that this server supports")
INVALID_JSON = ProblemType("invalid_json", 400, "The body is not JSON")
INVALID_HEADER = ProblemType("invalid_header", 400, "A header that must not be ignored is invalid")
INVALID_REQUEST = ProblemType("invalid_request", 400, "The form lacks a parameter, or repeats one")
UNSUPPORTED_GRANT_TYPE = ProblemType("unsupported_grant_type", 400, "The only supported grant type is `password`")
INVALID_SCOPE = ProblemType("invalid_scope", 400, "A requested scope does not exist")
INVALID_GRANT = ProblemType("invalid_grant", 400, "The name or the password is incorrect")
NOT_AUTHENTICATED = ProblemType("not_authenticated", 401, "Send a bearer token in the Authorization header", _CHALLENGE)
INVALID_TOKEN = ProblemType("invalid_token", 401, "The token is invalid, expired or revoked", _CHALLENGE)
CREDENTIALS_OUTDATED = ProblemType(
    "credentials_outdated", 401, "The credentials have been changed or revoked", _CHALLENGE
)
INSUFFICIENT_SCOPE = ProblemType(
    "insufficient_scope", 403, "The token lacks a scope that the operation requires", _CHALLENGE
)
WRONG_PASSWORD = ProblemType("wrong_password", 403, "The current password is incorrect")
NOT_FOUND = ProblemType("not_found", 404, "Not Found")
NOTE_NOT_FOUND = ProblemType("note_not_found", 404, "Note not found")
COMMAND_NOT_FOUND = ProblemType("command_not_found", 404, "Command not found")
TOKEN_NOT_FOUND = ProblemType("token_not_found", 404, "Personal token not found")
METHOD_NOT_ALLOWED = ProblemType("method_not_allowed", 405, "Method Not Allowed", ("Allow",))
REQUEST_TIMEOUT = ProblemType("request_timeout", 408, "The body did not arrive in time")
NAME_TAKEN = ProblemType("name_taken", 409, "Another user has this name, or one that differs only in case or width")
IDEMPOTENCY_KEY_SPENT = ProblemType(
    "idempotency_key_spent",
    409,
    "An earlier request with the key was rejected for its credentials and had no effect; use a new key",
)
COMMAND_GONE = ProblemType("command_gone", 410, "The outcome of the command is no longer kept")
DISCARDED = ProblemType(
    "discarded", 410, "The write failed and was discarded by an operator; it had no effect, and never will"
)
PRECONDITION_FAILED = ProblemType(
    "precondition_failed", 412, "The note's version does not meet the request's preconditions", ("ETag",)
)
BODY_TOO_LARGE = ProblemType("body_too_large", 413, "The body is too large")
URI_TOO_LONG = ProblemType("uri_too_long", 414, "Path and query are too long")
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported_media_type",
    415,
    "The body is compressed, or not declared as JSON in UTF-8",
    possible_headers=("Accept-Encoding",),
)
MISDIRECTED_REQUEST = ProblemType(
    "misdirected_request", 421, "Without authentication, only requests addressed to this machine are served"
)
VALIDATION_FAILED = ProblemType("validation_failed", 422, "The request is not valid; see `errors`")
IDEMPOTENCY_KEY_REUSED = ProblemType("idempotency_key_reused", 422, "The key was used before, for a different request")
PRECONDITION_REQUIRED = ProblemType("precondition_required", 428, "This deployment requires If-Match")
TOO_MANY_REQUESTS = ProblemType("too_many_requests", 429, "Too many attempts; try again after `Retry-After`", _RETRY)
HEADERS_TOO_LARGE = ProblemType("headers_too_large", 431, "The headers are too large")
COMMAND_FAILED = ProblemType(
    "command_failed",
    500,
    "The write was accepted but failed without an effect, and is kept for an operator; poll the command's URL",
)
INTERNAL_ERROR = ProblemType("internal_error", 500, "A bug in Inkwell; it has been logged")
NOT_ACCEPTED = ProblemType(
    "not_accepted",
    503,
    "The broker did not accept the write: this request has no effect. Repeat it, with the same key if it had one",
    _RETRY,
)
OVERLOADED = ProblemType(
    "overloaded", 503, "Too many requests are waiting: this one has no effect. Repeat it later", _RETRY
)
DATABASE_UNAVAILABLE = ProblemType("database_unavailable", 503, "The database did not answer; try again", _RETRY)
SEARCH_TIMEOUT = ProblemType(
    "search_timeout", 503, "The search took too long and was cancelled; search for fewer or rarer words", _RETRY
)
UNCONFIRMED = ProblemType(
    "unconfirmed",
    504,
    "The broker did not confirm the write in time; repeat it with the same key, or poll the command's URL",
    possible_headers=_RETRY,
)

PROBLEM_TYPES = {each.code: each for each in list(globals().values()) if isinstance(each, ProblemType)}
"""By code."""
OUTCOMES = frozenset({COMMAND_FAILED, IDEMPOTENCY_KEY_SPENT, *(PROBLEM_TYPES[each] for each in Rejection)}) - {
    IDEMPOTENCY_KEY_REUSED,
    CREDENTIALS_OUTDATED,
}
"""The problems that may be the outcome of an earlier request with the same key."""


class FieldError(BaseModel, use_attribute_docstrings=True):
    """An error in one part of a request."""

    pointer: str
    """JSON Pointer into the request: `/body/…`, `/query/…`, `/path/…` or `/header/…`."""
    code: str
    detail: str


_EXAMPLE = {"title": "Not Found", "status": 404, "detail": "Note not found", "code": "note_not_found"}


class Problem(BaseModel, extra="allow", use_attribute_docstrings=True, json_schema_extra={"examples": [_EXAMPLE]}):
    """A problem (RFC 9457) as clients get it; `code` is stable, `title` and `detail` are for people."""

    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = None
    item: int | None = None
    """The index, from 0, of the write in a batch that has the problem; no write of the batch is applied."""


class ProblemError(Exception):
    """Raised to answer a request with a problem."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        **members: str | int | None,
    ) -> None:
        super().__init__(kind.code)
        self.kind = kind
        self.headers = headers or {}
        self._detail = detail
        self._errors = errors
        self._members = members

    @property
    def problem(self) -> Problem:
        """The body of the response."""
        return Problem(
            title=HTTPStatus(self.kind.status).phrase,
            status=self.kind.status,
            detail=self._detail or self.kind.detail,
            code=self.kind.code,
            errors=list(self._errors) or None,
            **self._members,
        )


def build_retry_after() -> dict[str, str]:
    """Return a `Retry-After` header with random seconds, so that rejected clients do not all retry at once."""
    return {"Retry-After": str(random.randint(1, MAX_RETRY_AFTER_SECONDS))}  # noqa: S311 - no secret
