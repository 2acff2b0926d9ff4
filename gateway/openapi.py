"""What the API answers, declared for OpenAPI: each status, its headers, and the codes that a problem may have.

Each operation's answers are one value here, which its route names; the tests hold them against a running gateway.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from gateway.errors import PROBLEM_JSON, Problem
from gateway.request_ids import REQUEST_ID
from gateway.schemas import CommandState
from shared.contracts import Rejection, Scope

SCHEMA = "#/components/schemas/{model}"
Part = dict[str, Any]
"""A part of an OpenAPI document."""
Responses = dict[int | str, Part]
"""What FastAPI calls `responses`."""

DESCRIPTION = """\
A write is answered with its outcome, or with 202 and the URL of its command. Every error is a problem (RFC 9457);
its `code` is stable, `title` and `detail` are for people. A path that is not here is 404 `not_found`, a method that a
path lacks 405 `method_not_allowed` with `Allow`, and any other refusal by the web framework `bad_request`. An unknown
query parameter is 422 `validation_failed`; only the probes ignore it.

Every path works with and without its trailing slash, and HEAD wherever GET does. `Cache-Control` tells what may be
stored; an answer with a token never may.
"""

TAGS = [
    {"name": "notes", "description": "Notes of whoever signs in: one, several at once, lists and searches"},
    {"name": "commands", "description": "What became of a write that was answered 202 or 504"},
    {"name": "users", "description": "Registration, and one's own account"},
    {"name": "tokens", "description": "Access tokens for a name and a password, and personal tokens for scripts"},
    {"name": "health", "description": "Probes"},
]

CODES = {
    "invalid_json": (400, "The body is not JSON"),
    "invalid_header": (400, "A header that must not be ignored cannot be understood"),
    "invalid_request": (400, "The form lacks a parameter, or has one twice"),
    "unsupported_grant_type": (400, "The grant type is not `password`"),
    "invalid_scope": (400, "There is no such scope"),
    "invalid_grant": (400, "The name or the password is wrong"),
    "not_authenticated": (401, "There are no credentials"),
    "invalid_token": (401, "The token is expired, revoked, or not one of this deployment's"),
    "credentials_outdated": (401, "The password was changed, or the user is gone"),
    "insufficient_scope": (403, "The token lacks the scope that the operation needs"),
    "wrong_password": (403, "The current password is another"),
    "note_not_found": (404, "There is no such note"),
    "command_not_found": (404, "This deployment has not signed such a URL"),
    "token_not_found": (404, "There is no such personal token"),
    "request_timeout": (408, "The body has not arrived in time"),
    "name_taken": (409, "Another user has this name, perhaps in other letters"),
    "command_gone": (410, "No outcome, and older than outcomes are kept"),
    "discarded": (410, "It had failed, and an operator has discarded it; no effect"),
    "precondition_failed": (412, "The note is in another version, which `ETag` tells"),
    "body_too_large": (413, "The body is over the limit"),
    "misdirected_request": (421, "Nobody signs in, and the request is for another host than this machine"),
    "idempotency_key_spent": (409, "An earlier request with the key was refused for its credentials; use a new one"),
    "uri_too_long": (414, "Path and query are over the limit"),
    "unsupported_media_type": (415, "The body is not declared as JSON in UTF-8, or is compressed"),
    "validation_failed": (422, "A field or a parameter is wrong; `errors` says which"),
    "idempotency_key_reused": (422, "The key was used with another request"),
    "precondition_required": (428, "This deployment demands If-Match"),
    "too_many_requests": (429, "Too many tries; `Retry-After` tells when the next one counts"),
    "headers_too_large": (431, "The headers are over the limit"),
    "command_failed": (500, "Accepted, no effect, kept for an operator; `command` is its URL"),
    "internal_error": (500, "A bug in the gateway, which it has logged"),
    "not_accepted": (503, "The broker did not accept the write: this request has no effect. Repeat it, with its key"),
    "overloaded": (503, "Too many requests are waiting: this one has no effect. Repeat it later, with its key"),
    "database_unavailable": (503, "Postgres does not answer; try again"),
    "search_timeout": (503, "The search took too long and was stopped: ask for fewer or rarer words"),
    "unconfirmed": (504, "Unknown: repeat it with its key, or ask `command`, its URL"),
}
"""The status and the meaning of each code that an operation may answer with."""

HEADERS = {
    "Accept-Encoding": "The content codings that a request body may have, if it had another",
    "Accept-Patch": "The media types that a patch may have",
    "ETag": "The entity tag of what was answered or, with 412, of the note as it is",
    "Idempotent-Replayed": "`true` where this is the outcome of an earlier request with the same key",
    "Link": "The pages `next`, `prev` and `first` (RFC 8288)",
    "Location": "What is new or, with 202, the command",
    "Preference-Applied": "The preferences that were honoured",
    "Retry-After": "Seconds to wait before the next try; with 504 only where the request had a key",
    "WWW-Authenticate": "The challenge of RFC 6750",
    "X-Request-ID": "The id of the request, its own if it was harmless; the logs have it",
    "X-Total-Count": "How many there are on all pages, where that was asked for",
}
CODE_HEADERS = {
    "precondition_failed": ["ETag"],
    "not_authenticated": ["WWW-Authenticate"],
    "invalid_token": ["WWW-Authenticate"],
    "credentials_outdated": ["WWW-Authenticate"],
    "insufficient_scope": ["WWW-Authenticate"],
    "too_many_requests": ["Retry-After"],
    "not_accepted": ["Retry-After"],
    "overloaded": ["Retry-After"],
    "database_unavailable": ["Retry-After"],
    "search_timeout": ["Retry-After"],
    "unconfirmed": ["Retry-After"],
}
POSSIBLE_HEADERS = {"unsupported_media_type": ["Accept-Encoding"]}
"""Headers that an answer with the code may have; those of `CODE_HEADERS` it always has."""
OUTCOMES: set[str] = {"command_failed", "idempotency_key_spent", *Rejection} - {
    Rejection.IDEMPOTENCY_KEY_REUSED,
    Rejection.CREDENTIALS_OUTDATED,
}
"""The codes that a write may get as the outcome of an earlier request with its key."""


def answer(description: str, *headers: str, **members: object) -> Part:
    """A response that may have these headers."""
    declared = {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in headers}
    return {"description": description, **({"headers": declared} if declared else {}), **members}


def problems(*codes: str, headers: tuple[str, ...] = (), is_write: bool = False) -> Responses:
    """The responses that the codes have, one for each status; all of them may have these headers.

    As answers to a write, outcomes may be those of an earlier request.
    """
    replayed = OUTCOMES if is_write else set()
    statuses = dict.fromkeys(CODES[code][0] for code in codes)
    return {
        status: _problem([code for code in codes if CODES[code][0] == status], headers, replayed) for status in statuses
    }


def _problem(codes: list[str], headers: tuple[str, ...], replayed: set[str]) -> Part:
    own_headers = [name for code in codes for name in CODE_HEADERS.get(code, []) + POSSIBLE_HEADERS.get(code, [])]
    own_headers += ["Idempotent-Replayed"] * (not replayed.isdisjoint(codes))
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}], "properties": {"code": {"enum": codes}}}
    description = ". ".join(f"`{code}`: {CODES[code][1]}" for code in codes)
    return answer(description, *headers, *own_headers, content={PROBLEM_JSON: {"schema": schema}})


UNADMITTED = ("not_authenticated", "invalid_token", "credentials_outdated", "insufficient_scope")


def _read(*codes: str) -> Responses:
    return problems(*UNADMITTED, *codes, "validation_failed", "database_unavailable")


def _read_notes(*codes: str, headers: tuple[str, ...] = ()) -> Responses:
    return {
        200: answer("What was asked for", "ETag", *headers),
        304: answer("The client has it already", "ETag", *headers),
    } | _read("invalid_header", *codes)


def _write(*codes: str) -> Responses:
    return _command(*UNADMITTED, *codes, "idempotency_key_spent", "database_unavailable")


def _command(*codes: str) -> Responses:
    accepted = answer(
        "Accepted; it will be applied, and `Location` tells its outcome",
        *("Location", "Retry-After", "Preference-Applied"),
        model=CommandState,
    )
    decided = ("discarded", "validation_failed", "idempotency_key_reused", "command_failed", "internal_error")
    undecided = ("not_accepted", "overloaded", "unconfirmed")
    return {202: accepted} | problems("invalid_header", *codes, *decided, *undecided, is_write=True)


WRITTEN = ("Preference-Applied", "Idempotent-Replayed")
WITHOUT_BODY = "no body, as preferred or because the credentials lack `notes:read`"
BODY = ("invalid_json", "request_timeout", "unsupported_media_type")
CHANGE = ("note_not_found", "precondition_failed", "precondition_required")
CHANGED: Responses = {
    200: answer("The note as it is now", "ETag", *WRITTEN),
    204: answer(f"The note has been changed; {WITHOUT_BODY}", "ETag", *WRITTEN),
}
PATCH = problems("unsupported_media_type", headers=("Accept-Patch",))
GONE: Responses = {204: answer("It is gone", *WRITTEN)}

LIST_NOTES = _read_notes("overloaded", headers=("Link", "X-Total-Count"))
SEARCH_NOTES = _read_notes("overloaded", "search_timeout", headers=("Link",))
GET_NOTE = _read_notes("note_not_found")
CREATE_NOTE = {201: answer(f"The note; or {WITHOUT_BODY}", "Location", "ETag", *WRITTEN)} | _write(*BODY)
REPLACE_NOTE = CHANGED | _write(*BODY, *CHANGE)
PATCH_NOTE = REPLACE_NOTE | PATCH
CHANGE_NOTES = {
    200: answer("What became of each of them", *WRITTEN),
    204: answer(f"All have been applied; {WITHOUT_BODY}", *WRITTEN),
} | _write(*BODY, *CHANGE)
DELETE_NOTE = GONE | _write(*CHANGE)
STATE = "The state of the write; `answer` has no body if the credentials may not read it"
GET_COMMAND = {200: answer(STATE, "Retry-After", "Preference-Applied")} | _read("command_not_found", "command_gone")
REGISTER_USER = {201: answer("The user", "Location", *WRITTEN)} | _command(*BODY, "name_taken", "too_many_requests")
GET_USER = _read()
USER_CHANGED: Responses = {
    200: answer("The user as it is now", *WRITTEN),
    204: answer("It has happened; without a body, as preferred", *WRITTEN),
}
CHANGE_USER = USER_CHANGED | _write(*BODY, "wrong_password", "name_taken", "too_many_requests") | PATCH
DELETE_USER = GONE | _write()
ISSUE_TOKEN = problems(
    *("invalid_request", "unsupported_grant_type", "invalid_scope", "invalid_grant", "too_many_requests"),
    *("request_timeout", "unsupported_media_type", "validation_failed", "overloaded", "database_unavailable"),
)
CREATE_TOKEN = {201: answer("The personal token", "Location", *WRITTEN)} | _write(*BODY)
LIST_TOKENS = _read("overloaded")
GET_TOKEN = _read("token_not_found")
REVOKE_TOKEN = GONE | _write("token_not_found")
_FORM = {
    "title": "LoginForm",
    "type": "object",
    "required": ["username", "password"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["password"], "default": "password"},
        "username": {"type": "string"},
        "password": {"type": "string", "format": "password"},
        "scope": {"type": "string", "description": "Scopes with spaces between them; all where there is none"},
    },
}
FORM_FIELDS = frozenset(_FORM["properties"])
FORM: Part = {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": _FORM}}}}
EVERY = problems("body_too_large", "uri_too_long", "headers_too_large", "internal_error")
MISDIRECTED = problems("misdirected_request")
READY: Responses = {503: {"description": "Stopping", "content": {"application/json": {}}}}


def security_schemes(root_path: str) -> Part:
    """The security schemes of a deployment with users, served below `root_path`."""
    flow = {
        "tokenUrl": f"{root_path}/auth/token",
        "scopes": {
            Scope.READ.value: "Read notes",
            Scope.WRITE.value: "Write notes and poll for outcomes; without `notes:read`, answers contain no notes",
            Scope.ACCOUNT.value: "Change the account and its personal tokens",
        },
    }
    return {
        "password": {
            "type": "oauth2",
            "description": "An access token for a name and a password",
            "flows": {"password": flow},
        },
        "personalToken": {"type": "http", "scheme": "bearer", "description": "A personal token, for scripts"},
    }


def _let_everybody_in(document: Part) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
            for status in ("401", "403"):
                operation["responses"].pop(status, None)


def _identify_answers(document: Part) -> None:
    """Declares the header that every answer has."""
    header = {"description": HEADERS[REQUEST_ID], "schema": {"type": "string"}}
    document["components"]["headers"] = {REQUEST_ID: header}
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                response.setdefault("headers", {})[REQUEST_ID] = {"$ref": f"#/components/headers/{REQUEST_ID}"}


def _name_bodies(document: Part) -> None:
    """Makes the schemas of request bodies components, so that generated clients have names for them."""
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = dict(content["schema"])
                schemas |= schema.pop("$defs", {})
                schemas[schema["title"]] = schema
                content["schema"] = {"$ref": SCHEMA.format(model=schema["title"])}


def operation_id(route: APIRoute) -> str:
    """The endpoint's name as clients in most languages have their functions: `createNote`."""
    first, *others = route.name.split("_")
    return first + "".join(map(str.capitalize, others))


def extend_document(app: FastAPI, root_path: str, *, has_users: bool) -> None:
    """Adds to the app's OpenAPI document the model of problems, and how users sign in."""
    generate = app.openapi

    def openapi() -> Part:
        if app.openapi_schema is None:
            document = generate()
            _, schema = models_json_schema([(Problem, "serialization")], ref_template=SCHEMA)
            document["components"]["schemas"] |= schema["$defs"]
            _name_bodies(document)
            _identify_answers(document)
            if has_users:
                document["components"]["securitySchemes"] = security_schemes(root_path)
            else:
                _let_everybody_in(document)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
