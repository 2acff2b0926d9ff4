"""Fills the generated tables of a page."""

from collections.abc import Iterable, Mapping


def fill_tables(page: str, kind: str, head: str, tables: Mapping[str, Iterable[str]]) -> str:
    """Return the page with new rows in each table, between `<!-- KIND: NAME -->` and `<!-- end of KIND -->`."""
    for name, rows in tables.items():
        before, begin, rest = page.partition(f"<!-- {kind}: {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {kind} -->")
        page = before + begin + head + "".join(rows) + end + after
    return page
