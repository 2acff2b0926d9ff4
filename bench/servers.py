"""Postgres and RabbitMQ as processes of this machine, in containers or not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import docker
import psutil
from docker.errors import DockerException
from docker.models.containers import Container
from sqlalchemy import make_url


class Server:
    """The process that listens on the port of a URL."""

    def __init__(self, url: str) -> None:
        port = make_url(url).port
        self._containers = [each for each in _containers() if _publishes(each, port)]
        pids = {each.attrs["State"]["Pid"] for each in self._containers} or _listeners(port)
        if not pids:
            raise SystemExit(
                f"no listening process is visible on port {port}: run the bench on the servers' machine, as root"
            )
        self.processes = [psutil.Process(pid) for pid in pids]

    def ask(self, *command: str) -> str:
        """The output of a program run beside the server; raises if the server is not in a container."""
        if not self._containers:
            raise SystemExit("the servers are not in containers, in which their tools and files could be found")
        code, output = self._containers[0].exec_run(list(command))
        assert isinstance(output, bytes)  # noqa: S101 - since nothing is streamed
        if code:
            raise RuntimeError(f"{command[0]} failed: {output.decode()}")
        return output.decode()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses the server for the block."""
        members = [] if self._containers else tree(self.processes)
        for container in self._containers:
            container.pause()
        for process in members:
            process.suspend()
        try:
            yield
        finally:
            for process in members:
                process.resume()
            for container in self._containers:
                container.unpause()


def tree(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes with all their descendants."""
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def cpu_seconds(roots: Iterable[psutil.Process]) -> float:
    """The processor time of the processes and all their children so far, including ended ones."""
    seconds = 0.0
    for process in tree(roots):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])
    return seconds


def _containers() -> list[Container]:
    try:
        return docker.from_env().containers.list()
    except DockerException:
        return []


def _publishes(container: Container, port: int | None) -> bool:
    bindings = [binding for published in container.ports.values() for binding in published or ()]
    return any(binding["HostPort"] == str(port) for binding in bindings)


def _listeners(port: int | None) -> set[int]:
    return {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
    }
