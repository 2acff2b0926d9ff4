"""Tokens: access tokens for a name and a password (OAuth 2.0, RFC 6749 §4.3), personal tokens for scripts."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, Field, SecretStr, TypeAdapter

from gateway.api.pages import Page
from gateway.api.schemas import AccessToken, NewPersonalToken
from gateway.auth.personal_tokens import digest, reveal_token
from gateway.http.body import Body
from gateway.http.media_types import parse_media_type, reject_encoded_body
from gateway.http.openapi import describe_response
from gateway.http.operations import PUBLIC, Operations
from gateway.http.parameters import Parameters, Uuid
from gateway.http.requests import OpenApi, Request
from gateway.http.responses import Response
from gateway.problems import (
    DATABASE_UNAVAILABLE,
    INVALID_GRANT,
    INVALID_REQUEST,
    INVALID_SCOPE,
    OVERLOADED,
    REQUEST_TIMEOUT,
    TOKEN_NOT_FOUND,
    TOO_MANY_REQUESTS,
    UNSUPPORTED_GRANT_TYPE,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    ProblemType,
)
from gateway.reads.results import Login
from gateway.resources import Gateway
from gateway.writes.submission import ACCEPTED_RESPONSE, DELETE_RESPONSES, WRITE_HEADERS, WRITE_PROBLEMS, WRITE_READERS
from shared.contracts import (
    MAX_TOKEN_DAYS,
    NAME_MAX_LENGTH,
    CreateToken,
    PublicToken,
    RevokeToken,
    Scope,
    TokenRequest,
    TokenTarget,
    check_storable,
    fold_name,
    parse_username,
)

_FORM_TYPE = "application/x-www-form-urlencoded"
_FORM = {
    "title": "LoginForm",
    "type": "object",
    "required": ["username", "password"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["password"], "default": "password"},
        "username": {"type": "string"},
        "password": {"type": "string", "format": "password"},
        "scope": {"type": "string", "description": "Scopes separated by spaces; all scopes if omitted"},
    },
}


class LoginForm:
    """Reads the form parameters of a login (RFC 6749 §4.3.2)."""

    problems = (INVALID_REQUEST, UNSUPPORTED_GRANT_TYPE, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE)

    async def read(self, request: Request) -> Mapping[str, str]:
        """Return the known form fields; raises ProblemError 408, 413 or 415, or 400 with an error of RFC 6749 §5.2."""
        reject_encoded_body(request)
        if parse_media_type(request) != _FORM_TYPE:
            raise _build_oauth_problem(INVALID_REQUEST, f"Send the parameters as {_FORM_TYPE}")
        try:
            text = (await request.body()).decode()
            fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=20)
        except ValueError:
            raise _build_oauth_problem(INVALID_REQUEST, "The parameters are not URL-encoded UTF-8") from None
        known = [(name, value) for name, value in fields if name in _FORM["properties"]]
        form = dict(known)
        if len(form) < len(known) or not {"username", "password"} <= form.keys():
            raise _build_oauth_problem(INVALID_REQUEST, "Send username and password, and no parameter twice")
        if form.get("grant_type", "password") != "password":
            raise _build_oauth_problem(UNSUPPORTED_GRANT_TYPE)
        return form

    @property
    def openapi(self) -> OpenApi:
        """The form."""
        return {"requestBody": {"required": True, "content": {_FORM_TYPE: {"schema": _FORM}}}}


def _sort_scopes(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    """Return each scope once, sorted, so that repeated requests have the same fingerprint."""
    return tuple(sorted(set(scopes)))


class NewToken(
    BaseModel, extra="forbid", json_schema_extra={"examples": [{"name": "backup", "scopes": ["notes:read"]}]}
):
    """The scopes and the lifetime of a new personal token."""

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH), AfterValidator(check_storable)]
    scopes: Annotated[
        tuple[Literal[Scope.READ, Scope.WRITE], ...],
        Field(min_length=1, max_length=2),
        AfterValidator(_sort_scopes),
    ]
    expires_in_days: Annotated[int, Field(ge=1, le=MAX_TOKEN_DAYS)] = 90


class _TokenPath(BaseModel):
    token_id: Uuid


PUBLIC_TOKENS = TypeAdapter(list[PublicToken])
LOGIN_FORM = LoginForm()
NEW_TOKEN = Body(NewToken, "application/json")
TOKEN_PATH = Parameters(_TokenPath, "path")
PAGE = Parameters(Page, "query")

operations: Operations[Gateway] = Operations("tokens")


@operations.add(
    "POST",
    "/auth/token",
    requires=PUBLIC,
    inputs=(LOGIN_FORM,),
    returns=AccessToken,
    problems=(INVALID_SCOPE, INVALID_GRANT, TOO_MANY_REQUESTS, OVERLOADED, DATABASE_UNAVAILABLE),
)
async def issue_token(gateway: Gateway, request: Request) -> Response:
    """Issues an access token for a name and a password."""
    form = request[LOGIN_FORM]
    scopes = _parse_scopes(form)
    login = await _log_in(gateway, request, form)
    token = AccessToken(
        access_token=gateway.access_tokens.issue(login.owner, login.credentials_version, scopes),
        expires_in=gateway.access_tokens.lifetime_seconds,
        scope=" ".join(sorted(scopes)),
    )
    return Response(token.model_dump_json())


def _parse_scopes(form: Mapping[str, str]) -> frozenset[Scope]:
    """Return the requested scopes; all of them if the form names none."""
    try:
        return frozenset(Scope(word) for word in form.get("scope", "").split(" ") if word) or frozenset(Scope)
    except ValueError:
        raise _build_oauth_problem(INVALID_SCOPE, f"The scopes are {', '.join(Scope)}") from None


async def _log_in(gateway: Gateway, request: Request, form: Mapping[str, str]) -> Login:
    """Verify name and password; for an unknown user the error and the time taken are the same."""
    account = _fold_account(form["username"])
    gateway.throttles.count_guess(request, account)
    login = await gateway.queries.find_login(account) if account else None
    password = SecretStr(form["password"])
    password_hash = login.password_hash if login else None
    if not await gateway.passwords.verify(password, password_hash) or login is None:
        raise _build_oauth_problem(INVALID_GRANT)
    gateway.throttles.forget_guesses(request, account)
    gateway.hash_renewal.begin(login, password)
    return login


def _fold_account(name: str) -> str:
    """Return the folded name; empty if it is invalid."""
    try:
        return fold_name(parse_username(name)) if len(name) <= NAME_MAX_LENGTH else ""
    except ValueError:
        return ""


def _build_oauth_problem(kind: ProblemType, detail: str | None = None) -> ProblemError:
    """Return a problem with OAuth 2.0's member `error`."""
    return ProblemError(kind, detail, error=kind.code)


