"""Accepts only direct reply-to addresses, which the broker builds from its process ids.

The address may be forged. RabbitMQ before 4.3 closes a connection that publishes to an address that it cannot decode,
so for those versions the address is checked.
"""

import re
from base64 import b64decode

from shared.messaging import REPLY_TO

ROBUST_SINCE = (4, 3)
"""The first version of RabbitMQ that ignores an address that it cannot decode."""
_PROCESS_ID = re.compile(rb"\x83X(?:[vd](..)|[ws](.))", re.DOTALL)
"""The start of a pid in Erlang's external term format, up to the length of the node's name."""
_AFTER_NAME_BYTES = 12


def is_reply_address(address: str, broker_version: str) -> bool:
    """Whether publishing to this address cannot cost the connection."""
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
