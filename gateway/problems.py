"""Every problem that a client can get (RFC 9457): its `code` is stable, `title` and `detail` are for people.

To add a code, define its type below: the front renders it, and the OpenAPI document lists it.
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


PROBLEM_TYPES: dict[str, ProblemType] = {}
"""All problem types, by code."""


def _define(
    code: str, status: int, detail: str, headers: tuple[str, ...] = (), *, possible_headers: tuple[str, ...] = ()
) -> ProblemType:
    """Return a new problem type, added to PROBLEM_TYPES; the parameters are the members of ProblemType."""
    PROBLEM_TYPES[code] = ProblemType(code, status, detail, headers, possible_headers)
    return PROBLEM_TYPES[code]


REALM = 'Bearer realm="inkwell"'
INVALID_TOKEN_CHALLENGE = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
"""The challenge that RFC 6750 requires in a 401 to a request with credentials."""
_CHALLENGE_HEADER_NAMES = ("WWW-Authenticate",)
_RETRY_HEADER_NAMES = ("Retry-After",)

BAD_REQUEST = _define("bad_request", 400, "Not an HTTP request that this server supports")
INVALID_JSON = _define("invalid_json", 400, "The body is not JSON")
INVALID_HEADER = _define("invalid_header", 400, "A header that must not be ignored is invalid")
INVALID_REQUEST = _define("invalid_request", 400, "The form lacks a parameter, or repeats one")
UNSUPPORTED_GRANT_TYPE = _define("unsupported_grant_type", 400, "The only supported grant type is `password`")
INVALID_SCOPE = _define("invalid_scope", 400, "A requested scope does not exist")
INVALID_GRANT = _define("invalid_grant", 400, "The name or the password is incorrect")
NOT_AUTHENTICATED = _define(
    "not_authenticated", 401, "Send a bearer token in the Authorization header", _CHALLENGE_HEADER_NAMES
)
INVALID_TOKEN = _define("invalid_token", 401, "The token is invalid, expired or revoked", _CHALLENGE_HEADER_NAMES)
CREDENTIALS_OUTDATED = _define(
    "credentials_outdated", 401, "The credentials have been changed or revoked", _CHALLENGE_HEADER_NAMES
)
INSUFFICIENT_SCOPE = _define(
    "insufficient_scope", 403, "The token lacks a scope that the operation requires", _CHALLENGE_HEADER_NAMES
)
WRONG_PASSWORD = _define("wrong_password", 403, "The current password is incorrect")
NOT_FOUND = _define("not_found", 404, "Not Found")
NOTE_NOT_FOUND = _define("note_not_found", 404, "Note not found")
VERSION_NOT_FOUND = _define("version_not_found", 404, "The note has no such version, or it is no longer kept")
COMMAND_NOT_FOUND = _define("command_not_found", 404, "Command not found")
TOKEN_NOT_FOUND = _define("token_not_found", 404, "Personal token not found")
METHOD_NOT_ALLOWED = _define("method_not_allowed", 405, "Method Not Allowed", ("Allow",))
REQUEST_TIMEOUT = _define("request_timeout", 408, "The body did not arrive in time")
NAME_TAKEN = _define("name_taken", 409, "Another user has this name, or one that differs only in case or width")
IDEMPOTENCY_KEY_SPENT = _define(
    "idempotency_key_spent",
    409,
    "An earlier request with the key was rejected for its credentials and had no effect; use a new key",
)
COMMAND_GONE = _define("command_gone", 410, "The outcome of the command is no longer kept")
DISCARDED = _define(
    "discarded", 410, "The write failed and was discarded by an operator; it had no effect, and never will"
)
CHANGES_GONE = _define(
    "changes_gone", 410, "Changes since then may be missing; discard the copy and start over without `since`"
)
PRECONDITION_FAILED = _define(
    "precondition_failed", 412, "The note's version does not meet the request's preconditions", ("ETag",)
)
BODY_TOO_LARGE = _define("body_too_large", 413, "The body is too large")
URI_TOO_LONG = _define("uri_too_long", 414, "Path and query are too long")
UNSUPPORTED_MEDIA_TYPE = _define(
    "unsupported_media_type",
    415,
    "The body is compressed, or not declared as the operation's media type in UTF-8",
    possible_headers=("Accept-Encoding",),
)
MISDIRECTED_REQUEST = _define(
    "misdirected_request", 421, "Without authentication, only requests addressed to this machine are served"
)
VALIDATION_FAILED = _define("validation_failed", 422, "The request is not valid; see `errors`")
IDEMPOTENCY_KEY_REUSED = _define("idempotency_key_reused", 422, "The key was used before, for a different request")
PRECONDITION_REQUIRED = _define("precondition_required", 428, "This deployment requires If-Match")
TOO_MANY_REQUESTS = _define(
    "too_many_requests", 429, "Too many attempts; try again after `Retry-After`", _RETRY_HEADER_NAMES
)
TOO_MANY_STREAMS = _define(
    "too_many_streams", 429, "The user has too many open streams; close one of them", _RETRY_HEADER_NAMES
)
HEADERS_TOO_LARGE = _define("headers_too_large", 431, "The headers are too large")
COMMAND_FAILED = _define(
    "command_failed",
    500,
    "The write was accepted but failed without an effect, and is kept for an operator; poll the command's URL",
)
INTERNAL_ERROR = _define("internal_error", 500, "A bug in Inkwell; it has been logged")
NOT_ACCEPTED = _define(
    "not_accepted",
    503,
    "The broker did not accept the write: this request has no effect. Repeat it, with the same key if it had one",
    _RETRY_HEADER_NAMES,
)
OVERLOADED = _define(
    "overloaded", 503, "Too many requests are waiting: this one has no effect. Repeat it later", _RETRY_HEADER_NAMES
)
DATABASE_UNAVAILABLE = _define(
    "database_unavailable", 503, "The database did not answer; try again", _RETRY_HEADER_NAMES
)
SEARCH_TIMEOUT = _define(
    "search_timeout",
    503,
    "The search took too long and was cancelled; search for fewer or rarer words",
    _RETRY_HEADER_NAMES,
)
UNCONFIRMED = _define(
    "unconfirmed",
    504,
    "The broker did not confirm the write in time; repeat it with the same key, or poll the command's URL",
    possible_headers=_RETRY_HEADER_NAMES,
)

OUTCOME_PROBLEMS = frozenset({COMMAND_FAILED, IDEMPOTENCY_KEY_SPENT, *(PROBLEM_TYPES[each] for each in Rejection)}) - {
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
