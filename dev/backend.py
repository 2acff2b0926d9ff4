"""The interface of a backend that runs Postgres, RabbitMQ and Inkwell: `containers` and `local` implement it."""

import socket
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import quote

from shared.broker_url import BrokerUrl
from shared.settings import DEVELOPMENT_MARK

ROOT = Path(__file__).parent.parent
HINTS_VHOST = "inkwell-hints"
"""The virtual host for hints of changes in definitions.sh."""
DEVELOPMENT_KEY = f"{DEVELOPMENT_MARK}-{DEVELOPMENT_MARK}"


class UnavailableError(Exception):
    """Something is missing on this machine; the message says what it is and how to install it."""


def require_free(port: str) -> None:
    """Raise UnavailableError if the gateway cannot listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise UnavailableError(
                f"cannot listen on port {port} of 127.0.0.1: {error}; choose another with `INKWELL_PORT=8001 make up`"
            ) from error


def as_user(url: str, name: str, password: str) -> str:
    """The same URL for another user; it may name several hosts."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    hosts = authority.rpartition("@")[2]
    return f"{scheme}://{quote(name, safe='')}:{quote(password, safe='')}@{hosts}{slash}{path}"


def with_hints_vhost(url: str) -> str:
    """The same URL of a broker, with a virtual host of their own for hints of changes."""
    return f"{url}{'&' if '?' in url else '?'}hints_vhost={HINTS_VHOST}"


def with_database(url: str, name: str) -> str:
    """The same URL for another database."""
    before, question_mark, parameters = url.partition("?")
    return f"{before.rpartition('/')[0]}/{name}{question_mark}{parameters}"


@dataclass(frozen=True, slots=True)
class Services:
    """The URLs of Postgres and RabbitMQ for an administrator."""

    database_url: str
    broker_url: str
    has_broker_users: bool = False
    """Whether RabbitMQ has a user for each service, with its name as the password."""

    def broker_url_of(self, service: str) -> str:
        """The broker's URL for a service; without users of their own, both services share one."""
        user = f"inkwell_{service}"
        return with_hints_vhost(as_user(self.broker_url, user, user)) if self.has_broker_users else self.broker_url

    def hints_url_of(self, service: str) -> str:
        """The same for hints of changes."""
        return str(BrokerUrl.parse(self.broker_url_of(service)).for_hints())


class Backend(Protocol):
    """Implemented by two modules."""

    def prepare(self) -> None:
        """Installs what `servers` needs."""

    def servers(self) -> AbstractContextManager[Services]:
        """A Postgres and a RabbitMQ for the block, removed completely after it."""

    def up(self, given: Services | None) -> str:
        """Start the stack on the given servers or on its own; returns the gateway's port once it is healthy."""

    def down(self) -> None:
        """Stop the stack; its data are kept."""

    def stop(self, service: str) -> None:
        """Stop one service of the stack."""

    def start(self, service: str) -> None:
        """Start it again."""

    def run(self, given: Services | None, service: str, *arguments: str) -> int:
        """Run `python -m SERVICE ARGUMENTS` with the settings of that service of the stack; returns the exit code."""

    def logs(self) -> NoReturn:
        """Follows the stack's logs, until Ctrl-C."""
