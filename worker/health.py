"""The worker's probes. Live: consuming makes progress. Ready: the broker has the worker as a consumer.

Not ready while it refuses a queue that was declared with other arguments, which an operator has to remake.
Only the broker knows of which partitions it is the active consumer; a standby worker is ready.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.consumer import Consumer


def why_not_consuming(consumer: Consumer) -> str:
    """Return a short reason why the worker does not consume."""
    if consumer.are_partitions_different:
        return "partitions differ"
    return "queue arguments differ" if consumer.refused else "not consuming"


def create_health_app(consumer: Consumer) -> Starlette:
    """Return an app: `/health/live` is 503 when consuming is stuck, `/health/ready` while it does not consume."""

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
