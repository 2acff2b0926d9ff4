"""Writes the tables of docs/metrics.md from the services' metrics: `make generate`."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from dev.tables import fill_tables
from gateway.telemetry import metrics as gateway_metrics
from shared import metrics as shared_metrics
from worker import metrics as worker_metrics

PATH = Path(__file__).parent.parent / "docs" / "metrics.md"
TABLES: dict[str, tuple[ModuleType, ...]] = {
    "both": (shared_metrics,),
    "gateway": (gateway_metrics,),
    "worker": (worker_metrics,),
}
"""The modules whose metrics are in each table."""
HEAD = "| metric | type | labels | meaning |\n|---|---|---|---|\n"


def tables(page: str) -> str:
    """The page with new tables, each between its two comments."""
    rows = {name: [row for each in modules for row in _rows(each)] for name, modules in TABLES.items()}
    return fill_tables(page, "metrics", HEAD, rows)


def _rows(module: ModuleType) -> Iterator[str]:
    for metric in vars(module).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 - published in no other way
            yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n"


if __name__ == "__main__":
    PATH.write_text(tables(PATH.read_text()))
