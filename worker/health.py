"""The worker's probes. Live: no batch is stuck. Ready: the broker has the worker as a consumer.

A standby worker is ready, since only the broker knows which consumer of a partition is active. A worker that refuses a
queue with wrong arguments is not: an operator has to remake it.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.consumer import Consumer


def explain_not_consuming(consumer: Consumer) -> str:
    """Return in a few words why the worker does not consume."""
    if consumer.are_partitions_different:
        return "partitions differ"
    return "queue arguments differ" if consumer.refused else "not consuming"


def create_health_app(consumer: Consumer) -> Starlette:
    """Return an app: `/health/live` is 503 when a batch is stuck, `/health/ready` while the worker does not consume."""

    async def live(_: Request) -> JSONResponse:
        if consumer.is_stuck:
            return JSONResponse({"status": "stuck"}, status_code=503)
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> JSONResponse:
        is_ready = bool(consumer.partitions) and not consumer.refused
        status = "consuming" if is_ready else explain_not_consuming(consumer)
        state = {"status": status, "slot": consumer.slot, "partitions": sorted(consumer.partitions)}
        if consumer.refused:
            state["refused"] = sorted(consumer.refused)
        return JSONResponse(state, 200 if is_ready else 503)

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready)])
