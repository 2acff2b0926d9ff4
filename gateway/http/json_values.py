"""Counts the values in a JSON text without parsing it: a parser allocates an object for each value and each error."""

from pydantic_core import from_json

PARSE_LIMIT_BYTES = 128 * 1024


def has_more_values(text: bytes, limit: int) -> bool:
    """Whether valid JSON has more strings and commas between values than the limit, names of members among the strings.

    It takes a few milliseconds for two megabytes, whatever is in them.
    """
    if text.count(b'"') // 2 + text.count(b",") <= limit:  # also where all of them are in strings
        return False
    if b"\\" in text:  # in strings alone, of which each then ends at the next quotation mark
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = text.count(b'"') // 2
    return strings > limit or strings + sum(part.count(b",") for part in text.split(b'"')[::2]) > limit


def is_broken(text: bytes) -> bool:
    """Whether the text is invalid JSON; False for a long text, which would block the event loop."""
    if len(text) > PARSE_LIMIT_BYTES:
        return False
    try:
        from_json(text, cache_strings=False)
    except ValueError:
        return True
    return False
