"""Where Postgres, RabbitMQ and the stack run is decided here and nowhere else.

Servers are those that the URLs of the environment name, where both are given. Else BACKEND=docker or BACKEND=local
decides. Else it is containers, or local processes where Docker does not answer or cannot get the images.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dev import containers, local
from dev.backend import Backend, Services, UnavailableError


def from_environment() -> Services | None:
    """The services that INKWELL_DATABASE_URL and INKWELL_BROKER_URL name, where both are set."""
    database_url, broker_url = os.environ.get("INKWELL_DATABASE_URL"), os.environ.get("INKWELL_BROKER_URL")
    return Services(database_url, broker_url) if database_url and broker_url else None


def prepare() -> None:
    """Has at hand what `services` starts, so that several processes can each start some at once."""
    if not from_environment():
        (_demanded() or _containers_unless(containers.no_servers())).prepare()


@contextmanager
def services() -> Iterator[Services]:
    """Services for the block: the environment's, or some that are removed at its end."""
    if given := from_environment():
        yield given
        return
    with (_demanded() or _containers_unless(containers.no_servers())).servers() as started:
        yield started


def no_docker() -> str | None:
    """Why nothing may be run in containers here; None where it may."""
    return "BACKEND=local" if _demanded() is local else containers.no_servers()


def backend_to_start() -> Backend:
    """Where `make up` starts the stack, or renews the one that runs."""
    if local.is_running():
        return _demanded() or local
    return _demanded() or _containers_unless(containers.no_stack(from_environment()))


def backend_in_use() -> Backend:
    """Where `make up` has started the stack."""
    if local.is_running():
        return _demanded() or local
    return _demanded() or _containers_unless(containers.no_engine())


def _demanded() -> Backend | None:
    match os.environ.get("BACKEND"):
        case None | "":
            return None
        case "local":
            return local
        case "docker":
            if reason := containers.no_engine():
                raise UnavailableError(f"BACKEND=docker, but {reason}")
            return containers
        case unknown:
            raise UnavailableError(f"BACKEND={unknown} is unknown; it is `docker`, `local`, or not set")


def _containers_unless(reason: str | None) -> Backend:
    if reason is None:
        return containers
    print(f"{reason}; using processes of this machine instead", flush=True)
    return local
