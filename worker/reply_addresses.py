"""Accepts only direct reply-to addresses, which the broker builds from its own process ids.

A publisher may have forged the address. RabbitMQ before 4.3 closes the connection of a publisher whose address it
cannot decode, so such an address is not used there.
"""

import re
from base64 import b64decode

from shared.messaging import REPLY_TO

ROBUST_SINCE = (4, 3)
"""The first RabbitMQ that ignores an address that it cannot decode."""
_PROCESS_ID = re.compile(rb"\x83X(?:[vd](..)|[ws](.))", re.DOTALL)
"""The start of an Erlang pid in the external term format, up to the length of its node's name."""
_AFTER_NAME_BYTES = 12


def is_reply_address(address: str, broker_version: str) -> bool:
    """Whether a reply can be sent to this address without risk to the connection."""
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
