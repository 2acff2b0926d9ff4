"""The worker's own settings."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    """The settings of a worker."""

    batch_commands: Annotated[int, Field(ge=1, le=10_000)] = 500
    """A batch takes waiting messages until it has this many commands"""
    prefetch_messages: Annotated[int, Field(ge=1, le=1000)] = 20
    """Messages of each partition held before they are acknowledged; lowered above 8 partitions, to fit into 512 MiB"""
    drain_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    """On SIGTERM: time to finish the current batch"""
    trash_retention_days: Annotated[int, Field(ge=0, le=3650)] = 30
    """How long a deleted note can be restored; with 0 its text is erased at once"""
    worker_health_host: str = "127.0.0.1"
    """Address of the worker's probes; `::` means all addresses"""
    worker_health_port: Annotated[int, Field(ge=0, le=65535)] = 8081
    """Port of `/health/live` and `/health/ready`"""
