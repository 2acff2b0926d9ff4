"""Parses a search query into words, in the syntax of `websearch_to_tsquery`, and the literal text."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Self

SIMILAR_MAX_LENGTH = 64
"""The longest query for which similar notes are searched: the cost of a comparison grows with its length."""
_EXCLUDED_TWICE = re.compile(r'(?<![^\s!&|()"])(?:-[\s!&|()]*-[\s!&|()]*)+')
"""Pairs of exclusion signs before a word, which cancel each other out."""
_TERM = re.compile(r'(?P<excluded>(?<!\S)-(?=[^\s-]))?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))')
_SPLITS_WORDS = re.compile(r"[-/.@_+&<~]")
"""The signs of the SQL function `inkwell_split_words`."""
_WORD = re.compile(r"[^\W_]+")
_SYMBOLS = frozenset("#%&@*")
"""Punctuation that is as much a part of a name as a letter is."""


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """The parts of a query."""

    words: str
    """Its words, without the signs that divide a number, a host or an address: their parts are a phrase."""
    text: str
    """What a note must contain literally; empty if that would be nothing."""
    symbols: tuple[str, ...]
    """Its terms with a symbol, such as `c++`: notes that contain them come first among those with the words."""
    word_count: int
    has_exclusions: bool

    @classmethod
    def parse(cls, q: str) -> Self:
        """Return the parts; `q` is short, for normalization takes long for many combining marks."""
        # At most one exclusion sign before a word: a long row of them is an error in Postgres.
        normalized = _EXCLUDED_TWICE.sub(" ", unicodedata.normalize("NFKC", q))
        terms = list(_TERM.finditer(normalized))
        words = " ".join(filter(None, map(_write_words, terms)))
        required = (term["word"].casefold() for term in terms if term["word"] and not term["excluded"])
        return cls(
            words=words,
            text=_unquote(q.strip()),
            symbols=tuple(dict.fromkeys(filter(_has_symbol, required))),
            word_count=len(_WORD.findall(_without_marks(words))),
            has_exclusions=any(term["excluded"] for term in terms),
        )

    @property
    def may_be_misspelt(self) -> bool:
        """Whether to search for similar notes; one that is similar may have an excluded word."""
        return len(self.text) <= SIMILAR_MAX_LENGTH and not self.has_exclusions


def _write_words(term: "re.Match[str]") -> str:
    """Return the term with spaces instead of the signs that divide it; a phrase if it has several parts."""
    parts = _SPLITS_WORDS.sub(" ", term["phrase"] or term["word"] or "").split()
    if not parts:
        return ""
    words = " ".join(parts)
    return (term["excluded"] or "") + (f'"{words}"' if len(parts) > 1 or term["phrase"] else words)


def _unquote(text: str) -> str:
    """Return the text without the quotes around it, if it is one phrase; otherwise unchanged."""
    is_phrase = len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip() if is_phrase else text


def _has_symbol(word: str) -> bool:
    return any(character in _SYMBOLS or unicodedata.category(character)[0] == "S" for character in word)


def _without_marks(text: str) -> str:
    """Return the text without combining marks and joiners, which do not end a word."""
    return "".join(each for each in text if unicodedata.category(each) not in ("Mn", "Mc", "Me", "Cf"))
