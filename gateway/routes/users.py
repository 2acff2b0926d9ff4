"""Users: who signs up, and what they do to their own account."""

import hashlib
from uuid import UUID

from fastapi import APIRouter, Request, Response

from gateway.dependencies import caller_of, gateway_of
from gateway.errors import FieldError, ProblemError
from gateway.idempotency import IDEMPOTENCY_KEY
from gateway.openapi import CHANGE_USER, DELETE_USER, GET_USER, REGISTER_USER
from gateway.preferences import PREFER
from gateway.requests import NEW_USER, USER_PATCH, PlainRoute, UserPatch, described_by
from gateway.rules import OPEN, OWN_ACCOUNT
from gateway.settings import GatewaySettings
from gateway.writes import Identity, identify, perform
from shared.contracts import ChangeUser, DeleteUser, Nothing, PublicUser, RegisterUser, Registration, UserChange, folded

REPEATABLE = (PREFER, IDEMPOTENCY_KEY)

router = APIRouter(prefix="/users", tags=["users"], route_class=PlainRoute)


@router.post(
    "",
    status_code=201,
    response_model=PublicUser,
    responses=REGISTER_USER,
    openapi_extra=described_by(OPEN, *REPEATABLE, NEW_USER),
)
async def register_user(request: Request) -> Response:
    """Adds a user; names differ by more than their case."""
    gateway, user = gateway_of(request), await NEW_USER.of(request)
    identity = identify(request, RegisterUser, scope=f"user:{folded(user.name)}")
    await gateway.throttles.registration(request)
    password_hash = await gateway.passwords.hash(user.password, salt(gateway.settings, identity))
    registration = Registration(name=user.name, password_hash=password_hash)
    return await perform(request, RegisterUser, registration, identity)


@router.get("/me", response_model=PublicUser, responses=GET_USER, openapi_extra=described_by(OWN_ACCOUNT))
async def get_user(request: Request) -> Response:
    """The user who asks."""
    user = await gateway_of(request).queries.find_user(caller_of(request))
    return Response(user.model_dump_json(), media_type="application/json")


@router.patch(
    "/me",
    response_model=PublicUser,
    responses=CHANGE_USER,
    openapi_extra=described_by(OWN_ACCOUNT, *REPEATABLE, USER_PATCH),
)
async def change_user(request: Request) -> Response:
    """Changes the name or the password; a new password ends every token, this request's among them."""
    patch, identity = await USER_PATCH.of(request), identify(request, ChangeUser)
    change = UserChange(name=patch.name, password_hash=await new_password_hash(request, patch, identity))
    return await perform_on_account(request, ChangeUser, change, identity)


@router.delete("/me", status_code=204, responses=DELETE_USER, openapi_extra=described_by(OWN_ACCOUNT, *REPEATABLE))
async def delete_user(request: Request) -> Response:
    """Removes the user with all notes and tokens, for good."""
    return await perform_on_account(request, DeleteUser, Nothing(), identify(request, DeleteUser))


async def perform_on_account(
    request: Request, model: type[ChangeUser | DeleteUser], data: UserChange | Nothing, identity: Identity
) -> Response:
    """As `perform`; what this gateway knows of the caller's credentials is forgotten."""
    try:
        return await perform(request, model, data, identity)
    finally:
        gateway_of(request).authentication.forget(identity.owner)


async def new_password_hash(request: Request, patch: UserPatch, identity: Identity) -> str | None:
    """The hash of the new password, if there is one; raises ProblemError where the current one is not right."""
    if patch.password is None:
        return None
    gateway, caller = gateway_of(request), caller_of(request)
    if patch.current_password is None:
        detail = "A new password needs the current one"
        error = FieldError(pointer="/body/current_password", code="missing", detail=detail)
        raise ProblemError(422, "validation_failed", detail, errors=[error])
    await gateway.throttles.guess(request, caller.owner)
    if not await gateway.passwords.verify(patch.current_password, await gateway.queries.find_password(caller)):
        raise ProblemError(403, "wrong_password", "The current password is another")
    await gateway.throttles.guessed(request, caller.owner)
    return await gateway.passwords.hash(patch.password, salt(gateway.settings, identity))


def salt(settings: GatewaySettings, identity: Identity) -> bytes | None:
    """The salt of a password that comes with a key: always the same, so that its repetition is the same command."""
    return command_salt(settings, identity.command_id) if identity.is_repeatable else None


def command_salt(settings: GatewaySettings, command_id: UUID) -> bytes:
    """A salt that no other command has."""
    key = settings.fingerprint_key.get_secret_value().encode()
    return hashlib.blake2b(command_id.bytes, digest_size=16, key=key[:64], person=b"inkwell salt").digest()
