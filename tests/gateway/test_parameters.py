"""Query strings are parsed the same, however they are encoded."""

from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.parameters import parse_query, parse_time
from gateway.problems import ProblemError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


@given(pairs=PAIRS)
def test_query_is_read_as_it_was_encoded(pairs: list[tuple[str, str]]) -> None:
    for encode in (quote, quote_plus):
        assert parse_query(urlencode(pairs, quote_via=encode).encode()) == pairs


@given(value=st.text(st.characters(min_codepoint=128, exclude_categories=["Cs"])))
def test_bytes_count_the_same_as_they_are_and_percent_encoded(value: str) -> None:
    for text in (value, quote(value)):
        assert parse_query(f"q={text}".encode()) == [("q", value)]


@given(name=TEXTS, value=st.binary(max_size=8))
def test_bytes_are_utf_8_or_refused_with_their_name(name: str, value: bytes) -> None:
    query = f"{quote(name, safe='')}={quote(value, safe='')}&limit=1".encode()
    try:
        text = value.decode()
    except UnicodeDecodeError:
        with pytest.raises(ProblemError) as refused:
            parse_query(query)
        pointer = "/query/" + name.replace("~", "~0").replace("/", "~1")
        assert [each.pointer for each in refused.value.problem.errors or ()] == [pointer]
    else:
        assert parse_query(query) == [(name, text), ("limit", "1")]


ZONES = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    time=st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES),  # noqa: DTZ001 - hypothesis adds it
    more=st.text("0123456789", max_size=9),
    separator=st.sampled_from("Tt "),
)
def test_time_is_the_first_microsecond_that_is_not_before_it(time: datetime, more: str, separator: str) -> None:
    offset = time.isoformat()[-6:]
    text = f"{time.replace(tzinfo=None).isoformat(separator, 'microseconds')}{more}{offset}"

    assert parse_time(text) == time.astimezone(UTC) + timedelta(microseconds=int(bool(more.strip("0"))))
