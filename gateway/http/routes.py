"""Finds the operation for a method and a path."""

from collections.abc import Iterable, Mapping

from gateway.http.operations import AnyOperation
from gateway.problems import METHOD_NOT_ALLOWED, NOT_FOUND, ProblemError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class _Segment:
    """A node of the tree of paths."""

    def __init__(self, name: str = "") -> None:
        self.literal: dict[str, _Segment] = {}
        self.parameter: _Segment | None = None
        self.name = name
        """The name of the parameter whose value this segment is; empty for a literal."""
        self.operations: dict[str, AnyOperation] = {}
        """The operations whose path ends here, by method."""


class Routes:
    """The operations by path and method; a literal segment takes precedence over a parameter, without backtracking.

    So /notes/search/versions is 404, although `/notes/{note_id}/versions` would match it.
    """

    def __init__(self, operations: Iterable[AnyOperation]) -> None:
        self._root: _Segment = _Segment()
        for operation in operations:
            self._add(operation)

    def _add(self, operation: AnyOperation) -> None:
        segment = self._root
        for part in operation.path.split("/")[1:]:
            if part.startswith("{"):
                segment.parameter = segment.parameter or _Segment(name=part[1:-1])
                segment = segment.parameter
                if part != f"{{{segment.name}}}":
                    raise TypeError(f"{operation.path}: this segment is called {{{segment.name}}} elsewhere")
            else:
                segment = segment.literal.setdefault(part, _Segment())
        if operation.method in segment.operations:
            raise TypeError(f"{operation.method} {operation.path} is declared twice")
        segment.operations[operation.method] = operation
        if operation.method == "GET":
            segment.operations["HEAD"] = operation

    def resolve(self, path: str) -> tuple[dict[str, AnyOperation], dict[str, str]]:
        """Return the path's operations by method, and the values of its parameters; raises ProblemError 404."""
        segment = self._root
        parameters = dict[str, str]()
        for part in path.split("/")[1:]:
            if part in segment.literal:
                segment = segment.literal[part]
            elif segment.parameter and part:
                segment = segment.parameter
                parameters[segment.name] = part
            else:
                raise ProblemError(NOT_FOUND)
        if not segment.operations:
            raise ProblemError(NOT_FOUND)
        return segment.operations, parameters


def choose_operation(operations: Mapping[str, AnyOperation], method: str) -> AnyOperation:
    """Return the operation for the method; raises ProblemError 405."""
    if operation := operations.get(method):
        return operation
    allowed = ", ".join(each for each in METHODS if each in operations)
    raise ProblemError(METHOD_NOT_ALLOWED, headers={"Allow": allowed})
