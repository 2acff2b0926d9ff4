"""What a request says: each part of it is read, validated and documented by one reader.

The routes run as plain functions of the request, because FastAPI's dependency solver and exit stacks cost more
than a read; FastAPI still routes, documents and handles the errors.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from starlette.routing import Match
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from gateway.errors import ProblemError, invalid
from gateway.json_values import has_more_values, is_broken
from gateway.media_types import parse_media_type, reject_encoded_body, unsupported_media_type
from gateway.metrics import told_of
from gateway.middleware import route_path
from gateway.openapi import SCHEMA, Part
from gateway.pages import NotesPage, Page, SearchPage
from gateway.parameters import Integer64, Uuid, parse_query
from gateway.passwords import PASSWORD_MAX_LENGTH
from gateway.rules import OPEN, rule_of
from gateway.schemas import LEFT_OUT
from shared.contracts import Scope, Username, storable

WITHOUT_PARAMETERS = ("/notes/batch", "/notes/search")
"""Paths that would be those of notes otherwise."""
ERRORS_TO_LIST = 5000
"""A body may have a quarter of a million, and to put so many into words would keep everybody else waiting."""
VALUES_LIMIT = 1000
"""Members and items in a body about one thing; each may become an error, and everybody waits while it is made."""
ITEM_STEPS = 2
"""From the body to an item of a list in it."""
ModelT = TypeVar("ModelT", bound=BaseModel)


def _once(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    """Each scope once, in one order, so that repetitions of a request have one fingerprint."""
    return tuple(sorted(set(scopes)))


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request alone and makes the whole response, once its rule has let it in.

    Query parameters that the operation does not declare are rejected after the rule. An endpoint that applies its rule
    itself also rejects them itself.
    """

    ignores_query = False

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """Whether it serves the request; a path without parameters is nobody else's, whatever the method."""
        if route_path(scope) in WITHOUT_PARAMETERS and "{" in self.path:
            return Match.NONE, {}
        return super().matches(scope)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint behind the rule that its OpenAPI operation declares; raises TypeError where it declares none."""
        if self.dependant.dependencies:
            raise TypeError(f"{self.name} declares dependencies, which a plain route would not run")
        rule, endpoint = rule_of(self), self.endpoint
        takes_query = self.ignores_query or has_query(self.openapi_extra or {})

        async def admit(request: Request) -> Response:
            await rule.admit(request)
            if request.scope["query_string"] and not takes_query:
                NO_QUERY.of(request)
            response: Response = await endpoint(request)
            return response

        return endpoint if (rule == OPEN and takes_query) or rule.is_applied_by_endpoint else admit

    def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """As FastAPI does, and has the request counted for this route."""
        told_of(scope).route = self.path
        return super().handle(scope, receive, send)


def has_query(operation: Part) -> bool:
    """Whether an operation declares query parameters."""
    return any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))


class Reader(Protocol):
    """Reads a part of a request."""

    @property
    def openapi(self) -> Part:
        """The part as members of an OpenAPI operation."""


def described_by(*readers: Reader) -> Part:
    """The parts that an operation reads, for a route's `openapi_extra`."""
    described: Part = {}
    for reader in readers:
        for member, part in reader.openapi.items():
            described[member] = described.get(member, []) + part if isinstance(part, list) else part
    return described


class Parameters(Generic[ModelT]):
    """Reads the parameters of the path or of the query into a model."""

    def __init__(self, model: type[ModelT], location: Literal["path", "query"]) -> None:
        self._model = model
        self._location = location

    def of(self, request: Request) -> ModelT:
        """The parameters; raises ProblemError 422."""
        pairs = parse_query(request) if self._location == "query" else list(request.path_params.items())
        try:
            read = self._model.model_validate(dict(pairs))
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            raise invalid(errors, part=self._location) from None
        if twice := repeated(pairs):
            errors = [
                {"type": "repeated", "loc": (name,), "msg": "Should be there once", "input": None} for name in twice
            ]
            raise invalid(errors, part=self._location)
        return read

    @property
    def openapi(self) -> Part:
        """The parameters."""
        schema = self._model.model_json_schema()
        required = schema.get("required", ())
        return {
            "parameters": [
                {"name": name, "in": self._location, "required": name in required, "schema": without_null(each)}
                for name, each in schema["properties"].items()
            ]
        }


