"""Converts validation errors of a request to the `errors` of a problem."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails

from gateway.problems import INVALID_HEADER, VALIDATION_FAILED, FieldError, ProblemError

FIELD_CODES = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "too_many_errors": "too_many_errors",
    "too_many_values": "too_long",
    "too_many_words": "too_long",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "too_short": "too_short",
    "too_long": "too_long",
    "list_type": "wrong_type",
    "dict_type": "wrong_type",
    "union_tag_invalid": "invalid_value",
    "union_tag_not_found": "missing",
    "enum": "invalid_value",
    "literal_error": "invalid_value",
    "uuid_parsing": "invalid_value",
    "uuid_type": "invalid_value",
    "string_type": "wrong_type",
    "string_unicode": "invalid_value",
    "model_type": "wrong_type",
    "model_attributes_type": "wrong_type",
    "int_type": "wrong_type",
    "int_parsing": "not_an_integer",
    "int_from_float": "not_an_integer",
    "int_parsing_size": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "value_error": "invalid_value",
    "bool_parsing": "wrong_type",
    "datetime_from_date_parsing": "invalid_value",
    "datetime_parsing": "invalid_value",
    "timezone_aware": "invalid_value",
    "less_than": "out_of_range",
    "repeated": "repeated",
}
FIELD_DETAILS = {
    "too_short": "Should have a length of at least {min_length}",
    "too_long": "Should have a length of at most {max_length}",
    "literal_error": "Unknown value",
    "union_tag_invalid": "Unknown operation",
    "union_tag_not_found": "Field required",
    "uuid_parsing": "Should be a UUID",
}
"""Replacements for messages of pydantic that name Python's types or the parser's terms."""
ERRORS_LIMIT = 100
"""Limit on the errors in a problem: a body can have a hundred thousand."""


def invalid_header(name: str, expected: str) -> ProblemError:
    """Return a 400 for an invalid header that must not be ignored."""
    error = FieldError(pointer=f"/header/{name.lower()}", code="invalid_value", detail=f"{name} must be {expected}")
    return ProblemError(INVALID_HEADER, error.detail, errors=[error])


def invalid(errors: Sequence[ErrorDetails], part: str | None = None) -> ProblemError:
    """Return a 422 with the first of pydantic's errors."""
    fields = [_field_error(error, part) for error in errors[:ERRORS_LIMIT]]
    return ProblemError(VALIDATION_FAILED, errors=fields)


def _field_error(error: ErrorDetails, part: str | None) -> FieldError:
    location = [*([part] if part else []), *map(str, error["loc"])]
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in location)
    detail = FIELD_DETAILS.get(error["type"])
    text = detail.format(**error.get("ctx", {})) if detail else str(error["msg"]).removeprefix("Value error, ")
    return FieldError(pointer=pointer, code=FIELD_CODES.get(error["type"], error["type"]), detail=text)
