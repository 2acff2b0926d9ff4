"""Decides where Postgres, RabbitMQ and the stack run.

In this order: the servers that the URLs in the environment name, if both are set; what BACKEND=docker or BACKEND=local
selects; containers; local processes if Docker does not answer or cannot pull the images.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dev import containers, local
from dev.backend import Backend, Services, UnavailableError


def from_environment() -> Services | None:
    """The servers of INKWELL_DATABASE_URL and INKWELL_BROKER_URL, if both are set."""
    database_url, broker_url = os.environ.get("INKWELL_DATABASE_URL"), os.environ.get("INKWELL_BROKER_URL")
    return Services(database_url, broker_url) if database_url and broker_url else None


def prepare() -> None:
    """Prepare what `services` starts, so that several processes can start servers at once."""
    if not from_environment():
        (_demanded() or _containers_unless(containers.no_servers())).prepare()


@contextmanager
def services() -> Iterator[Services]:
    """Servers for the block: those of the environment, or temporary ones."""
    if given := from_environment():
        yield given
        return
    with (_demanded() or _containers_unless(containers.no_servers())).servers() as started:
        yield started


def no_docker() -> str | None:
    """Why containers are not available; None if they are."""
    return "BACKEND=local" if _demanded() is local else containers.no_servers()


def backend_to_start() -> Backend:
    """The backend in which `make up` starts the stack or updates the running one."""
    if local.is_running():
        return _demanded() or local
    return _demanded() or _containers_unless(containers.no_stack(from_environment()))


def backend_in_use() -> Backend:
    """The backend in which `make up` has started the stack."""
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