def repeated(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """The names that occur more than once."""
    counted = Counter(name for name, _ in pairs)
    return [name for name, count in counted.items() if count > 1]


def without_null(schema: Part) -> Part:
    """The schema of what may be left out, but has no other default."""
    return {name: value for name, value in schema.items() if name != "default" or value is not None}


class TokenPath(BaseModel):
    """Which personal token a request is about."""

    token_id: Uuid


class NotePath(BaseModel):
    """Which note a request is about."""

    note_id: Integer64


class NoQuery(BaseModel, extra="forbid"):
    """The query of an operation that declares no parameters."""


NO_QUERY = Parameters(NoQuery, "query")
TOKEN_PATH = Parameters(TokenPath, "path")
NOTE_PATH = Parameters(NotePath, "path")
PAGE = Parameters(Page, "query")
NOTES_PAGE = Parameters(NotesPage, "query")
SEARCH_PAGE = Parameters(SearchPage, "query")


class Body(Generic[ModelT]):
    """Reads a JSON body into a model."""

    def __init__(
        self,
        model: type[ModelT],
        *media_types: str,
        discriminator: str | None = None,
        values_limit: int = VALUES_LIMIT,
    ) -> None:
        self._model = model
        self._media_types = media_types
        self._values_limit = values_limit
        self._discriminator = discriminator
        """The member that tells what the items of a list are, if they are of several kinds."""

    async def of(self, request: Request) -> ModelT:
        """The body; raises ProblemError 415, 400 or 422."""
        self._require_media_type(request)
        body = await request.body()
        if has_more_values(body, self._values_limit) and not is_broken(body):
            told = f"Has more than {self._values_limit} members and items in all"
            raise invalid([ErrorDetails(type="too_many_values", loc=(), msg=told, input=None)], part="body")
        try:
            return self._model.model_validate_json(body, strict=True)
        except ValidationError as error:
            if error.error_count() > ERRORS_TO_LIST:
                told = f"Has {error.error_count()} errors, which are too many to tell one by one"
                too_many = ErrorDetails(type="too_many_errors", loc=(), msg=told, input=None)
                raise invalid([too_many], part="body") from None
            errors = error.errors(include_url=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise ProblemError(HTTPStatus.BAD_REQUEST, "invalid_json", errors[0]["msg"])
        raise invalid([self._located(error) for error in errors], part="body")

    def _located(self, error: ErrorDetails) -> ErrorDetails:
        """The error at its place in the body: pydantic counts the kind of an item as a step, or stops before it."""
        place = error["loc"]
        if self._discriminator and error["type"].startswith("union_tag"):
            place = (*place, self._discriminator)
        elif self._discriminator and len(place) > ITEM_STEPS:
            place = place[:ITEM_STEPS] + place[ITEM_STEPS + 1 :]
        return {**error, "loc": place}

    @property
    def openapi(self) -> Part:
        """The request body; its schema is one of the document's components in the end."""
        schema = self._model.model_json_schema(ref_template=SCHEMA)
        return {"requestBody": {"required": True, "content": {each: {"schema": schema} for each in self._media_types}}}

    def _require_media_type(self, request: Request) -> None:
        reject_encoded_body(request)
        if parse_media_type(request) not in self._media_types:
            detail = f"Send the body as {' or '.join(self._media_types)}"
            headers = {"Accept-Patch": ", ".join(self._media_types)} if request.method == "PATCH" else None
            raise unsupported_media_type(detail, headers)


Password = Annotated[
    SecretStr, Field(min_length=8, max_length=PASSWORD_MAX_LENGTH, json_schema_extra={"format": "password"})
]
ADA = {"name": "Ada", "password": "a long enough password"}


class NewUser(BaseModel, extra="forbid", json_schema_extra={"examples": [ADA]}):
    """What somebody registers with."""

    name: Username
    password: Password


class UserPatch(BaseModel, extra="forbid", json_schema_extra={"examples": [{"name": "Ada"}]}):
    """A merge patch (RFC 7396) of a user; a new password needs the current one."""

    name: Username = LEFT_OUT
    password: Password = LEFT_OUT
    current_password: SecretStr = LEFT_OUT


class NewToken(
    BaseModel, extra="forbid", json_schema_extra={"examples": [{"name": "backup", "scopes": ["notes:read"]}]}
):
    """What a personal token shall allow, and for how long."""

    name: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(storable)]
    scopes: Annotated[
        tuple[Literal[Scope.READ, Scope.WRITE], ...], Field(min_length=1, max_length=2), AfterValidator(_once)
    ]
    expires_in_days: Annotated[int, Field(ge=1, le=366)] = 90


NEW_USER = Body(NewUser, "application/json")
USER_PATCH = Body(UserPatch, "application/merge-patch+json", "application/json")
NEW_TOKEN = Body(NewToken, "application/json")
