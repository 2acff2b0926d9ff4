"""The worker's own settings."""

from typing import Annotated

from pydantic import Field

from shared.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    """What an operator may set for a worker."""

    batch_commands: Annotated[
        int, Field(ge=1, le=10_000, description="A batch takes waiting messages until it has this many commands")
    ] = 500
    prefetch_messages: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Messages of each partition held before they are acknowledged; lowered above 8 partitions, to"
            " fit into 512 MiB",
        ),
    ] = 20
    drain_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="On SIGTERM: time to finish the batch in hand")
    ] = 20.0
    worker_health_host: Annotated[
        str, Field(description="Address of the worker's probes; `::` means all addresses")
    ] = "127.0.0.1"
    worker_health_port: Annotated[
        int, Field(ge=0, le=65535, description="Port of `/health/live` and `/health/ready`")
    ] = 8081
