"""The worker's probes. Live: the consuming progresses. Ready: the broker has it as a consumer.

Not ready while it refuses a queue that was declared with other arguments, which an operator has to remake.
Which of its partitions it is the active consumer of, the broker alone knows; a worker that stands by is ready.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.consumer import Consumer


def why_not_consuming(consumer: Consumer) -> str:
    """Return the reason in short."""
    if consumer.are_partitions_different:
        return "partitions differ"
    return "queue arguments differ" if consumer.refused else "not consuming"


def create_health_app(consumer: Consumer) -> Starlette:
    """`/health/live` answers 503 when the consuming is stuck, `/health/ready` while the worker does not consume."""

    async def live(_: Request) -> JSONResponse:
        if consumer.stuck:
            return JSONResponse({"status": "stuck"}, status_code=503)
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> JSONResponse:
        is_ready = bool(consumer.partitions) and not consumer.refused
        status = "consuming" if is_ready else why_not_consuming(consumer)
        state = {"status": status, "slot": consumer.slot, "partitions": sorted(consumer.partitions)}
        if consumer.refused:
            state["refused"] = sorted(consumer.refused)
        return JSONResponse(state, 200 if is_ready else 503)

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready)])
