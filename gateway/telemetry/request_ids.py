"""The id of a request, which its answer, log lines and trace have in common.

Keeps the `X-Request-ID` of a client or proxy if it is safe to log; otherwise generates one.
"""

import re

from starlette.types import Scope
from uuid_utils import uuid7

REQUEST_ID = "X-Request-ID"
HEADER = REQUEST_ID.lower().encode()
HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def new_request_id() -> bytes:
    """Return a unique id."""
    return uuid7().hex.encode()


def choose_request_id(scope: Scope) -> bytes:
    """Return the request's own id if it is safe to log, or a new one."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value if HARMLESS.fullmatch(value) else new_request_id()
    return new_request_id()