@operations.add(
    "POST",
    "/auth/tokens",
    requires=Scope.ACCOUNT,
    inputs=(NEW_TOKEN, *WRITE_READERS),
    returns=NewPersonalToken,
    responses={201: describe_response("The personal token", "Location", *WRITE_HEADERS)} | ACCEPTED_RESPONSE,
    problems=WRITE_PROBLEMS,
)
async def create_token(gateway: Gateway, request: Request) -> Response:
    """Creates a personal token; only this response contains its secret, `token`."""
    new_token = request[NEW_TOKEN]
    owner = request.caller.owner
    identity = gateway.submission.identify(request, CreateToken)
    secret = gateway.keyed_hashes.personal_token(owner, identity.command_id, identity.issued_at)
    data = TokenRequest(
        name=new_token.name,
        scopes=new_token.scopes,
        lifetime_days=new_token.expires_in_days,
        secret_digest=digest(secret),
    )
    reveal = partial(reveal_token, gateway.keyed_hashes, owner)
    return await gateway.submission.perform(request, CreateToken, data, identity, reveal)


@operations.add(
    "GET",
    "/auth/tokens",
    requires=Scope.ACCOUNT,
    inputs=(PAGE,),
    returns=list[PublicToken],
    problems=(OVERLOADED,),
)
async def list_tokens(gateway: Gateway, request: Request) -> Response:
    """Lists the user's personal tokens, the oldest first, without their secrets; a new password revokes them all."""
    page = request[PAGE]
    tokens = await gateway.queries.list_tokens(request.caller, page.skip, page.limit)
    return Response(PUBLIC_TOKENS.dump_json(tokens))


@operations.add(
    "GET",
    "/auth/tokens/{token_id}",
    requires=Scope.ACCOUNT,
    inputs=(TOKEN_PATH,),
    returns=PublicToken,
    problems=(TOKEN_NOT_FOUND,),
)
async def get_token(gateway: Gateway, request: Request) -> Response:
    """Returns a personal token, without its secret."""
    token = await gateway.queries.find_token(request.caller, request[TOKEN_PATH].token_id)
    if token is None:
        raise ProblemError(TOKEN_NOT_FOUND)
    return Response(token.model_dump_json())


@operations.add(
    "DELETE",
    "/auth/tokens/{token_id}",
    requires=Scope.ACCOUNT,
    inputs=(TOKEN_PATH, *WRITE_READERS),
    responses=DELETE_RESPONSES,
    problems=(*WRITE_PROBLEMS, TOKEN_NOT_FOUND),
)
async def revoke_token(gateway: Gateway, request: Request) -> Response:
    """Revokes a personal token: at once in this gateway, within half a minute in others."""
    target = TokenTarget(token_id=request[TOKEN_PATH].token_id)
    identity = gateway.submission.identify(request, RevokeToken, str(target.token_id))
    try:
        return await gateway.submission.perform(request, RevokeToken, target, identity)
    finally:
        gateway.authentication.forget(request.caller.owner)
