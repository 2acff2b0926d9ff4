"""Declares operations, the API's endpoints: who may call them, what they read, and what they answer.

The front enforces the declarations, and the OpenAPI document is generated from them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from gateway.http.body import Body
from gateway.http.lines import UNLIMITED, Lines
from gateway.http.parameters import NO_QUERY, Parameters
from gateway.http.requests import OpenApi, Reader, Request
from gateway.http.responses import JSON, Response
from gateway.problems import (
    BODY_TOO_LARGE,
    CREDENTIALS_OUTDATED,
    DATABASE_UNAVAILABLE,
    HEADERS_TOO_LARGE,
    INSUFFICIENT_SCOPE,
    INTERNAL_ERROR,
    INVALID_TOKEN,
    NOT_AUTHENTICATED,
    URI_TOO_LONG,
    ProblemType,
)
from shared.contracts import Scope

COMMON_PROBLEMS = (BODY_TOO_LARGE, URI_TOO_LONG, HEADERS_TOO_LARGE, INTERNAL_ERROR)
"""The problems of every operation."""
AUTHENTICATION_PROBLEMS = (
    NOT_AUTHENTICATED,
    INVALID_TOKEN,
    CREDENTIALS_OUTDATED,
    INSUFFICIENT_SCOPE,
    DATABASE_UNAVAILABLE,
)
"""The problems of every operation that needs credentials."""
PUBLIC: Literal["public"] = "public"
"""Instead of a scope: the operation needs no credentials."""
Requirement = Scope | Literal["public"]
P = ParamSpec("P")
ResourcesT = TypeVar("ResourcesT")
Handler = Callable[[ResourcesT, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Operation(Generic[ResourcesT]):
    """One endpoint."""

    handler: Handler[ResourcesT]
    """Its name and docstring document the operation."""
    tag: str
    method: str
    path: str
    """A segment `{name}` is a parameter."""
    _: KW_ONLY
    requires: Requirement
    """The scope that the caller's credentials must have."""
    exempts: Callable[[ResourcesT, Request], bool] | None = None
    """Whether a particular request needs no credentials, despite `requires`."""
    inputs: tuple[Reader[Any], ...] = ()
    """The readers of the request's parts, in order; the handler gets a part's value with `request[reader]`."""
    ignores_query: bool = False
    """Whether undeclared query parameters are ignored instead of rejected."""
    returns: Any = None
    """The type of the body of a successful response."""
    media_type: str = JSON
    """Its media type; one other than JSON's has no type."""
    responses: Mapping[int, OpenApi] = field(default_factory=dict)
    """Descriptions of the responses that are not problems, by status; the usual one first."""
    problems: tuple[ProblemType, ...] = ()
    """The problems that the handler may raise."""

    @cached_property
    def readers(self) -> tuple[Reader[Any], ...]:
        """The declared readers, after one that rejects any query unless one of them reads the query."""
        takes_query = any(isinstance(each, Parameters) and each.location == "query" for each in self.inputs)
        return self.inputs if takes_query or self.ignores_query else (NO_QUERY, *self.inputs)

    @cached_property
    def body_limit_bytes(self) -> int | None:
        """The limit on the body; None for that of the settings."""
        return next((each.limit_bytes for each in self.inputs if isinstance(each, Body | Lines)), None)

    @property
    def all_problems(self) -> set[ProblemType]:
        """Every problem that the operation may be answered with."""
        of_credentials = () if self.requires == PUBLIC else AUTHENTICATION_PROBLEMS
        of_readers = [problem for reader in self.readers for problem in reader.problems]
        problems = {*COMMON_PROBLEMS, *of_credentials, *of_readers, *self.problems}
        return problems - {BODY_TOO_LARGE} if self.body_limit_bytes == UNLIMITED else problems


AnyOperation = Operation[Any]
"""An operation of any app."""


def _decorator(
    build: Callable[Concatenate[Handler[ResourcesT], str, P], Operation[ResourcesT]],
) -> "Callable[Concatenate[Operations[ResourcesT], P], Callable[[Handler[ResourcesT]], Handler[ResourcesT]]]":
    """Return a method with the parameters of `Operation` except the handler, which it decorates, and the tag.

    Derived, so that the type checker finds a missing `requires` or a misspelled parameter, and none is declared twice.
    """

    def add(
        self: "Operations[ResourcesT]", /, *args: P.args, **fields: P.kwargs
    ) -> Callable[[Handler[ResourcesT]], Handler[ResourcesT]]:
        def declare(handler: Handler[ResourcesT]) -> Handler[ResourcesT]:
            self.append(build(handler, self.tag, *args, **fields))
            return handler

        return declare

    return add


class Operations(list[Operation[ResourcesT]]):
    """The operations on one resource."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag = tag

    add = _decorator(Operation[ResourcesT])
    """Declare the decorated handler as an operation."""
