"""The id of a request, which its response, log lines and trace share.

Keeps the `X-Request-ID` of a client or proxy if it is safe to log; otherwise generates one.
"""

import re

from uuid_utils import uuid7

REQUEST_ID = "X-Request-ID"
REQUEST_ID_HEADER = REQUEST_ID.lower().encode()
"""Its name as ASGI has it."""
SAFE_TO_LOG = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def choose_request_id(header: bytes | None) -> bytes:
    """Return the id from the header if it is safe to log, or a new one."""
    return header if header and SAFE_TO_LOG.fullmatch(header) else uuid7().hex.encode()
