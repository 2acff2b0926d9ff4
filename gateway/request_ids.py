"""The id of a request, by which its answer, its log lines and its trace are found.

The client's or a proxy's `X-Request-ID` is kept if it is harmless in a log; any other request gets one of its own.
"""

import re

from starlette.types import Scope
from structlog.contextvars import bind_contextvars
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


def bind_request(request_id: bytes) -> None:
    """Puts the id on every log line of the request; what the one before on the same connection had is taken off."""
    bind_contextvars(request_id=request_id.decode(), command_id=..., trace_id=...)  # an ellipsis is not logged
