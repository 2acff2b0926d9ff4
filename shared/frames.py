"""Decodes AMQP content headers leniently, so that undecodable properties do not close the connection.

When pamqp raises on a content header, aiormq closes the connection and the broker redelivers the message: a single
timestamp in the year 292278994 would keep a worker from consuming anything.
"""

import struct

from pamqp.commands import Basic
from pamqp.header import ContentHeader

MAX_PROPERTIES_BYTES = 4096
"""A gateway sends a few hundred bytes; decoding takes time quadratic in the size."""
UNREADABLE_PROPERTIES = "inkwell.unreadable-properties"
"""The `type` of a message whose properties could not be decoded; it has no other property."""
DELIVERY_MODES = (None, 1, 2)
DECODING_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error)

_decode = ContentHeader.unmarshal


def decode_leniently(header: ContentHeader, data: bytes) -> None:
    """Decode a content header, and replace undecodable properties with UNREADABLE_PROPERTIES."""
    try:
        if len(data) > MAX_PROPERTIES_BYTES:
            raise ValueError("the properties are too long")
        _decode(header, data)
        if header.properties.delivery_mode not in DELIVERY_MODES:
            raise ValueError("aio-pika would drop the message")
    except DECODING_ERRORS:
        header.class_id, header.weight, header.body_size = struct.unpack(">HHQ", data[:12])
        header.properties = Basic.Properties(message_type=UNREADABLE_PROPERTIES)


def install_lenient_decoding() -> None:
    """Replace pamqp's decoder of content headers in this process; aiormq offers no hook for it."""
    ContentHeader.unmarshal = decode_leniently  # type: ignore[assignment,method-assign]
