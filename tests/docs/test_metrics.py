"""docs/metrics.md lists every metric of the services."""

from dev.metrics_table import PATH, tables


def test_tables_are_those_of_the_services() -> None:
    page = PATH.read_text()

    assert tables(page) == page, "run `make generate`"
