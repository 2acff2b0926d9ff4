"""Converts validation errors of a request to the `errors` of a problem."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails

from gateway.problems import INVALID_HEADER, VALIDATION_FAILED, FieldError, ProblemError

PYDANTIC_TYPES = {
    "missing": ("missing", "union_tag_not_found"),
    "unknown_field": ("extra_forbidden",),
    "repeated": ("repeated",),
    "wrong_type": (
        "bool_parsing",
        "dict_type",
        "int_type",
        "list_type",
        "model_attributes_type",
        "model_type",
        "string_type",
    ),
    "not_an_integer": ("int_from_float", "int_parsing"),
    "out_of_range": ("greater_than_equal", "int_parsing_size", "less_than", "less_than_equal"),
    "too_short": ("string_too_short", "too_short"),
    "too_long": ("string_too_long", "too_long", "too_many_values", "too_many_words"),
    "too_many_errors": ("too_many_errors",),
    "invalid_value": (
        "datetime_from_date_parsing",
        "datetime_parsing",
        "enum",
        "literal_error",
        "string_unicode",
        "timezone_aware",
        "union_tag_invalid",
        "uuid_parsing",
        "uuid_type",
        "value_error",
    ),
}
FIELD_CODES = {each: code for code, types in PYDANTIC_TYPES.items() for each in types}
"""The codes of the API, which are stable, by pydantic's error types."""
FIELD_DETAILS = {
    "too_short": "Should have a length of at least {min_length}",
    "too_long": "Should have a length of at most {max_length}",
    "literal_error": "Unknown value",
    "union_tag_invalid": "Unknown operation",
    "union_tag_not_found": "Field required",
    "uuid_parsing": "Should be a UUID",
}
"""Replacements for messages of pydantic that name Python's types or the parser's terms."""
LISTED_ERRORS_LIMIT = 100
"""Limit on the errors that a problem lists."""


def build_header_problem(name: str, expected: str) -> ProblemError:
    """Return a 400 for an invalid header that must not be ignored."""
    error = FieldError(pointer=f"/header/{name.lower()}", code="invalid_value", detail=f"{name} must be {expected}")
    return ProblemError(INVALID_HEADER, error.detail, errors=[error])


def build_validation_problem(errors: Sequence[ErrorDetails], part: str | None = None) -> ProblemError:
    """Return a 422 with the first of pydantic's errors."""
    fields = [_build_field_error(error, part) for error in errors[:LISTED_ERRORS_LIMIT]]
    return ProblemError(VALIDATION_FAILED, errors=fields)


def _build_field_error(error: ErrorDetails, part: str | None) -> FieldError:
    location = [*([part] if part else []), *map(str, error["loc"])]
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in location)
    detail = FIELD_DETAILS.get(error["type"])
    text = detail.format(**error.get("ctx", {})) if detail else str(error["msg"]).removeprefix("Value error, ")
    return FieldError(pointer=pointer, code=FIELD_CODES.get(error["type"], error["type"]), detail=text)
