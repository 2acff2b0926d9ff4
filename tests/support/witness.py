"""Compares what gateways answer with the OpenAPI document."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway.http.openapi import HEADER_DESCRIPTIONS
from gateway.http.responses import PROBLEM_JSON
from gateway.http.validation import FIELD_CODES
from gateway.problems import PROBLEM_TYPES
from gateway.telemetry.request_ids import REQUEST_ID

Response = tuple[str, int, str | None]
"""An operation, a status, and a header, a problem's code or None."""


@dataclass
class Witness:
    """Compares each response with the document and records what it has seen."""

    document: dict[str, Any]
    seen: set[Response] = field(default_factory=set)

    async def __call__(self, response: httpx.Response) -> None:
        if "content-length" in response.headers:  # a stream may never end
            await response.aread()
        operation = self.operation(response.request)
        media_type = response.headers.get("content-type")
        code = response.json()["code"] if media_type == PROBLEM_JSON else None
        answered = {code} | {name for name in HEADER_DESCRIPTIONS if name in response.headers}
        text = response.text if response.is_closed else "a stream"
        asked = f"{response.request.method} {response.request.url} {text}"
        assert str(response.status_code) in operation["responses"], asked
        declared = operation["responses"][str(response.status_code)]
        assert answered <= set(members(declared)), asked
        assert REQUEST_ID in answered, asked
        assert answered >= set(PROBLEM_TYPES[code].headers if code else ()), asked
        assert media_type is None or media_type in declared["content"], asked
        self.seen |= {(operation["operationId"], response.status_code, each) for each in answered}

    @property
    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The method, the path and the description of each operation."""
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                yield method.upper(), path, operation

    def operation(self, request: httpx.Request) -> dict[str, Any]:
        """The document's operation for the request; a path without parameters takes precedence."""
        found = {}
        for method, path, operation in self.operations:
            template = re.sub(r"{\w+}", "[^/]+", path) + "/?"
            if method == request.method and re.fullmatch(template, request.url.path):
                found[path.count("{")] = operation
        assert found, request.url.path
        return found[min(found)]

    @property
    def declared(self) -> set[Response]:
        """Every response that the document declares."""
        return {
            (operation["operationId"], int(status), each)
            for _, _, operation in self.operations
            for status, response in operation["responses"].items()
            for each in members(response)
        }


def members(response: dict[str, Any]) -> list[str | None]:
    """The headers of a declared response, and the codes of its problem."""
    schema = response.get("content", {}).get(PROBLEM_JSON, {}).get("schema")
    return [*response.get("headers", ()), *(schema["properties"]["code"]["enum"] if schema else [None])]


async def knows_every_field_code(response: httpx.Response) -> None:
    """Fails if a field's error has an undocumented code; an event hook for clients."""
    if response.headers.get("content-type") == PROBLEM_JSON and await response.aread():
        assert {error["code"] for error in response.json().get("errors", ())} <= set(FIELD_CODES.values()), (
            response.text
        )
