"""Caches pages of lists in memory, each with the owner's revision at which it was read.

A page is served only if that is still the owner's revision, which every change raises and each request reads anew.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from gateway.reads.results import Revision
from gateway.telemetry.metrics import KEPT_PAGES_BYTES

PAGE_OVERHEAD_BYTES = 1024
"""The approximate size of a page besides its text."""
PageKey: TypeAlias = tuple[int, str, bytes]
"""Owner, path as clients know it, and query."""


@dataclass(frozen=True, slots=True)
class KeptPage:
    """The body and headers of a page."""

    revision: Revision
    body: bytes
    tag: str
    """The page's entity tag."""
    headers: dict[str, str]
    """`Link` and, if requested, `X-Total-Count`."""


class KeptPages:
    """The most recently used pages, up to a limit in bytes; 0 keeps none."""

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
        """Store the page in place of an older one, unless it is larger than the limit."""
        self._drop(key)
        if _measure(key, page) > self._limit_bytes:
            return
        self._pages[key] = page
        self._bytes += _measure(key, page)
        while self._bytes > self._limit_bytes:
            self._drop(next(iter(self._pages)))

    def _drop(self, key: PageKey) -> None:
        if page := self._pages.pop(key, None):
            self._bytes -= _measure(key, page)


def _measure(key: PageKey, page: KeptPage) -> int:
    return len(page.body) + len(key[2]) + sum(map(len, page.headers.values())) + PAGE_OVERHEAD_BYTES
