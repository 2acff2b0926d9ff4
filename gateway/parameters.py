"""What paths and queries say: each value is read in one spelling, so that no request means what it does not say."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import Request
from pydantic import BeforeValidator, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.errors import invalid

_INTEGER = re.compile(r"0|[1-9][0-9]*")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]):([0-5][0-9]|60)(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
"""Date, hour and minute, seconds, their fraction, and the sign, hours and minutes of the offset (RFC 3339 §5.6)."""
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MORE_DIGITS_THAN_64_BITS = 20


def query_of(request: Request) -> list[tuple[str, str]]:
    """The names and values of the query, in order; raises ProblemError 422 for bytes that are not UTF-8.

    Bytes count the same whether they are percent-encoded or sent as they are.
    """
    query: bytes = request.scope["query_string"]
    if not query:
        return []
    stated = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in stated]
    try:
        return [(name.decode(), value.decode()) for name, value in pairs]
    except UnicodeDecodeError:
        names = [name.decode(errors="replace") for name, value in pairs if not _is_utf_8(name, value)]
        raise invalid([_not_utf_8(name) for name in names], part="query") from None


def _is_utf_8(*texts: bytes) -> bool:
    try:
        b"=".join(texts).decode()
    except UnicodeDecodeError:
        return False
    return True


def _not_utf_8(name: str) -> ErrorDetails:
    return ErrorDetails(type="string_unicode", loc=(name,), msg="Should be UTF-8", input=None)


def parse_integer(value: object) -> int:
    """The integer that a text stands for: ASCII digits, no sign, no leading zero; raises PydanticCustomError."""
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise PydanticCustomError("int_parsing", "Should be an integer: digits without a sign or leading zeros")
    return int(value[:_MORE_DIGITS_THAN_64_BITS])  # so many are out of range, however many follow


def parse_boolean(value: object) -> bool:
    """Whether a text is `true`; raises PydanticCustomError where it is not `false` either."""
    if value not in ("true", "false"):
        raise PydanticCustomError("bool_parsing", "Should be `true` or `false`")
    return value == "true"


def parse_uuid(value: object) -> UUID:
    """The UUID that a text is the hyphenated form of; raises PydanticCustomError."""
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise PydanticCustomError("uuid_parsing", "Should be a UUID")
    return UUID(value)


def parse_time(value: object) -> datetime:
    """The first microsecond that is not before the instant that a text of RFC 3339 names; raises PydanticCustomError.

    So a bound between two microseconds divides the notes exactly. One that its offset moves out of the years 1 to 9999
    becomes the first or the last microsecond of them: no note is beyond.
    """
    stated = _TIME.fullmatch(value) if isinstance(value, str) else None
    date, minute, seconds, fraction, sign, hours, minutes = stated.groups("0") if stated else ("",) * 7
    try:
        local = datetime.fromisoformat(f"{date}T{minute}+00:00")
    except ValueError:
        raise _no_time() from None
    microseconds = int(fraction[:6].ljust(6, "0")) + bool(fraction[6:].strip("0"))
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    since = timedelta(seconds=int(seconds), microseconds=microseconds)
    try:
        instant = local + (since + offset if sign == "-" else since - offset)
    except OverflowError:
        return _FIRST if local.year == 1 else _LAST
    if seconds == "60" and (instant.hour, instant.minute, instant.second) != (0, 0, 0):
        raise _no_time()  # leap seconds end a day in UTC
    return instant


def _no_time() -> PydanticCustomError:
    return PydanticCustomError("datetime_parsing", "Should be a time with its offset, as RFC 3339 has it")


INTEGER = BeforeValidator(parse_integer)
"""Comes after the bounds of its integer, or the JSON schema lacks them."""
Integer64 = Annotated[int, Field(ge=0, le=2**63 - 1), INTEGER]
Boolean = Annotated[bool, BeforeValidator(parse_boolean)]
Uuid = Annotated[UUID, BeforeValidator(parse_uuid)]
Time = Annotated[datetime, BeforeValidator(parse_time)]
