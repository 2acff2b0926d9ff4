"""Users: registration, and the caller's own account."""

from typing import Annotated

from pydantic import BaseModel, Field, SecretStr

from gateway.auth.passwords import PASSWORD_MAX_LENGTH
from gateway.http.body import Body
from gateway.http.omittable import Omittable
from gateway.http.openapi import describe_response
from gateway.http.operations import PUBLIC, Operations
from gateway.http.requests import OpenApi, Request
from gateway.http.responses import Response
from gateway.problems import (
    IDEMPOTENCY_KEY_SPENT,
    NAME_TAKEN,
    TOO_MANY_REQUESTS,
    VALIDATION_FAILED,
    WRONG_PASSWORD,
    FieldError,
    ProblemError,
)
from gateway.resources import Gateway
from gateway.writes.submission import (
    ACCEPTED_RESPONSE,
    DELETE_RESPONSES,
    WRITE_HEADERS,
    WRITE_PROBLEMS,
    WRITE_READERS,
    Identity,
)
from shared.contracts import (
    ChangeUser,
    DeleteUser,
    NoData,
    PublicUser,
    RegisterUser,
    Registration,
    Scope,
    UserChange,
    Username,
    fold_name,
)

Password = Annotated[
    SecretStr, Field(min_length=8, max_length=PASSWORD_MAX_LENGTH, json_schema_extra={"format": "password"})
]
_ADA = {"name": "Ada", "password": "a long enough password"}


class NewUser(BaseModel, extra="forbid", json_schema_extra={"examples": [_ADA]}):
    """A registration."""

    name: Username
    password: Password


class UserPatch(BaseModel, extra="forbid", json_schema_extra={"examples": [{"name": "Ada"}]}):
    """A merge patch (RFC 7396) of a user; a new password requires the current one."""

    name: Omittable[Username] = None
    password: Omittable[Password] = None
    current_password: Omittable[SecretStr] = None


NEW_USER = Body(NewUser, "application/json")
USER_PATCH = Body(UserPatch, "application/merge-patch+json", "application/json")
CHANGE_RESPONSES: dict[int, OpenApi] = {
    200: describe_response("The updated user", *WRITE_HEADERS),
    204: describe_response("The user has been updated; no body with `return=minimal`", *WRITE_HEADERS),
}

operations: Operations[Gateway] = Operations("users")


@operations.add(
    "POST",
    "/users",
    requires=PUBLIC,
    inputs=(NEW_USER, *WRITE_READERS),
    returns=PublicUser,
    responses={201: describe_response("The new user", "Location", *WRITE_HEADERS)} | ACCEPTED_RESPONSE,
    # Registering needs no credentials that could become outdated, so its key is never spent.
    problems=(*(each for each in WRITE_PROBLEMS if each != IDEMPOTENCY_KEY_SPENT), NAME_TAKEN, TOO_MANY_REQUESTS),
)
async def register_user(gateway: Gateway, request: Request) -> Response:
    """Creates a user; names are unique regardless of case and width."""
    user = request[NEW_USER]
    identity = gateway.submission.identify_registration(request, f"user:{fold_name(user.name)}")
    gateway.throttles.count_name(request)
    password_hash = await gateway.passwords.hash(user.password, _choose_salt(gateway, identity))
    registration = Registration(name=user.name, password_hash=password_hash)
    return await gateway.submission.perform(request, RegisterUser, registration, identity)


@operations.add("GET", "/users/me", requires=Scope.ACCOUNT, returns=PublicUser)
async def get_user(gateway: Gateway, request: Request) -> Response:
    """Returns the caller's account."""
    user = await gateway.queries.get_user(request.caller)
    return Response(user.model_dump_json())


@operations.add(
    "PATCH",
    "/users/me",
    requires=Scope.ACCOUNT,
    inputs=(USER_PATCH, *WRITE_READERS),
    returns=PublicUser,
    responses=CHANGE_RESPONSES | ACCEPTED_RESPONSE,
    problems=(*WRITE_PROBLEMS, WRONG_PASSWORD, NAME_TAKEN, TOO_MANY_REQUESTS),
)
async def change_user(gateway: Gateway, request: Request) -> Response:
    """Changes the name or the password; a new password revokes every token, including the one used here."""
    patch = request[USER_PATCH]
    identity = gateway.submission.identify(request, ChangeUser)
    if patch.name is not None:
        gateway.throttles.count_name(request)
    password_hash = await _hash_new_password(gateway, request, patch, identity)
    change = UserChange(name=patch.name, password_hash=password_hash)
    return await _perform_on_account(gateway, request, ChangeUser, change, identity)


@operations.add(
    "DELETE",
    "/users/me",
    requires=Scope.ACCOUNT,
    inputs=WRITE_READERS,
    responses=DELETE_RESPONSES,
    problems=WRITE_PROBLEMS,
)
async def delete_user(gateway: Gateway, request: Request) -> Response:
    """Permanently deletes the user with all notes and tokens."""
    return await _perform_on_account(
        gateway, request, DeleteUser, NoData(), gateway.submission.identify(request, DeleteUser)
    )


async def _perform_on_account(
    gateway: Gateway,
    request: Request,
    model: type[ChangeUser | DeleteUser],
    data: UserChange | NoData,
    identity: Identity,
) -> Response:
    """Perform the write, and forget the caller's cached credentials: the write may change them."""
    try:
        return await gateway.submission.perform(request, model, data, identity)
    finally:
        gateway.authentication.forget(request.caller.owner)


async def _hash_new_password(gateway: Gateway, request: Request, patch: UserPatch, identity: Identity) -> str | None:
    """Hash the new password, if there is one; raises ProblemError if the current password is incorrect."""
    if patch.password is None:
        return None
    caller = request.caller
    if patch.current_password is None:
        detail = "A new password requires the current one"
        error = FieldError(pointer="/body/current_password", code="missing", detail=detail)
        raise ProblemError(VALIDATION_FAILED, detail, errors=[error])
    gateway.throttles.count_guess(request, caller.owner)
    if not await gateway.passwords.verify(patch.current_password, await gateway.queries.find_password(caller)):
        raise ProblemError(WRONG_PASSWORD)
    gateway.throttles.forget_guesses(request, caller.owner)
    return await gateway.passwords.hash(patch.password, _choose_salt(gateway, identity))


def _choose_salt(gateway: Gateway, identity: Identity) -> bytes | None:
    """Return the salt of the new password: fixed if there is an idempotency key, so that a repetition is equal."""
    return gateway.keyed_hashes.salt(identity.command_id) if identity.is_repeatable else None
