"""The id of a request, by which its answer, its log lines and its trace are found.

The client's or a proxy's `X-Request-ID` is kept if it is harmless in a log; any other request gets one of its own.
"""

import re

from starlette.types import Scope
from uuid_utils import uuid7

REQUEST = "inkwell.request_id"
"""Where in a request's scope its id is."""
REQUEST_ID = "X-Request-ID"
HEADER = REQUEST_ID.lower().encode()
HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def new_request_id() -> bytes:
    """An id that no other request has."""
    return uuid7().hex.encode()


def request_id_of(scope: Scope) -> bytes:
    """The request's own id, or a new one."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value if HARMLESS.fullmatch(value) else new_request_id()
    return new_request_id()
