"""JSON bodies of requests."""

from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from gateway.http.media_types import build_media_type_problem, parse_media_type, reject_encoded_body
from gateway.http.requests import OpenApi, Request
from gateway.http.validation import build_validation_problem
from gateway.problems import INVALID_JSON, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED, ProblemError

SCHEMA = "#/components/schemas/{model}"
BUILT_ERRORS_LIMIT = 5000
"""Limit on the errors that pydantic describes: a batch request can have 20,000, which would block the event loop."""
VALUES_LIMIT = 1000
"""Default limit on the members and items in a body, for the same reason: each may be an error."""
PARSE_LIMIT_BYTES = 128 * 1024
"""Limit on a body that is parsed only to tell invalid JSON from too many values."""
ITEM_STEPS = 2
"""The length of the location of an item: the name of the list, and the index."""
ModelT = TypeVar("ModelT", bound=BaseModel)


class Body(Generic[ModelT]):
    """Reads a JSON body into a model."""

    problems = (INVALID_JSON, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED)

    def __init__(
        self,
        model: type[ModelT],
        *media_types: str,
        discriminator: str | None = None,
        values_limit: int = VALUES_LIMIT,
        limit_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._media_types = media_types
        self._values_limit = values_limit
        self._discriminator = discriminator
        """The member that names the type of a list's items, if there are several types."""
        self.limit_bytes = limit_bytes
        """The limit on the body; None for that of the settings."""

    async def read(self, request: Request) -> ModelT:
        """Return the parsed body; raises ProblemError 400, 408, 413, 415 or 422."""
        self._require_media_type(request)
        return self.parse(await request.body())

    def parse(self, body: bytes) -> ModelT:
        """Return the parsed JSON; raises ProblemError 400 or 422."""
        if has_more_values(body, self._values_limit) and not is_broken(body):
            detail = f"Has more than {self._values_limit} members and items in total"
            too_many = ErrorDetails(type="too_many_values", loc=(), msg=detail, input=None)
            raise build_validation_problem([too_many], part="body")
        try:
            return self._model.model_validate_json(body, strict=True)
        except ValidationError as error:
            if error.error_count() > BUILT_ERRORS_LIMIT:
                detail = f"Has {error.error_count()} errors, too many to list"
                too_many = ErrorDetails(type="too_many_errors", loc=(), msg=detail, input=None)
                raise build_validation_problem([too_many], part="body") from None
            errors = error.errors(include_url=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise ProblemError(INVALID_JSON, errors[0]["msg"])
        raise build_validation_problem([self._locate(error) for error in errors], part="body")

    def _locate(self, error: ErrorDetails) -> ErrorDetails:
        """Correct the error's location, into which pydantic inserts an item's type, and from which it omits its tag."""
        place = error["loc"]
        if self._discriminator and error["type"].startswith("union_tag"):
            place = (*place, self._discriminator)
        elif self._discriminator and len(place) > ITEM_STEPS:
            place = place[:ITEM_STEPS] + place[ITEM_STEPS + 1 :]
        return {**error, "loc": place}

    @property
    def openapi(self) -> OpenApi:
        """The request body; `_name_bodies` in `openapi.py` moves its schema to the document's components."""
        schema = self._model.model_json_schema(ref_template=SCHEMA)
        return {"requestBody": {"required": True, "content": {each: {"schema": schema} for each in self._media_types}}}

    def _require_media_type(self, request: Request) -> None:
        reject_encoded_body(request)
        if parse_media_type(request) not in self._media_types:
            detail = f"Send the body as {' or '.join(self._media_types)}"
            headers = {"Accept-Patch": ", ".join(self._media_types)} if request.method == "PATCH" else None
            raise build_media_type_problem(detail, headers)


def has_more_values(text: bytes, limit: int) -> bool:
    """Whether valid JSON has more strings (names included) and commas between values than the limit.

    Takes a few milliseconds for two megabytes; a parser would allocate an object for each value and each error.
    """
    if text.count(b'"') // 2 + text.count(b",") <= limit:  # even if every comma separates values
        return False
    if b"\\" in text:  # only in strings, each of which ends at the next quotation mark once escapes are removed
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = text.count(b'"') // 2
    return strings > limit or strings + sum(part.count(b",") for part in text.split(b'"')[::2]) > limit


def is_broken(text: bytes) -> bool:
    """Whether the text is invalid JSON; False for a long text: parsing it would block the event loop."""
    if len(text) > PARSE_LIMIT_BYTES:
        return False
    try:
        from_json(text, cache_strings=False)
    except ValueError:
        return True
    return False
