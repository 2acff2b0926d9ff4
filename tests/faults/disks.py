"""A disk in memory, small enough to be filled to its last byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import docker
from testcontainers.core.container import DockerContainer

from dev.containers import image

SIZE = "3g"
"""Enough for a run of some hundred thousand commands with their audit; memory is used only for what is written."""
FILL = "fallocate -l $(df --output=avail -B1 /disk | tail -n 1) /disk/filler; dd if=/dev/zero of=/disk/rest bs=4k; true"


@dataclass(frozen=True)
class Disk:
    """A volume, and a container that keeps it: its data would be lost while no container uses it."""

    volume: str
    holder: DockerContainer

    def fill(self) -> None:
        """Leaves no free space."""
        self.holder.exec(["sh", "-c", FILL])

    def free(self) -> None:
        """Gives the space back."""
        result = self.holder.exec(["rm", "-f", "/disk/filler", "/disk/rest"])
        assert result.exit_code == 0, result.output


@contextmanager
def small_disk() -> Iterator[Disk]:
    """A disk for the block."""
    name, options = f"inkwell-faults-{uuid4().hex[:8]}", {"type": "tmpfs", "device": "tmpfs", "o": f"size={SIZE}"}
    volume = docker.from_env().volumes.create(name, driver="local", driver_opts=options)
    holder = DockerContainer(image("POSTGRES_IMAGE")).with_command(["sleep", "infinity"]).with_kwargs(init=True)
    try:
        with holder.with_volume_mapping(name, "/disk", "rw"):
            yield Disk(name, holder)
    finally:
        volume.remove(force=True)
