"""Describes errors for the log, without user content or secrets."""

import re

import aiormq.channel
import aiormq.connection
import asyncpg
from aio_pika.exceptions import AMQPError, DeliveryError
from pamqp.commands import Basic

MAX_CHARACTERS = 300
QUOTING_CLASSES = ("22", "23", "P0")
"""SQLSTATE classes whose messages may quote user content: data, constraints, and errors raised by a trigger."""
REPLY_CODES: dict[type[AMQPError], int] = {
    error: code
    for mapping in (aiormq.connection.EXCEPTION_MAPPING, aiormq.channel.EXCEPTION_MAPPING)
    for code, error in mapping.items()
}
_CREDENTIALS = re.compile(r"//[^\s/@]*@")


def describe_error(error: BaseException) -> str:
    """Return the error in one line, with its SQLSTATE or AMQP reply code if it has one."""
    kind = type(error).__name__
    text = _get_text(error)
    code = _find_code(error)
    return f"{kind}{f' {code}' if code else ''}{f': {text}' if text else ''}"


def _find_code(error: BaseException) -> str | int | None:
    match error:
        case asyncpg.PostgresError():
            return error.sqlstate
        case DeliveryError(frame=Basic.Return() as returned):
            return returned.reply_code
        case AMQPError():
            return REPLY_CODES.get(type(error))
        case _:
            return None


def _get_text(error: BaseException) -> str:
    match error:
        case asyncpg.PostgresError() if str(error.sqlstate).startswith(QUOTING_CLASSES):
            return error.constraint_name or ""
        case asyncpg.PostgresError():  # not `str(error)`, which includes DETAIL and so may quote rows
            text = error.message
        case DeliveryError(frame=Basic.Return() as returned):
            text = returned.reply_text
        case DeliveryError():
            return "the broker rejected the message"
        case TimeoutError() if not str(error):
            return "no answer in time"
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() | AMQPError() | OSError():
            text = str(error)
        case _:
            return ""
    return _CREDENTIALS.sub("//", " ".join(str(text or "").split()))[:MAX_CHARACTERS]
