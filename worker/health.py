"""The worker's probes. Live: the consuming progresses. Ready: the broker has it as a consumer.

Which of its partitions it is the active consumer of, the broker alone knows; a worker that stands by is ready.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.consumer import Consumer


def create_health_app(consumer: Consumer) -> Starlette:
    """`/health/live` answers 503 when the consuming is stuck, `/health/ready` while the worker does not consume."""

    async def live(_: Request) -> JSONResponse:
        if consumer.stuck:
            return JSONResponse({"status": "stuck"}, status_code=503)
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> JSONResponse:
        consuming = bool(consumer.partitions)
        status = "consuming" if consuming else "not consuming"
        state = {"status": status, "slot": consumer.slot, "partitions": sorted(consumer.partitions)}
        return JSONResponse(state, 200 if consuming else 503)

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready)])
