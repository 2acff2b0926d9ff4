"""CORS: which web pages of other origins may use the API; off unless INKWELL_CORS_ORIGINS is set.

Starlette's middleware decides about the headers. The front answers preflights with it, before authentication, and sends
its headers with every other response, including errors.
"""

from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from gateway.http.openapi import HEADER_DESCRIPTIONS
from gateway.http.requests import Request
from gateway.http.responses import Response, render
from gateway.http.routes import METHODS
from gateway.problems import BAD_REQUEST, HEADERS_TOO_LARGE, ProblemError

REQUESTED_HEADERS_LIMIT_CHARACTERS = 2048
"""Limit on `Access-Control-Request-Headers`, which the response echoes: proxies limit response headers."""


class CrossOriginPolicy(CORSMiddleware):
    """CORS: pages of the given origins may send any header; credentials are bearer tokens, never cookies.

    Starlette's middleware without an inner app: the front calls it to answer preflights and to add headers.
    """

    def __init__(self, origins: Collection[str]) -> None:
        super().__init__(
            _no_app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=HEADER_DESCRIPTIONS,
        )

    def is_preflight(self, request: Request) -> bool:
        """Whether the request asks for permission to send another one."""
        has_headers = {b"origin", b"access-control-request-method"} <= request.headers_by_name.keys()
        return has_headers and request.method == "OPTIONS"

    def answer_preflight(self, headers: Headers) -> Response:
        """Return the response to a preflight, a problem if it is rejected."""
        requested = headers.get("access-control-request-headers", "")
        if len(requested) > REQUESTED_HEADERS_LIMIT_CHARACTERS:
            detail = f"Access-Control-Request-Headers is longer than {REQUESTED_HEADERS_LIMIT_CHARACTERS} characters"
            raise ProblemError(HEADERS_TOO_LARGE, detail)
        response = self.preflight_response(headers)
        text = bytes(response.body).decode()
        answered = {name.title(): value for name, value in response.headers.items() if not name.startswith("content-")}
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            return render(ProblemError(BAD_REQUEST, text, headers=answered))
        if requested:
            answered["Access-Control-Allow-Headers"] = ", ".join(map(str.strip, requested.split(",")))
        return Response(text, response.status_code, answered, "text/plain; charset=utf-8")


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError
