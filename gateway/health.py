"""The gateway's probes. Live: the event loop turns. Ready: started and not draining.

No dependency takes a gateway out of rotation: without Postgres it takes writes, without the broker it reads.
"""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.dependencies import Gateway, gateway_of
from gateway.openapi import READY
from gateway.queries import DatabaseUnavailableError
from gateway.requests import PlainRoute
from gateway.rules import OPEN

PING_TIMEOUT_SECONDS = 1.0


class ProbeRoute(PlainRoute):
    """A probe's route; ignores any query, since some probes add one."""

    ignores_query = True


router = APIRouter(prefix="/health", tags=["health"], route_class=ProbeRoute)


@router.get("/live", openapi_extra=OPEN.openapi)
async def live(_: Request) -> Response:
    """Answers 200 while the process can answer at all."""
    return JSONResponse({"status": "live"})


@router.get("/ready", responses=READY, openapi_extra=OPEN.openapi)
async def ready(request: Request) -> Response:
    """Answers 200 until the gateway drains; the body tells which dependency is down."""
    gateway = gateway_of(request)
    dependencies = {
        "broker": "up" if gateway.publisher.connected else "down",
        "database": "up" if await answers(gateway) else "down",
    }
    if gateway.draining.is_set():
        return JSONResponse({"status": "draining", "dependencies": dependencies}, 503)
    return JSONResponse({"status": "ready", "dependencies": dependencies})


async def answers(gateway: Gateway) -> bool:
    """Whether Postgres answers within a second."""
    try:
        async with asyncio.timeout(PING_TIMEOUT_SECONDS):
            await gateway.queries.ping()
    except (TimeoutError, DatabaseUnavailableError):
        return False
    return True
