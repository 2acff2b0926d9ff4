"""Every error a client can get, as problem+json (RFC 9457) with a stable `code`, rendered in one place."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from gateway.queries import CredentialsOutdatedError, DatabaseUnavailableError, SearchTimeoutError
from gateway.shares import ShareUsedUpError
from shared.contracts import Outcome, OutcomeStatus, Rejection

REJECTION_DETAIL = {
    Rejection.NOTE_NOT_FOUND: "Note not found",
    Rejection.PRECONDITION_FAILED: "The note is not in the version that the request asks for",
    Rejection.CREDENTIALS_OUTDATED: "The credentials were changed or revoked after they were issued",
    Rejection.IDEMPOTENCY_KEY_REUSED: "The key was used before with another request",
    Rejection.NAME_TAKEN: "Another user has this name, perhaps in other letters",
    Rejection.TOKEN_NOT_FOUND: "Personal token not found",
    Rejection.DISCARDED: "The write failed, and an operator has discarded it; it has no effect and never will",
}
FIELD_CODES = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "too_many_errors": "too_many_errors",
    "too_many_values": "too_long",
    "too_many_words": "too_long",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "too_short": "too_short",
    "too_long": "too_long",
    "list_type": "wrong_type",
    "dict_type": "wrong_type",
    "union_tag_invalid": "invalid_value",
    "union_tag_not_found": "missing",
    "enum": "invalid_value",
    "literal_error": "invalid_value",
    "uuid_parsing": "invalid_value",
    "uuid_type": "invalid_value",
    "string_type": "wrong_type",
    "string_unicode": "invalid_value",
    "model_type": "wrong_type",
    "model_attributes_type": "wrong_type",
    "int_type": "wrong_type",
    "int_parsing": "not_an_integer",
    "int_from_float": "not_an_integer",
    "int_parsing_size": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "value_error": "invalid_value",
    "bool_parsing": "wrong_type",
    "datetime_from_date_parsing": "invalid_value",
    "datetime_parsing": "invalid_value",
    "timezone_aware": "invalid_value",
    "less_than": "out_of_range",
    "repeated": "repeated",
}
FIELD_DETAILS = {
    "too_short": "Should have a length of at least {min_length}",
    "too_long": "Should have a length of at most {max_length}",
    "literal_error": "There is no such value",
    "union_tag_invalid": "There is no such operation",
    "union_tag_not_found": "Field required",
    "uuid_parsing": "Should be a UUID",
}
"""Where pydantic's own words speak of Python."""
FIELD_ERRORS = 100
"""So many are told at most; a body may have a hundred thousand."""
REALM = 'Bearer realm="inkwell"'
CHALLENGE = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
IDEMPOTENT_REPLAYED = "Idempotent-Replayed"
MAX_RETRY_AFTER_SECONDS = 5
PROBLEM_JSON = "application/problem+json"
STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


class FieldError(BaseModel):
    """What is wrong with one part of a request."""

    pointer: str
    """JSON Pointer into the request: `/body/…`, `/query/…` or `/path/…`."""
    code: str
    detail: str


PROBLEM = {"title": "Not Found", "status": 404, "detail": "Note not found", "code": "note_not_found"}


class Problem(BaseModel, extra="allow", json_schema_extra={"examples": [PROBLEM]}):
    """A problem (RFC 9457) as clients get it; `code` is stable, `title` and `detail` are for people."""

    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = None
    item: int | None = None
    """Of several writes at once the one whose problem it is, counted from 0; none of them happens."""


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] | None = None,
        **members: str | int | None,
    ) -> None:
        super().__init__(code)
        self.headers = headers
        self.problem = Problem(
            title=HTTPStatus(status).phrase,
            status=status,
            detail=detail,
            code=code,
            errors=list(errors) if errors else None,
            **members,
        )

    def response(self) -> JSONResponse:
        """The problem as a response."""
        return JSONResponse(
            self.problem.model_dump(exclude_none=True),
            self.problem.status,
            self.headers,
            media_type=PROBLEM_JSON,
        )


def problem_of(outcome: Outcome, command_url: Callable[[], str], headers: Mapping[str, str]) -> ProblemError:
    """The problem that a rejected or failed outcome is."""
    if outcome.status is OutcomeStatus.FAILED:
        detail = "The write was accepted, has had no effect and is kept for an operator; ask the command's URL"
        return ProblemError(outcome.http_status, "command_failed", detail, headers=headers, command=command_url())
    reason = Rejection(outcome.reason or "")
    if reason is Rejection.CREDENTIALS_OUTDATED and IDEMPOTENT_REPLAYED in headers:
        # A 401 would send the client to sign in, with which this key has nothing to win.
        detail = "An earlier request with the key was refused for its credentials and has no effect; use a new key"
        return ProblemError(HTTPStatus.CONFLICT, "idempotency_key_spent", detail, headers=headers)
    if reason is Rejection.CREDENTIALS_OUTDATED:
        headers = {**headers, **CHALLENGE}
    item = json.loads(outcome.body).get("item") if outcome.body else None
    return ProblemError(outcome.http_status, reason, REJECTION_DETAIL[reason], headers=headers, item=item)


