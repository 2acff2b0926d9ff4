"""Tokens: access tokens for a name and a password (OAuth 2.0, RFC 6749 §4.3), personal tokens for scripts."""

from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr

from gateway.dependencies import Gateway, caller_of, gateway_of
from gateway.errors import ProblemError
from gateway.idempotency import IDEMPOTENCY_KEY
from gateway.media_types import parse_media_type, reject_encoded_body
from gateway.openapi import CREATE_TOKEN, FORM, FORM_FIELDS, GET_TOKEN, ISSUE_TOKEN, LIST_TOKENS, REVOKE_TOKEN
from gateway.personal_tokens import digest, revealed, secret
from gateway.preferences import PREFER
from gateway.queries import Login
from gateway.requests import NEW_TOKEN, PAGE, TOKEN_PATH, PlainRoute, described_by
from gateway.rules import OPEN, OWN_ACCOUNT
from gateway.schemas import AccessToken, NewPersonalToken
from gateway.writes import identify, perform
from shared.contracts import (
    NAME_MAX_LENGTH,
    CreateToken,
    PublicToken,
    RevokeToken,
    Scope,
    TokenRequest,
    TokenTarget,
    folded,
    username,
)

REPEATABLE = (PREFER, IDEMPOTENCY_KEY)

router = APIRouter(prefix="/auth", tags=["tokens"], route_class=PlainRoute)


@router.post("/token", response_model=AccessToken, responses=ISSUE_TOKEN, openapi_extra=OPEN.openapi | FORM)
async def issue_token(request: Request) -> Response:
    """An access token for a name and a password."""
    gateway, form = gateway_of(request), await form_of(request)
    scopes = scopes_of(form)
    login = await log_in(request, gateway, form)
    token = AccessToken(
        access_token=gateway.access_tokens.issue(login.owner, login.credentials_version, scopes),
        expires_in=gateway.access_tokens.lifetime_seconds,
        scope=" ".join(sorted(scopes)),
    )
    return Response(token.model_dump_json(), media_type="application/json")


async def form_of(request: Request) -> dict[str, str]:
    """The known form fields; raises ProblemError 415, or 400 with an error code of RFC 6749 §5.2."""
    reject_encoded_body(request)
    if parse_media_type(request) != "application/x-www-form-urlencoded":
        raise oauth_problem("invalid_request", "Send the parameters as application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode()
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise oauth_problem("invalid_request", "The parameters are not URL-encoded UTF-8") from None
    given = [(name, value) for name, value in fields if name in FORM_FIELDS]
    form = dict(given)
    if len(form) < len(given) or not {"username", "password"} <= form.keys():
        raise oauth_problem("invalid_request", "Send username and password, and each parameter once")
    if form.get("grant_type", "password") != "password":
        raise oauth_problem("unsupported_grant_type", "The grant type is password")
    return form


def scopes_of(form: dict[str, str]) -> frozenset[Scope]:
    """The scopes that are asked for; every one where none is named."""
    try:
        return frozenset(Scope(word) for word in form.get("scope", "").split(" ") if word) or frozenset(Scope)
    except ValueError:
        raise oauth_problem("invalid_scope", f"The scopes are {', '.join(Scope)}") from None


async def log_in(request: Request, gateway: Gateway, form: dict[str, str]) -> Login:
    """The user with this password; a wrong one takes as long, and is answered as, a user who is not there."""
    account = account_of(form["username"])
    await gateway.throttles.guess(request, account)
    login = await gateway.queries.find_login(account) if account else None
    password, password_hash = SecretStr(form["password"]), login.password_hash if login else None
    if not await gateway.passwords.verify(password, password_hash) or login is None:
        raise oauth_problem("invalid_grant", "The name or the password is wrong")
    await gateway.throttles.guessed(request, account)
    gateway.hash_renewal.begin(login, password)
    return login


def account_of(name: str) -> str:
    """The folded name; empty where nobody can be called so."""
    try:
        return folded(username(name)) if len(name) <= NAME_MAX_LENGTH else ""
    except ValueError:
        return ""


def oauth_problem(error: str, detail: str) -> ProblemError:
    """A problem that OAuth clients understand as well."""
    return ProblemError(400, error, detail, error=error)


@router.post(
    "/tokens",
    status_code=201,
    response_model=NewPersonalToken,
    responses=CREATE_TOKEN,
    openapi_extra=described_by(OWN_ACCOUNT, *REPEATABLE, NEW_TOKEN),
)
async def create_token(request: Request) -> Response:
    """Adds a personal token; its secret, `token`, is in this answer alone."""
    settings, wanted = gateway_of(request).settings, await NEW_TOKEN.of(request)
    identity = identify(request, CreateToken)
    data = TokenRequest(
        name=wanted.name,
        scopes=wanted.scopes,
        lifetime_days=wanted.expires_in_days,
        secret_digest=digest(secret(settings, identity.owner, identity.command_id, identity.issued_at)),
    )
    return await perform(
        request, CreateToken, data, identity, lambda outcome: revealed(settings, identity.owner, outcome)
    )


@router.get(
    "/tokens",
    response_model=list[PublicToken],
    responses=LIST_TOKENS,
    openapi_extra=described_by(OWN_ACCOUNT, PAGE),
)
async def list_tokens(request: Request) -> Response:
    """The user's personal tokens that a new password has not ended, the oldest first, without their secrets."""
    page = PAGE.of(request)
    tokens = await gateway_of(request).queries.list_tokens(caller_of(request), page.skip, page.limit)
    return JSONResponse([printed(token) for token in tokens])


@router.get(
    "/tokens/{token_id}",
    response_model=PublicToken,
    responses=GET_TOKEN,
    openapi_extra=described_by(OWN_ACCOUNT, TOKEN_PATH),
)
async def get_token(request: Request) -> Response:
    """One personal token, without its secret."""
    token = await gateway_of(request).queries.find_token(caller_of(request), TOKEN_PATH.of(request).token_id)
    if token is None:
        raise ProblemError(404, "token_not_found", "Personal token not found")
    return JSONResponse(printed(token))


@router.delete(
    "/tokens/{token_id}",
    status_code=204,
    responses=REVOKE_TOKEN,
    openapi_extra=described_by(OWN_ACCOUNT, TOKEN_PATH, *REPEATABLE),
)
async def revoke_token(request: Request) -> Response:
    """Ends a personal token: at once here, within half a minute in other gateways."""
    target = TokenTarget(token_id=TOKEN_PATH.of(request).token_id)
    identity = identify(request, RevokeToken, str(target.token_id))
    try:
        return await perform(request, RevokeToken, target, identity)
    finally:
        gateway_of(request).authentication.forget(identity.owner)


def printed(token: PublicToken) -> dict[str, Any]:
    """A personal token as JSON."""
    return token.model_dump(mode="json")
