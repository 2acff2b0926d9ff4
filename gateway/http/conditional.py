"""Entity tags and conditional requests: `ETag`, `If-Match` and `If-None-Match` (RFC 9110 §8.8.3 and §13).

Accepts tags that a compressing proxy has changed: made weak, or suffixed with the content coding.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus

from gateway.http.openapi import describe_response
from gateway.http.requests import OpenApi, Request, describe_header
from gateway.http.responses import Response
from gateway.http.validation import build_header_problem
from gateway.problems import INVALID_HEADER, PRECONDITION_REQUIRED, ProblemError, ProblemType
from shared.contracts import Preconditions

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_SUFFIX = re.compile(r"--?(?:gzip|br|zstd|deflate)$")
"""Apache and Caddy append it within the quotes; Jetty uses two hyphens."""
_LIST = re.compile(rf"[ \t]*(?:{_TAG.pattern}[ \t]*)?(?:,[ \t]*(?:{_TAG.pattern}[ \t]*)?)*")
"""Tags with commas between them; some elements may be empty (RFC 9110 §5.6.1.2)."""
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
TAGS_SCHEMA: OpenApi = {"type": "string", "examples": ['"3"', "*"]}
NO_PRECONDITIONS = Preconditions()


def build_etag(version: int) -> str:
    """Return the strong entity tag of a note in this version."""
    return f'"{version}"'


class PreconditionHeaders:
    """Reads the `If-Match` and `If-None-Match` of a write; rejects it with 428 if it lacks a required `If-Match`."""

    def __init__(self, *, required: bool) -> None:
        self._required = required

    @property
    def problems(self) -> tuple[ProblemType, ...]:
        """Include 428 even if it is not required here: the document should be the same for every gateway."""
        return (INVALID_HEADER, PRECONDITION_REQUIRED)

    async def read(self, request: Request) -> Preconditions:
        """Return the preconditions on the note's version; raises ProblemError 400 or 428."""
        match = _read_header(request, b"if-match")
        none_match = _read_header(request, b"if-none-match")
        if match is None and self._required:
            raise build_required_problem()
        if match is None and none_match is None:
            return NO_PRECONDITIONS
        # `If-Match: *` requires only that the note exists, as every change does; `If-None-Match: *` that it does not.
        if_match = None if match in {None, "*"} else _parse_versions("If-Match", match)
        if_none_match = none_match if none_match in {None, "*"} else _parse_versions("If-None-Match", none_match)
        return Preconditions.model_validate({"if_match": if_match, "if_none_match": if_none_match})

    def check_items(self, if_match: Mapping[int, Sequence[int] | None]) -> None:
        """Raise ProblemError 428 for the first item of a batch whose required `if_match` is None."""
        lacking = [index for index, versions in if_match.items() if versions is None]
        if lacking and self._required:
            raise build_required_problem(lacking[0])

    @property
    def openapi(self) -> OpenApi:
        """The headers."""
        match = "Entity tags, which may be weak: 412 unless the note is in one of these versions"
        none_match = "Entity tags: 412 if the note is in one of these versions"
        return {
            "parameters": [
                describe_header("If-Match", match, TAGS_SCHEMA, required=self._required),
                describe_header("If-None-Match", none_match, TAGS_SCHEMA),
            ]
        }


def build_required_problem(item: int | None = None) -> ProblemError:
    """Return a 428 for a write, or for an item of a batch."""
    detail = f"Send {'If-Match' if item is None else 'if_match'} with the version of the note to change"
    return ProblemError(PRECONDITION_REQUIRED, detail, item=item)


class IfNoneMatch:
    """Reads the `If-None-Match` of a read."""

    problems = (INVALID_HEADER,)

    async def read(self, request: Request) -> Collection[str] | None:
        """Return the entity tags that the client has; None for `*`."""
        header = _read_header(request, b"if-none-match")
        if header == "*":
            return None
        return [f'"{opaque}"' for opaque in _parse_tags("If-None-Match", header)] if header is not None else ()

    @property
    def openapi(self) -> OpenApi:
        """The header."""
        description = "Entity tags of the client's copies: 304 if one of them is current"
        return {"parameters": [describe_header("If-None-Match", description, TAGS_SCHEMA)]}


IF_NONE_MATCH = IfNoneMatch()


def describe_read(*headers: str) -> dict[int, OpenApi]:
    """Return the descriptions of the responses of a conditional read, which may have these headers."""
    return {
        200: describe_response("Success", "ETag", *headers),
        304: describe_response("The client's copy is current", "ETag", *headers),
    }


def respond_unless_modified(request: Request, response: Response, tag: str) -> Response:
    """Return the response with its entity tag, or 304 if the client's copy is current."""
    response.headers["ETag"] = tag
    tags = request[IF_NONE_MATCH]
    if tags is None or tag in tags:
        return Response(status=HTTPStatus.NOT_MODIFIED, headers=response.headers)
    return response


def _read_header(request: Request, name: bytes) -> str | None:
    header = request.join_header(name)
    return None if header is None else header.strip()


def _parse_tags(name: str, header: str) -> list[str]:
    """Return the entity tags of a header, unquoted and without a proxy's suffix; raises ProblemError 400."""
    tags: list[str] = _TAG.findall(header) if _LIST.fullmatch(header) else []
    if not tags:
        raise build_header_problem(name, 'a list of entity tags such as "3", or *')
    return [_SUFFIX.sub("", tag) for tag in tags]


def _parse_versions(name: str, header: str | None) -> tuple[int, ...]:
    """Return the versions in the tags, ignoring tags that are not versions.

    Weak tags match in `If-Match` too, contrary to RFC 9110 §13.1.1: a version has one text in every encoding.
    """
    return tuple(int(tag) for tag in _parse_tags(name, header or "") if _VERSION.fullmatch(tag))
