import shutil
from collections import defaultdict

import asyncpg
import pytest
from fastapi import FastAPI, Request

from bench.contenders import Contender, access_tokens, authorization
from bench.database import Database, Schema
from bench.load import run_wrk
from bench.scenarios import SCENARIOS
from gateway.settings import GatewaySettings
from tests.support import harness


def contender(url: str, *tokens: str) -> Contender:
    return Contender("Inkwell", url, processes=[], access_tokens=list(tokens))


async def test_gateway_lets_every_user_read_the_notes_dealt_out_to_them(
    database_url: str, database: "asyncpg.Connection[asyncpg.Record]", password_settings: GatewaySettings
) -> None:
    await Database(database_url, database, Schema.INKWELL).reset(owners=3, notes_per_owner=2)
    environment = {
        "INKWELL_DATABASE_URL": database_url,
        "INKWELL_BROKER_URL": str(password_settings.broker_url.get_secret_value()),
        "INKWELL_SIGNING_KEYS": password_settings.signing_keys[0].get_secret_value(),
        "INKWELL_FINGERPRINT_KEY": password_settings.fingerprint_key.get_secret_value(),
    }
    async with harness.gateway(password_settings) as client:
        lists = [await client.get("/notes/", headers=authorization(t)) for t in access_tokens(environment, 3)]
    assert [[note["id"] for note in response.json()] for response in lists] == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is missing")
async def test_every_request_carries_the_token_of_its_notes_owner() -> None:
    seen = defaultdict(set)
    app = FastAPI()

    @app.get("/notes/{note_id}")
    async def get_note(request: Request, note_id: int) -> None:
        seen[request.headers.get("authorization")].add(note_id % 2)

    async with harness.serving(app) as url:
        await run_wrk(contender(url, "odd", "even"), SCENARIOS["get"], owners=2, connections=1, seconds=1)
    assert seen == {"Bearer odd": {1}, "Bearer even": {0}}


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is missing")
async def test_requests_to_a_contender_without_users_carry_no_token() -> None:
    seen = set()
    app = FastAPI()

    @app.get("/notes/")
    async def list_notes(request: Request) -> None:
        seen.add(request.headers.get("authorization"))

    async with harness.serving(app) as url:
        await run_wrk(contender(url), SCENARIOS["list"], owners=1, connections=1, seconds=1)
    assert seen == {None}
