"""Path and query parameters, parsed strictly: pydantic's lax mode accepts `5_6`, `+54` and `54.0` as integers."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, Literal, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.http.requests import OpenApi, Request
from gateway.http.validation import build_validation_problem
from gateway.problems import VALIDATION_FAILED

ModelT = TypeVar("ModelT", bound=BaseModel)
_INTEGER = re.compile(r"0|[1-9][0-9]*")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]):([0-5][0-9]|60)(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
"""Date, hour and minute, seconds, their fraction, and the sign, hours and minutes of the offset (RFC 3339 §5.6)."""
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_MORE_DIGITS_THAN_64_BITS = 20


def parse_integer(value: object) -> int:
    """Parse an integer: ASCII digits, no sign, no leading zero; raises PydanticCustomError."""
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise PydanticCustomError("int_parsing", "Should be an integer: digits without a sign or leading zeros")
    return int(value[:_MORE_DIGITS_THAN_64_BITS])  # already out of range; Python refuses to convert thousands of digits


def parse_boolean(value: object) -> bool:
    """Parse `true` or `false`; raises PydanticCustomError."""
    if value not in ("true", "false"):
        raise PydanticCustomError("bool_parsing", "Should be `true` or `false`")
    return value == "true"


def parse_uuid(value: object) -> UUID:
    """Parse a hyphenated UUID; raises PydanticCustomError."""
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise PydanticCustomError("uuid_parsing", "Should be a UUID")
    return UUID(value)


def parse_time(value: object) -> datetime:
    """Parse an RFC 3339 time, rounded up to a whole microsecond; raises PydanticCustomError.

    Rounding up keeps a bound between two microseconds exact. A time that its offset moves out of the years 1 to 9999
    becomes their first or last microsecond: every note is between them.
    """
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _build_time_error()
    date, minute, seconds, fraction, sign, hours, minutes = match.groups("0")
    try:
        local = datetime.fromisoformat(f"{date}T{minute}+00:00")
    except ValueError:
        raise _build_time_error() from None
    microseconds = int(fraction[:6].ljust(6, "0")) + bool(fraction[6:].strip("0"))
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    since = timedelta(seconds=int(seconds), microseconds=microseconds)
    try:
        instant = local + (since + offset if sign == "-" else since - offset)
    except OverflowError:
        return _FIRST if local.year == 1 else _LAST
    if seconds == "60" and (instant.hour, instant.minute, instant.second) != (0, 0, 0):
        raise _build_time_error()  # leap seconds end a day in UTC
    return instant


def _build_time_error() -> PydanticCustomError:
    return PydanticCustomError("datetime_parsing", "Should be an RFC 3339 time with an offset")


INTEGER = BeforeValidator(parse_integer)
"""Must follow the integer's `Field`; otherwise the JSON schema lacks its bounds."""
Integer64 = Annotated[int, Field(ge=0, le=2**63 - 1), INTEGER]
Boolean = Annotated[bool, BeforeValidator(parse_boolean)]
Uuid = Annotated[UUID, BeforeValidator(parse_uuid)]
Time = Annotated[datetime, BeforeValidator(parse_time)]


class Parameters(Generic[ModelT]):
    """Reads the parameters of the path or of the query into a model."""

    problems = (VALIDATION_FAILED,)

    def __init__(self, model: type[ModelT], location: Literal["path", "query"]) -> None:
        self._model = model
        self.location = location

    async def read(self, request: Request) -> ModelT:
        """Return the parameters; raises ProblemError 422."""
        pairs = parse_query(request.query) if self.location == "query" else list(request.path_parameters.items())
        values = dict(pairs)
        try:
            parameters = self._model.model_validate(values)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            raise build_validation_problem(errors, part=self.location) from None
        if len(values) < len(pairs):
            repeated = [_build_repeated_error(name) for name in _list_repeated(pairs)]
            raise build_validation_problem(repeated, part=self.location)
        return parameters

    @property
    def openapi(self) -> OpenApi:
        """The parameters."""
        schema = self._model.model_json_schema()
        required = schema.get("required", ())
        return {
            "parameters": [
                {"name": name, "in": self.location, "required": name in required, "schema": _drop_null(each)}
                for name, each in schema["properties"].items()
            ]
        }


class _EmptyQuery(BaseModel, extra="forbid"):
    """The query of an operation that declares no parameters."""


class _NoQuery(Parameters[_EmptyQuery]):
    async def read(self, request: Request) -> _EmptyQuery:
        """Return the empty query; raises ProblemError 422 if the request has any parameter."""
        return await super().read(request) if request.query else EMPTY


EMPTY = _EmptyQuery()
NO_QUERY = _NoQuery(_EmptyQuery, "query")
"""Rejects every query parameter."""


def _list_repeated(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """Return the names that occur more than once."""
    counts = Counter(name for name, _ in pairs)
    return [name for name, count in counts.items() if count > 1]


def _drop_null(schema: OpenApi) -> OpenApi:
    """Return the schema without the null default of an optional parameter."""
    return {name: value for name, value in schema.items() if name != "default" or value is not None}


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Return the names and values of the query in order; raises ProblemError 422 for bytes that are not UTF-8.

    Bytes that are not percent-encoded are treated as if they were.
    """
    if not query:
        return []
    parsed = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in parsed]
    try:
        return [(name.decode(), value.decode()) for name, value in pairs]
    except UnicodeDecodeError:
        names = [name.decode(errors="replace") for name, value in pairs if not _is_utf_8(name, value)]
        raise build_validation_problem([_build_encoding_error(name) for name in names], part="query") from None


def _is_utf_8(*texts: bytes) -> bool:
    try:
        b"=".join(texts).decode()
    except UnicodeDecodeError:
        return False
    return True


def _build_repeated_error(name: str) -> ErrorDetails:
    return ErrorDetails(type="repeated", loc=(name,), msg="Should not be repeated", input=None)


def _build_encoding_error(name: str) -> ErrorDetails:
    return ErrorDetails(type="string_unicode", loc=(name,), msg="Should be UTF-8", input=None)
