"""The id of a request, which its answer, log lines and trace have in common.

Keeps the `X-Request-ID` of a client or proxy if it is safe to log; otherwise generates one.
"""

import re

from uuid_utils import uuid7

REQUEST_ID = "X-Request-ID"
HEADER = REQUEST_ID.lower().encode()
HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def choose_request_id(stated: bytes | None) -> bytes:
    """Return the request's own id if it is safe to log, or a new one."""
    return stated if stated and HARMLESS.fullmatch(stated) else uuid7().hex.encode()
