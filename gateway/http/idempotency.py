"""The `Idempotency-Key` header: requests with the same key are the same command, in every gateway.

The command's id is derived from the key, and the worker deduplicates by id; the gateway stores nothing.
"""

import json
import re
from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

from gateway.http.requests import OpenApi, Request, describe_header
from gateway.http.validation import build_header_problem
from gateway.problems import INVALID_HEADER

COMMAND_IDS = UUID("3d1c44de-6b5c-4e4b-8f4e-7c2a5a0d9e61")
"""The UUIDv5 namespace of derived command ids; every gateway must have the same."""
_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"|([\x21\x23-\x7e][\x20-\x7e]{0,254})')


class IdempotencyKey:
    """Reads the key, quoted as in the IETF draft, or bare."""

    problems = (INVALID_HEADER,)

    async def read(self, request: Request) -> str | None:
        """Return the key without its quotes, or None; raises ProblemError 400."""
        if b"idempotency-key" not in request.headers_by_name:
            return None
        values = request.headers.getlist("idempotency-key")
        match = _KEY.fullmatch(values[0])
        if match is None or len(values) > 1:
            raise build_header_problem("Idempotency-Key", "one key of 1 to 255 printable ASCII characters")
        return re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else str(match[2])

    @property
    def openapi(self) -> OpenApi:
        """The header."""
        description = (
            "Makes the request safe to repeat: while outcomes are kept, equal requests with the same key have one "
            "effect and one outcome"
        )
        schema = {"type": "string", "pattern": f"^({_KEY.pattern})$", "examples": ['"8e03978e-40d5-43dd-bc93"']}
        return {"parameters": [describe_header("Idempotency-Key", description, schema)]}


def build_command_id(namespace: int | str, command_type: str, target: int | str | None, key: str | None) -> UUID:
    """Return a new id or, with a key, the same id for each repetition of the request.

    The namespace is the owner, so that equal keys of two owners do not collide.
    """
    if key is None:
        return uuid7()
    return uuid5(COMMAND_IDS, json.dumps([namespace, command_type, target, key]))


IDEMPOTENCY_KEY = IdempotencyKey()
