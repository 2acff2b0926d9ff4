"""Writes the tables of docs/configuration.md from the settings classes: `make generate`."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from dev.tables import fill_tables
from gateway.settings import GatewaySettings
from shared.settings import DatabaseSettings, MigrationSettings, SecretFiles, ServiceSettings
from worker.settings import WorkerSettings

PATH = Path(__file__).parent.parent / "docs" / "configuration.md"
TABLES: dict[str, tuple[type[BaseSettings], ...]] = {
    "all": (SecretFiles, DatabaseSettings, ServiceSettings),
    "gateway": (GatewaySettings,),
    "worker": (WorkerSettings,),
    "migration": (MigrationSettings,),
}
"""The classes in each table, with their own settings but not the inherited ones."""
HEAD = "| setting | default | values | meaning |\n|---|---|---|---|\n"
PAGES = {
    "auth": "api.md#without-users",
    "broker_url": "connections.md#several-hosts-and-failover",
    "command_max_age_days": "operations.md#clocks",
    "database_url": "connections.md#the-url-of-postgres",
    "keep_alive_seconds": "connections.md#behind-a-proxy-of-your-own",
    "partitions": "operations.md#changing-the-number-of-partitions",
    "read_connections": "capacity.md#sessions-at-postgres",
    "require_preconditions": "commands.md#preconditions",
    "root_path": "connections.md#behind-a-proxy-of-your-own",
    "search_matches": "api.md#search",
    "secrets_dir": "#files",
    "trash_retention_days": "guarantees.md#what-is-erased-and-when",
    "trusted_proxies": "connections.md#behind-a-proxy-of-your-own",
    "wait_seconds": "commands.md#accepted-202",
}
"""The sections that explain a setting."""


def tables(page: str) -> str:
    """The page with new tables, each between its two comments."""
    rows = {name: [row for each in classes for row in _rows(each)] for name, classes in TABLES.items()}
    return fill_tables(page, "settings", HEAD, rows)


def _rows(settings: type[BaseSettings]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        if name in settings.__annotations__:
            code = f"`INKWELL_{name.upper()}`"
            shown = f"[{code}]({PAGES[name]})" if name in PAGES else code
            meaning = " ".join((field.description or "").split())
            yield f"| {shown} | {_default(field)} | {_values(field)} | {meaning} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (None, ()):
        return "none"
    return f"`{field.default}`".lower()


def _values(field: FieldInfo) -> str:
    """The values that type and limits allow, if they can be described briefly."""
    if choices := _choices(field.annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    optional = (part.__metadata__ for part in get_args(field.annotation) if get_origin(part) is Annotated)
    constraints = [*field.metadata, *chain.from_iterable(optional)]
    limits: dict[type, Any] = {type(each): each for each in chain.from_iterable(map(_unpacked, constraints))}
    least, above, most = limits.get(Ge), limits.get(Gt), limits.get(Le)
    if least and most:
        return f"{least.ge} to {most.le}"
    if above and most:
        return f"over {above.gt}, up to {most.le}"
    return f"from {least.ge}" if least else ""


def _unpacked(constraint: object) -> Iterable[object]:
    """The limits of a `Field` inside an optional type, or the constraint itself."""
    return constraint.metadata if isinstance(constraint, FieldInfo) else (constraint,)


def _choices(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401 - what pydantic calls the type of an annotation
    if annotation is bool:
        return ("true", "false")
    return get_args(annotation) if get_origin(annotation) is Literal else ()


if __name__ == "__main__":
    PATH.write_text(tables(PATH.read_text()))
