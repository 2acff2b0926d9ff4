"""The worker's probes. Live: the event loop turns. Ready: the broker has it as a consumer."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.consumer import Consumer


def create_health_app(consumer: Consumer) -> Starlette:
    """`/health/live` answers 200; `/health/ready` answers 503 while the worker does not consume."""

    async def live(_: Request) -> JSONResponse:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> JSONResponse:
        if consumer.consuming:
            return JSONResponse({"status": "consuming"})
        return JSONResponse({"status": "not consuming"}, status_code=503)

    return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready)])
