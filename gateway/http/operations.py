"""Declares operations, the API's endpoints: their access, the parts that they read, and their answers.

The front enforces an operation, and the OpenAPI document is generated from it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from gateway.http.answers import Answer
from gateway.http.body import Body
from gateway.http.parameters import NO_QUERY, Parameters
from gateway.http.requests import OpenApi, Reader, Request
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
"""The problems that every operation may answer with."""
AUTHENTICATION_PROBLEMS = (
    NOT_AUTHENTICATED,
    INVALID_TOKEN,
    CREDENTIALS_OUTDATED,
    INSUFFICIENT_SCOPE,
    DATABASE_UNAVAILABLE,
)
"""The problems of authentication."""
PUBLIC: Literal["public"] = "public"
"""In place of a scope: the operation needs no credentials."""
Allowed = Scope | Literal["public"]
P = ParamSpec("P")
ResourcesT = TypeVar("ResourcesT")
Handler = Callable[[ResourcesT, Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Operation(Generic[ResourcesT]):
    """One endpoint."""

    handler: Handler[ResourcesT]
    """Its name and its docstring are those of the operation in the OpenAPI document."""
    tag: str
    method: str
    path: str
    """`{name}` stands for a segment, whose value is a parameter."""
    _: KW_ONLY
    allows: Allowed
    """The scope that the caller's credentials must have."""
    exempts: Callable[[ResourcesT, Request], bool] | None = None
    """Returns whether a particular request needs no credentials after all."""
    reads: tuple[Reader[Any], ...] = ()
    """The parts of a request, in the order in which they are read; their values are in `request[reader]`."""
    ignores_query: bool = False
    """Whether query parameters that nothing reads are ignored, not rejected."""
    returns: Any = None
    """The type of the body of a successful answer."""
    answers: Mapping[int, OpenApi] = field(default_factory=dict)
    """The answers that are no problems, by their status; the usual one first."""
    problems: tuple[ProblemType, ...] = ()
    """The problems that the handler may raise."""

    @cached_property
    def readers(self) -> tuple[Reader[Any], ...]:
        """The declared readers; the first rejects any query unless one of them reads it."""
        takes_query = any(isinstance(each, Parameters) and each.location == "query" for each in self.reads)
        return self.reads if takes_query or self.ignores_query else (NO_QUERY, *self.reads)

    @cached_property
    def body_limit_bytes(self) -> int | None:
        """None for the limit of the settings."""
        return next((each.limit_bytes for each in self.reads if isinstance(each, Body)), None)

    @property
    def all_problems(self) -> set[ProblemType]:
        """Every problem that may be answered."""
        refused = () if self.allows == PUBLIC else AUTHENTICATION_PROBLEMS
        read = [problem for reader in self.readers for problem in reader.problems]
        return {*COMMON_PROBLEMS, *refused, *read, *self.problems}


def _decorator(
    operation: Callable[Concatenate[Handler[ResourcesT], str, P], Operation[ResourcesT]],
) -> "Callable[Concatenate[Operations[ResourcesT], P], Callable[[Handler[ResourcesT]], Handler[ResourcesT]]]":
    """Return a method with the parameters of an operation, except the handler, which it decorates, and the tag."""

    def add(
        self: "Operations[ResourcesT]", /, *args: P.args, **fields: P.kwargs
    ) -> Callable[[Handler[ResourcesT]], Handler[ResourcesT]]:
        def declare(handler: Handler[ResourcesT]) -> Handler[ResourcesT]:
            self.append(operation(handler, self.tag, *args, **fields))
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
