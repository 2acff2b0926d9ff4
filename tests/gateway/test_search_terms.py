"""What a query asks for: words in the syntax of Postgres, and text as it is."""

# ruff: noqa: RUF001 - characters that look alike are what it is about

import pytest

from gateway.reads.search_terms import SearchTerms


@pytest.mark.parametrize(
    ("q", "words", "count"),
    [
        ("blue ink", "blue ink", 2),
        ('"blue ink" or -red', '"blue ink" or -red', 4),
        ("2026-0042", '"2026 0042"', 2),
        ("-7", "-7", 1),
        ("-2026-0042", '-"2026 0042"', 2),
        ('-"blue-black ink"', '-"blue black ink"', 3),
        ("https://www.example.com/docs", '"https: www example com docs"', 5),
        ("bob@example.com", '"bob example com"', 3),
        ("snake_case", '"snake case"', 2),
        ("and/or", '"and or"', 2),
        ("C++", "C", 1),
        ("a -- b", "a b", 2),
        ("a --b", "a b", 2),
        ("a ---b", "a -b", 2),
        ("a - b", "a b", 2),
        ("-", "", 0),
        ('"', "", 0),
        ('""', "", 0),
        ('blue "ink', 'blue "ink"', 2),
        ('blue"ink"', 'blue "ink"', 2),
        ("ＡＢＣ－１２", '"ABC 12"', 2),
        ("दुनिया", "दुनिया", 1),
        ("...", "", 0),
    ],
)
def test_signs_divide_words_and_exclude_them_only_before_a_word(q: str, words: str, count: int) -> None:
    terms = SearchTerms.parse(q)

    assert (terms.words, terms.word_count) == (words, count)


@pytest.mark.parametrize(
    ("q", "text"),
    [
        ("The Who", "The Who"),
        (" The Who ", "The Who"),
        ('"The Who"', "The Who"),
        ('"The" "Who"', '"The" "Who"'),
        ('"', '"'),
        ('""', '""'),
        ('" "', ""),
        ("-5", "-5"),
        ("ﬁ", "ﬁ"),
    ],
)
def test_text_is_the_query_without_the_quotes_around_it(q: str, text: str) -> None:
    assert SearchTerms.parse(q).text == text


@pytest.mark.parametrize(
    ("q", "symbols"),
    [
        ("C++ or c#", ("c++", "c#")),
        ("party 🎉 🎉", ("🎉",)),
        ("$9.99", ("$9.99",)),
        ("ink -C++", ()),
        ("hello, world! (v1.2) /etc", ()),
    ],
)
def test_terms_with_symbols_are_those_that_are_not_excluded(q: str, symbols: tuple[str, ...]) -> None:
    assert SearchTerms.parse(q).symbols == symbols


@pytest.mark.parametrize(("q", "is_tried"), [("recieve", True), ("recieve -it", False), ("x" * 65, False)])
def test_similar_notes_are_tried_for_short_queries_that_exclude_nothing(q: str, is_tried: bool) -> None:  # noqa: FBT001
    assert SearchTerms.parse(q).may_be_misspelt == is_tried
