"""Where replies may be sent: to direct reply-to addresses alone, which the broker makes of its own processes' ids.

Whoever publishes a command may have written the address. RabbitMQ before 4.3 closes the connection that publishes to
an address which it cannot decode, so there such a one is not used.
"""

import re
from base64 import b64decode

from shared.messaging import REPLY_TO

ROBUST_SINCE = (4, 3)
"""The first RabbitMQ that survives every address."""
_PROCESS_ID = re.compile(rb"\x83X(?:[vd](..)|[ws](.))", re.DOTALL)
"""An Erlang process's id in the external term format, up to the length of its node's name."""
_AFTER_NAME_BYTES = 12


def is_reply_address(address: str, broker_version: str) -> bool:
    """Whether replies can be sent there without harm to anybody."""
    prefix, _, process = address.partition(f"{REPLY_TO}.")
    if prefix or not process:
        return False
    major, minor, *_ = broker_version.split(".")
    return (int(major), int(minor)) >= ROBUST_SINCE or _is_process_id(process.partition(".")[0])


def _is_process_id(encoded: str) -> bool:
    try:
        term = b64decode(encoded, validate=True)
    except ValueError:
        return False
    match = _PROCESS_ID.match(term)
    if match is None:
        return False
    size = int.from_bytes(match[1] or match[2])
    node = term[match.end() : match.end() + size]
    return node.isascii() and len(term) == match.end() + size + _AFTER_NAME_BYTES
