"""Keeps a message whose AMQP properties cannot be decoded from ending the connection that it arrives on.

Where pamqp raises on a content header, aiormq closes the connection. The broker then delivers the same message again,
so a single timestamp of the year 292278994 would keep a worker from consuming anything.
"""

import struct

from pamqp.commands import Basic
from pamqp.header import ContentHeader

MAX_PROPERTIES_BYTES = 4096
"""A gateway's have some hundred; decoding is quadratic in their length."""
UNREADABLE_PROPERTIES = "inkwell.unreadable-properties"
"""The `type` of a message whose properties could not be decoded; it has no others."""
DELIVERY_MODES = (None, 1, 2)
DECODING_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error)


_decode = ContentHeader.unmarshal


def decode_leniently(header: ContentHeader, data: bytes) -> None:
    """Decodes a content header, if need be without its properties."""
    try:
        if len(data) > MAX_PROPERTIES_BYTES:
            raise ValueError("the properties are too long")
        _decode(header, data)
        if header.properties.delivery_mode not in DELIVERY_MODES:
            raise ValueError("aio-pika would drop the message")
    except DECODING_ERRORS:
        header.class_id, header.weight, header.body_size = struct.unpack(">HHQ", data[:12])
        header.properties = Basic.Properties(message_type=UNREADABLE_PROPERTIES)


def survive_unreadable_properties() -> None:
    """Has every content header of this process decoded leniently."""
    ContentHeader.unmarshal = decode_leniently  # type: ignore[assignment,method-assign]
