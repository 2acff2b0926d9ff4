"""Every problem that a client can get (RFC 9457): its `code` is stable, `title` and `detail` are for people.

A new code is one entry of the table below; the front renders it, and the OpenAPI document lists it.
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
    """The properties shared by all problems with one code."""

    code: str
    status: int
    detail: str
    """The default detail."""
    headers: tuple[str, ...] = ()
    """Response headers that accompany the problem each time."""
    possible_headers: tuple[str, ...] = ()
    """Response headers that may accompany it."""


REALM = 'Bearer realm="inkwell"'
CHALLENGE = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
"""The challenge that RFC 6750 demands of a 401 with credentials."""
_CHALLENGE = ("WWW-Authenticate",)
_RETRY = ("Retry-After",)

BAD_REQUEST = ProblemType("bad_request", 400, "Not an HTTP request that this server supports")
INVALID_JSON = ProblemType("invalid_json", 400, "The body is not JSON")
INVALID_HEADER = ProblemType("invalid_header", 400, "A header that must not be ignored cannot be understood")
INVALID_REQUEST = ProblemType("invalid_request", 400, "The form lacks a parameter, or has one more than once")
UNSUPPORTED_GRANT_TYPE = ProblemType("unsupported_grant_type", 400, "The only grant type supported is `password`")
INVALID_SCOPE = ProblemType("invalid_scope", 400, "There is no such scope")
INVALID_GRANT = ProblemType("invalid_grant", 400, "The name or the password is incorrect")
NOT_AUTHENTICATED = ProblemType("not_authenticated", 401, "Send a bearer token in the Authorization header", _CHALLENGE)
INVALID_TOKEN = ProblemType(
    "invalid_token", 401, "The token is expired, revoked, or not one of this deployment's", _CHALLENGE
)
CREDENTIALS_OUTDATED = ProblemType(
    "credentials_outdated", 401, "The credentials were changed or revoked after they were issued", _CHALLENGE
)
INSUFFICIENT_SCOPE = ProblemType(
    "insufficient_scope", 403, "The token lacks the scope that the operation needs", _CHALLENGE
)
WRONG_PASSWORD = ProblemType("wrong_password", 403, "The current password is incorrect")
NOT_FOUND = ProblemType("not_found", 404, "Not Found")
NOTE_NOT_FOUND = ProblemType("note_not_found", 404, "Note not found")
COMMAND_NOT_FOUND = ProblemType("command_not_found", 404, "Command not found")
TOKEN_NOT_FOUND = ProblemType("token_not_found", 404, "Personal token not found")
METHOD_NOT_ALLOWED = ProblemType("method_not_allowed", 405, "Method Not Allowed", ("Allow",))
REQUEST_TIMEOUT = ProblemType("request_timeout", 408, "The body has not arrived in time")
NAME_TAKEN = ProblemType("name_taken", 409, "Another user has this name, perhaps in other letters")
IDEMPOTENCY_KEY_SPENT = ProblemType(
    "idempotency_key_spent",
    409,
    "An earlier request with the key was refused for its credentials and has no effect; use a new key",
)
COMMAND_GONE = ProblemType("command_gone", 410, "The command is older than outcomes are kept")
DISCARDED = ProblemType(
    "discarded", 410, "The write failed, and an operator has discarded it; it has no effect and never will"
)
PRECONDITION_FAILED = ProblemType(
    "precondition_failed", 412, "The note is not in the version that the request asks for", ("ETag",)
)
BODY_TOO_LARGE = ProblemType("body_too_large", 413, "The body is over the limit")
URI_TOO_LONG = ProblemType("uri_too_long", 414, "Path and query are over the limit")
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported_media_type",
    415,
    "The body is not declared as JSON in UTF-8, or is compressed",
    possible_headers=("Accept-Encoding",),
)
MISDIRECTED_REQUEST = ProblemType(
    "misdirected_request", 421, "There is no authentication, and the request is for another host than this machine"
)
VALIDATION_FAILED = ProblemType("validation_failed", 422, "The request is not valid; see `errors`")
IDEMPOTENCY_KEY_REUSED = ProblemType("idempotency_key_reused", 422, "The key was used before with another request")
PRECONDITION_REQUIRED = ProblemType("precondition_required", 428, "This deployment demands If-Match")
TOO_MANY_REQUESTS = ProblemType(
    "too_many_requests", 429, "Too many tries; `Retry-After` says when the next one counts", _RETRY
)
HEADERS_TOO_LARGE = ProblemType("headers_too_large", 431, "The headers are over the limit")
COMMAND_FAILED = ProblemType(
    "command_failed",
    500,
    "The write was accepted, has had no effect and is kept for an operator; ask the command's URL",
)
INTERNAL_ERROR = ProblemType("internal_error", 500, "A bug in Inkwell, which has been logged")
NOT_ACCEPTED = ProblemType(
    "not_accepted",
    503,
    "The broker did not accept the write: this request has no effect. Repeat it, with its key",
    _RETRY,
)
OVERLOADED = ProblemType(
    "overloaded", 503, "Too many requests are waiting: this one has no effect. Repeat it later", _RETRY
)
DATABASE_UNAVAILABLE = ProblemType("database_unavailable", 503, "The database did not answer; try again", _RETRY)
SEARCH_TIMEOUT = ProblemType(
    "search_timeout", 503, "The search took too long and was stopped; ask for fewer or rarer words", _RETRY
)
UNCONFIRMED = ProblemType(
    "unconfirmed",
    504,
    "The broker has not confirmed the write in time; repeat it with the same key, or ask the command's URL",
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
    """What is wrong with one part of a request."""

    pointer: str
    """JSON Pointer into the request: `/body/…`, `/query/…` or `/path/…`."""
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
    """The index, from 0, of the write in a batch that has the problem; none of the batch is applied."""


class ProblemError(Exception):
    """Ends a request with a problem."""

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


def retry_after() -> dict[str, str]:
    """Return a `Retry-After` header with random seconds, so that rejected clients do not retry all at once."""
    return {"Retry-After": str(random.randint(1, MAX_RETRY_AFTER_SECONDS))}  # noqa: S311 - keeps no secret
