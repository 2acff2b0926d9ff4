"""What a way of running Postgres, RabbitMQ and Inkwell has to offer; `containers` and `local` are the two."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import quote

from shared.settings import DEVELOPMENT_MARK

ROOT = Path(__file__).parent.parent
DEVELOPMENT_KEY = f"{DEVELOPMENT_MARK}-{DEVELOPMENT_MARK}"


class UnavailableError(Exception):
    """Something is missing on this machine; the message says what, and how to get it."""


def as_user(url: str, name: str, password: str) -> str:
    """The same URL for another user; it may name several hosts."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    hosts = authority.rpartition("@")[2]
    return f"{scheme}://{quote(name, safe='')}:{quote(password, safe='')}@{hosts}{slash}{path}"


def with_database(url: str, name: str) -> str:
    """The same URL for another database."""
    before, question_mark, parameters = url.partition("?")
    return f"{before.rpartition('/')[0]}/{name}{question_mark}{parameters}"


@dataclass(frozen=True, slots=True)
class Services:
    """Where Postgres and RabbitMQ are, for an administrator of theirs."""

    database_url: str
    broker_url: str
    has_broker_users: bool = False
    """Whether RabbitMQ knows a user for each service, whose password is its name."""

    def broker_url_of(self, service: str) -> str:
        """The broker as a service has it; without users of their own both have the one that there is."""
        user = f"inkwell_{service}"
        return as_user(self.broker_url, user, user) if self.has_broker_users else self.broker_url


class Backend(Protocol):
    """Two modules are one."""

    def prepare(self) -> None:
        """Installs what is missing for `servers`."""

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

    def run(self, given: Services | None, service: str, *arguments: str) -> int:
        """Runs `python -m SERVICE ARGUMENTS` with the settings of that service of the stack; the exit code."""

    def logs(self) -> NoReturn:
        """Follows the stack's logs, until Ctrl-C."""
