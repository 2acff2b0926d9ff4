"""What a way of running Postgres, RabbitMQ and Inkwell has to offer; `containers` and `local` are the two."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

ROOT = Path(__file__).parent.parent


class UnavailableError(Exception):
    """Something is missing on this machine; the message tells a person what, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Services:
    """Where Postgres and RabbitMQ are; the database role may create databases, tables and roles."""

    database_url: str
    broker_url: str


class Backend(Protocol):
    """Two modules are one."""

    def servers(self) -> AbstractContextManager[Services]:
        """A Postgres and a RabbitMQ for the block, without a trace after it."""

    def up(self, given: Services | None) -> str:
        """Starts the stack, on the given servers or on its own; the gateway's port, once all is healthy."""

    def down(self) -> None:
        """Stops the stack; its data stay."""

    def stop(self, service: str) -> None:
        """Stops one service of the stack."""

    def start(self, service: str) -> None:
        """Starts it again."""

    def logs(self) -> NoReturn:
        """Follows the stack's logs, until Ctrl-C."""