def unauthenticated(code: str, detail: str) -> ProblemError:
    """401 with the challenge that RFC 6750 demands; its `error` is left out where there were no credentials."""
    headers = {"WWW-Authenticate": REALM} if code == "not_authenticated" else CHALLENGE
    return ProblemError(HTTPStatus.UNAUTHORIZED, code, detail, headers=headers)


def overloaded(advice: str = "Repeat it later") -> ProblemError:
    """503: the request has no effect, because too many wait already."""
    detail = f"Too many requests are waiting: this one has no effect. {advice}"
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", detail, headers=retry_after())


def retry_after() -> dict[str, str]:
    """Seconds until a retry is welcome; drawn, so that the refused do not all come back at once."""
    return {"Retry-After": str(random.randint(1, MAX_RETRY_AFTER_SECONDS))}  # noqa: S311 - keeps no secret


def invalid_header(name: str, expected: str) -> ProblemError:
    """The problem of a header that cannot be understood and must not be ignored."""
    error = FieldError(pointer=f"/header/{name.lower()}", code="invalid_value", detail=f"{name} must be {expected}")
    return ProblemError(400, "invalid_header", error.detail, errors=[error])


def invalid(errors: Sequence[ErrorDetails], part: str | None = None) -> ProblemError:
    """The problem of a request whose content does not validate; the first of pydantic's errors are told."""
    fields = [_field_error(error, part) for error in errors[:FIELD_ERRORS]]
    return ProblemError(422, "validation_failed", "The request is not valid; see errors", errors=fields)


def _field_error(error: ErrorDetails, part: str | None) -> FieldError:
    location = [*([part] if part else []), *map(str, error["loc"])]
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in location)
    told = FIELD_DETAILS.get(error["type"])
    detail = told.format(**error.get("ctx", {})) if told else str(error["msg"]).removeprefix("Value error, ")
    return FieldError(pointer=pointer, code=FIELD_CODES.get(error["type"], error["type"]), detail=detail)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of the app a problem."""
    _install_handlers_of_reads(app)

    @app.exception_handler(ProblemError)
    async def on_problem(_: Request, error: ProblemError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = STATUS_CODES.get(error.status_code, "bad_request")
        headers = {"Allow": allowed_methods(request)} if error.status_code == 405 else error.headers
        return ProblemError(error.status_code, code, error.detail, headers=headers).response()

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> JSONResponse:
        return ProblemError(400, "bad_request", "The request ended early").response()  # nobody is there to read it

    @app.exception_handler(Exception)
    async def on_bug(_: Request, __: Exception) -> JSONResponse:
        return ProblemError(500, "internal_error", "A bug in Inkwell, which has been logged").response()


def _install_handlers_of_reads(app: FastAPI) -> None:
    @app.exception_handler(DatabaseUnavailableError)
    async def on_database_unavailable(_: Request, __: DatabaseUnavailableError) -> JSONResponse:
        detail = "The database did not answer; try again"
        return ProblemError(503, "database_unavailable", detail, headers={"Retry-After": "1"}).response()

    @app.exception_handler(ShareUsedUpError)
    async def on_share_used_up(_: Request, __: ShareUsedUpError) -> JSONResponse:
        return overloaded().response()

    @app.exception_handler(SearchTimeoutError)
    async def on_search_timeout(_: Request, __: SearchTimeoutError) -> JSONResponse:
        detail = "The search took too long and was stopped; ask for fewer or rarer words"
        return ProblemError(503, "search_timeout", detail, headers=retry_after()).response()

    @app.exception_handler(CredentialsOutdatedError)
    async def on_credentials_outdated(_: Request, __: CredentialsOutdatedError) -> JSONResponse:
        reason = Rejection.CREDENTIALS_OUTDATED
        return unauthenticated(reason, REJECTION_DETAIL[reason]).response()


def allowed_methods(request: Request) -> str:
    """The `Allow` header: every method that some route serves at the request's path."""

    def is_served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    allowed = [method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if is_served(method)]
    return ", ".join(allowed + ["HEAD"] * ("GET" in allowed))
