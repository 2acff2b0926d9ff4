"""Entity tags and the conditions on them: `ETag`, `If-Match` and `If-None-Match` (RFC 9110 §8.8.3 and §13).

Accepts tags that a compressing proxy has changed: made weak, or suffixed with the content coding.
"""

import re
from collections.abc import Mapping, Sequence

from fastapi import Request

from gateway.errors import ProblemError, invalid_header
from gateway.openapi import Part
from gateway.settings import GatewaySettings
from shared.contracts import Preconditions

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_SUFFIX = re.compile(r"--?(?:gzip|br|zstd|deflate)$")
"""Apache and Caddy append it within the quotes; Jetty uses two hyphens."""
_LIST = re.compile(rf"[ \t]*(?:{_TAG.pattern}[ \t]*)?(?:,[ \t]*(?:{_TAG.pattern}[ \t]*)?)*")
"""Tags with commas between them; some elements may be empty (RFC 9110 §5.6.1.2)."""
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
NO_CONDITIONS = Preconditions()


def etag(version: int) -> str:
    """The strong entity tag of a note in this version."""
    return f'"{version}"'


def not_modified(request: Request, tag: str) -> bool:
    """Whether the client already has the representation with this tag."""
    header = _header(request, "if-none-match")
    if header is None:
        return False
    return header == "*" or tag in [f'"{opaque}"' for opaque in _tags("If-None-Match", header)]


class Conditions:
    """Reads the conditions of a change; without one, and where the settings demand one, raises 428."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._required = settings.require_preconditions

    def of(self, request: Request) -> Preconditions:
        """The versions in which the change may have its effect; raises ProblemError 400 or 428."""
        match, none_match = _header(request, "if-match"), _header(request, "if-none-match")
        if match is None and self._required:
            raise required()
        if match is None and none_match is None:
            return NO_CONDITIONS
        wanted = None if match in {None, "*"} else _versions("If-Match", match)
        unwanted = _versions("If-None-Match", none_match) if none_match not in {None, "*"} else none_match
        return Preconditions.model_validate({"if_match": wanted, "if_none_match": unwanted})

    def demand(self, versions: Mapping[int, Sequence[int] | None]) -> None:
        """Several writes at once, by their index: raises ProblemError 428 for the first that must and does not say."""
        lacking = [index for index, each in versions.items() if each is None]
        if lacking and self._required:
            raise required(lacking[0])

    @property
    def openapi(self) -> Part:
        """The headers."""
        schema = {"type": "string", "examples": ['"3"', "*"]}
        return {
            "parameters": [
                {
                    "name": "If-Match",
                    "in": "header",
                    "required": self._required,
                    "description": "Entity tags, also weak: change the note only in one of these versions, else 412",
                    "schema": schema,
                },
                {
                    "name": "If-None-Match",
                    "in": "header",
                    "description": "Entity tags: change the note only in none of these versions, else 412",
                    "schema": schema,
                },
            ]
        }


def required(item: int | None = None) -> ProblemError:
    """428, for a write or for one of several."""
    detail = f"Say with {'If-Match' if item is None else 'if_match'} which version of the note you change"
    return ProblemError(428, "precondition_required", detail, item=item)


class Cached:
    """Documents the condition of a read, which `not_modified` decides."""

    @property
    def openapi(self) -> Part:
        """The header."""
        description = "Entity tags that the client has: 304 where the answer is still one of them"
        schema = {"type": "string", "examples": ['"3"']}
        return {"parameters": [{"name": "If-None-Match", "in": "header", "description": description, "schema": schema}]}


def _header(request: Request, name: str) -> str | None:
    values = request.headers.getlist(name) if name in request.headers else None
    return None if values is None else ",".join(values).strip()


def _tags(name: str, header: str) -> list[str]:
    """The entity tags of a header, unquoted and without a proxy's suffix; raises ProblemError 400."""
    tags: list[str] = _TAG.findall(header) if _LIST.fullmatch(header) else []
    if not tags:
        raise invalid_header(name, 'a list of entity tags such as "3", or *')
    return [_SUFFIX.sub("", tag) for tag in tags]


def _versions(name: str, header: str | None) -> tuple[int, ...]:
    """The versions that the tags stand for; a tag that no note can have stands for none.

    Weak tags match in `If-Match` too, contrary to RFC 9110 §13.1.1: a version has one text in every encoding.
    """
    return tuple(int(tag) for tag in _tags(name, header or "") if _VERSION.fullmatch(tag))
