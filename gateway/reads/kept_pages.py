"""Keeps pages of lists in memory, each with the owner's revision that it was read at.

A page is never taken for current by itself: Postgres is asked for the owner's revision, which any change raises.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway.telemetry.metrics import KEPT_PAGES_BYTES
from shared.primary import Timeline

PAGE_OVERHEAD_BYTES = 1024
"""What a page takes besides its text, about."""
Revision: TypeAlias = tuple[Timeline | None, int]
"""The state of an owner's notes: the number is comparable within a timeline, since a restore takes it back."""
PageKey: TypeAlias = tuple[int, str, bytes]
"""The owner, the path as the client knows it, and the query."""


@dataclass(frozen=True, slots=True)
class KeptPage:
    """A page as it was answered."""

    revision: Revision
    body: bytes
    tag: str
    """Its entity tag."""
    headers: dict[str, str] = field(default_factory=dict)
    """The headers that depend on the page."""


class KeptPages:
    """The pages read last, up to a number of bytes; 0 keeps none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._pages: OrderedDict[PageKey, KeptPage] = OrderedDict()
        KEPT_PAGES_BYTES.set_function(lambda: self._bytes)

    def find(self, key: PageKey) -> KeptPage | None:
        """Return the page, which may be outdated, or None."""
        if key in self._pages:
            self._pages.move_to_end(key)
        return self._pages.get(key)

    def keep(self, key: PageKey, page: KeptPage) -> None:
        """Keep the page instead of an older one, unless it is larger than the limit."""
        self._drop(key)
        if _size(key, page) > self._limit_bytes:
            return
        self._pages[key] = page
        self._bytes += _size(key, page)
        while self._bytes > self._limit_bytes:
            self._drop(next(iter(self._pages)))

    def _drop(self, key: PageKey) -> None:
        if page := self._pages.pop(key, None):
            self._bytes -= _size(key, page)


def _size(key: PageKey, page: KeptPage) -> int:
    return len(page.body) + len(key[2]) + sum(map(len, page.headers.values())) + PAGE_OVERHEAD_BYTES
