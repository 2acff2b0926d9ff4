"""Types shared by several wire models."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, PlainSerializer, WithJsonSchema
from pydantic.config import JsonDict


def check_storable(text: str) -> str:
    """Return the text; raises ValueError if Postgres cannot store it."""
    if "\0" in text:
        raise ValueError("must not contain the character U+0000")
    try:
        text.encode()  # fails for a surrogate; much faster than checking each character
    except UnicodeEncodeError:
        raise ValueError("must not contain a lone surrogate") from None
    return text


STORABLE: JsonDict = {"pattern": r"^[^\u0000]*$"}
"""The JSON Schema of storable text; a schema cannot exclude lone surrogates."""
StorableText = Annotated[str, AfterValidator(check_storable), Field(json_schema_extra=STORABLE)]
"""Text that Postgres can store."""
MAX_VERSION = 2**31 - 1
"""The highest version of a note or of credentials: the maximum of an `integer` in Postgres."""
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Instant = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC))]
"""A time that Postgres can store, and that can be converted to any time zone."""
PAST_INSTANT_MIN = datetime(1, 1, 2, tzinfo=UTC)
PAST_INSTANT_END = datetime(9000, 1, 1, tzinfo=UTC)
PastInstant = Annotated[AwareDatetime, Field(ge=PAST_INSTANT_MIN, lt=PAST_INSTANT_END)]
"""As `Instant`, from the first years on."""


def print_time(time: datetime) -> str:
    """Return a time in the API's format: UTC with microseconds, as `shared.tables` prints it in SQL."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


PrintedTime = Annotated[
    datetime,
    PlainSerializer(print_time, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A time in a response."""
