"""The id of a request, by which its answer, its log lines and its trace are found.

The client's or a proxy's `X-Request-ID` is kept if it is harmless in a log; any other request gets one of its own.
"""

import re

from starlette.types import Scope
from uuid_utils import uuid7

REQUEST_ID = "X-Request-ID"
HEADER = REQUEST_ID.lower().encode()
HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def new_request_id() -> bytes:
    """An id that no other request has."""
    return uuid7().hex.encode()


def choose_request_id(scope: Scope) -> bytes:
    """The id that the request came with, or a new one."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value if HARMLESS.fullmatch(value) else new_request_id()
    return new_request_id()
