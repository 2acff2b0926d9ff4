"""A new endpoint is enforced and documented as declared; declarations that FastAPI would ignore are rejected."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from dev.backend import Services
from gateway import app as app_module
from gateway.app import GatewayApp, create_app
from gateway.http.operations import Operations
from gateway.http.parameters import Integer64, Parameters
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.problems import NOTE_NOT_FOUND, ProblemError
from gateway.resources import Gateway
from gateway.settings import GatewaySettings
from shared.contracts import Scope as TokenScope
from tests.support import harness
from tests.support.accounts import Person, bearer, sign_in, sign_up
from tests.support.isolation import SIGNING_IN, fresh_database, fresh_prefix, settings_of_gateway, settings_of_worker


class _Path(BaseModel):
    number: Integer64


NUMBER = Parameters(_Path, "path")
operations: Operations[Gateway] = Operations("numbers")


@operations.add(
    "GET",
    "/numbers/{number}/double",
    requires=TokenScope.READ,
    inputs=(NUMBER,),
    returns=int,
    problems=(NOTE_NOT_FOUND,),
)
async def double_number(_: Gateway, request: Request) -> Response:
    """Twice the number."""
    if not request[NUMBER].number:
        raise ProblemError(NOTE_NOT_FOUND)
    return Response(str(2 * request[NUMBER].number))


@pytest.fixture(scope="module")
async def client(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with one additional operation."""
    declared = app_module.collect_operations
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        settings = settings_of_gateway(servers, url, prefix, **SIGNING_IN)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app_module, "collect_operations", lambda settings: [*declared(settings), *operations])
            async with harness.worker(settings_of_worker(servers, url, prefix)), harness.gateway(settings) as client:
                yield client


@pytest.fixture(scope="module")
async def person(client: httpx.AsyncClient) -> Person:
    return await sign_up(client)


async def test_an_operation_is_served(client: httpx.AsyncClient, person: Person) -> None:
    for path in ("/numbers/21/double", "/numbers/21/double/"):
        response = await client.get(path, headers=person.headers)

        assert (response.status_code, response.json()) == (200, 42)
        assert response.headers["content-type"] == "application/json"
    assert (await client.head("/numbers/21/double", headers=person.headers)).headers["content-length"] == "2"


async def test_an_operation_lets_in_who_it_says(client: httpx.AsyncClient, person: Person) -> None:
    write_only = await sign_in(client, person.name, scope="notes:write")

    assert (await client.get("/numbers/21/double")).json()["code"] == "not_authenticated"
    assert (await client.get("/numbers/21/double", headers=bearer(write_only))).json()["code"] == "insufficient_scope"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/numbers/x/double", (422, "validation_failed")),
        ("GET", "/numbers/21/double?times=3", (422, "validation_failed")),
        ("GET", "/numbers/0/double", (404, "note_not_found")),
        ("GET", "/numbers/21", (404, "not_found")),
        ("GET", "/numbers//double", (404, "not_found")),
        ("POST", "/numbers/21/double", (405, "method_not_allowed")),
    ],
)
async def test_an_operation_reads_what_it_declares_and_nothing_else(
    client: httpx.AsyncClient, person: Person, method: str, path: str, expected: tuple[int, str]
) -> None:
    response = await client.request(method, path, headers=person.headers)

    assert (response.status_code, response.json()["code"]) == expected
    assert response.headers.get("allow") == ("GET, HEAD" if expected[0] == 405 else None)


async def test_an_operation_is_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    operation = document["paths"]["/numbers/{number}/double"]["get"]
    assert (operation["operationId"], operation["description"]) == ("doubleNumber", "Twice the number.")
    assert [parameter["name"] for parameter in operation["parameters"]] == ["number"]
    assert operation["security"] == [{"password": ["notes:read"]}, {"personalToken": ["notes:read"]}]
    assert {"200", "401", "403", "404", "413", "422", "500"} <= operation["responses"].keys()


def test_an_operation_without_a_scope_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="requires"):
        operations.add("GET", "/peek")(double_number)  # type: ignore[call-arg]


def test_a_path_is_declared_once(gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "collect_operations", lambda _: [*operations, *operations])

    with pytest.raises(TypeError, match="double is declared twice"):
        create_app(gateway_settings)


def test_a_segment_has_one_name_in_all_paths(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Operations[Gateway]("numbers")
    other.add("GET", "/numbers/{other}/half", requires=TokenScope.READ)(double_number)
    monkeypatch.setattr(app_module, "collect_operations", lambda _: [*operations, *other])

    with pytest.raises(TypeError, match=r"is called \{number\} elsewhere"):
        create_app(gateway_settings)


class Middleware:
    """Does nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        await self.app(scope, receive, send)


def add_middleware(app: FastAPI) -> None:
    app.add_middleware(Middleware)


def add_route(app: FastAPI) -> None:
    @app.get("/peek", dependencies=[Depends(lambda: None)])
    async def peek() -> str:
        return "everything"


def add_dependency(app: FastAPI) -> None:
    app.router.dependencies.append(Depends(lambda: None))


def mount(app: FastAPI) -> None:
    app.mount("/other", FastAPI())


@pytest.mark.parametrize(
    ("add", "named"),
    [
        (add_middleware, "the middleware Middleware"),
        (add_route, "the route /peek"),
        (add_dependency, "dependencies of the app"),
        (mount, "the route /other"),
    ],
)
async def test_what_only_fastapi_would_run_is_refused_at_start(
    gateway_settings: GatewaySettings, add: Callable[[GatewayApp], Awaitable[None] | None], named: str
) -> None:
    app = create_app(gateway_settings)
    add(app)

    with pytest.raises(TypeError, match=f"^{named} would be ignored: declare an Operation"):
        async with app.router.lifespan_context(app):
            pass
