"""Dates: all have one form, with six digits of a second and the offset `+00:00`."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import httpx
import pytest

from gateway.auth.keys import KeyedHashes
from gateway.auth.personal_tokens import reveal_token
from gateway.settings import GatewaySettings
from gateway.writes.command_urls import CommandUrls
from shared.connections import Connections
from shared.contracts import NO_OWNER, CreateToken, Outcome, OutcomeStatus, RegisterUser
from tests.support import harness
from tests.support.accounts import bearer, forged
from tests.support.canaries import NOTE
from tests.support.commands import CHEAP_HASH, DIGEST, attributes, create, patch, replace
from tests.support.harness import settings_without_servers
from worker.apply import apply_batch

DATES = {
    datetime(2026, 1, 1, tzinfo=UTC): "2026-01-01T00:00:00.000000+00:00",
    datetime(2026, 1, 1, 12, 30, 5, 500_000, UTC): "2026-01-01T12:30:05.500000+00:00",
    datetime(2026, 1, 1, 12, 30, 5, 123_450, UTC): "2026-01-01T12:30:05.123450+00:00",
    datetime(2026, 1, 1, 12, 30, 5, 123_456, UTC): "2026-01-01T12:30:05.123456+00:00",
    datetime(2026, 1, 1, 12, 30, 5, 1, UTC): "2026-01-01T12:30:05.000001+00:00",
    datetime(2026, 7, 1, 1, 0, 0, 0, timezone(timedelta(hours=2))): "2026-06-30T23:00:00.000000+00:00",
    datetime(2000, 1, 1, tzinfo=UTC): "2000-01-01T00:00:00.000000+00:00",
    datetime(8999, 12, 31, 23, 59, 59, 999_999, UTC): "8999-12-31T23:59:59.999999+00:00",
}
FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
ISSUED_AT = datetime(2026, 1, 1, tzinfo=UTC)
COMMAND_ID = UUID("01a203dc-cb4e-7573-81ba-d03f29afccf3")
SECRETS = {
    ISSUED_AT: "inkwell_x8YlEYsuDvqNOWknqiIwXbUweqWSpmzu48eaWVn57Es",
    ISSUED_AT + timedelta(microseconds=250_000): "inkwell_iXbUrF8ter3NUwXDFjptvxdwuRpUtmlyS9syHCw0Ecw",
}


@pytest.mark.parametrize(("time", "printed"), DATES.items(), ids=DATES.values())
async def test_note_is_printed_with_six_digits_by_its_writes_and_all_reads(
    connections: Connections, gateway_settings: GatewaySettings, time: datetime, printed: str
) -> None:
    for command in (create("quokka", time=time), replace(1, "quokkas", time=time), patch(1, time=time)):
        [outcome] = await apply_batch(connections, [command])
        assert outcome.body
        written = json.loads(outcome.body)
        assert (written["created_date"], written["updated_date"]) == (printed, printed)

        async with harness.gateway(gateway_settings) as client:
            assert (await client.get("/notes/1")).text == outcome.body
            assert (await client.get("/notes")).text == f"[{outcome.body}]"
            assert outcome.body in (await client.get("/notes/search?q=quokka")).text


async def test_text_of_a_note_is_printed_as_json(client: httpx.AsyncClient) -> None:
    text = {"title": "\"\\/\b\f\n\r\t\x01\x7f\u2028é🖋'", "description": '{"a": [null]}\\u0041%s{}'}

    created = await client.post("/notes", json=text)

    assert created.json() == text | {k: created.json()[k] for k in ("id", "created_date", "updated_date", "version")}
    assert list(created.json()) == ["id", "title", "description", "created_date", "updated_date", "version"]
    assert (await client.get("/notes/1")).text == created.text


@pytest.mark.parametrize(("time", "printed"), DATES.items(), ids=DATES.values())
async def test_user_and_token_are_printed_with_six_digits_by_their_writes_and_reads(
    connections: Connections, password_settings: GatewaySettings, time: datetime, printed: str
) -> None:
    envelope = attributes() | {"time": time}
    user = {"name": "Ada", "password_hash": CHEAP_HASH}
    token = {"name": "script", "scopes": ["notes:read"], "lifetime_days": 1, "secret_digest": DIGEST}
    register = RegisterUser.model_validate(envelope | {"id": uuid4(), "owner": NO_OWNER, "data": user})
    [registered] = [outcome.body or "" for outcome in await apply_batch(connections, [register])]
    user_id = json.loads(registered)["id"]
    create_token = CreateToken.model_validate(envelope | {"id": uuid4(), "owner": user_id, "data": token})
    [created] = [outcome.body or "" for outcome in await apply_batch(connections, [create_token])]
    ada = bearer(forged(password_settings, user_id))

    async with harness.gateway(password_settings) as client:
        assert (await client.get("/users/me", headers=ada)).text == registered
        assert (await client.get(f"/auth/tokens/{created_id(created)}", headers=ada)).json() == json.loads(created)
        assert (await client.get("/auth/tokens", headers=ada)).json() == [json.loads(created)]
    assert [json.loads(registered)[name] for name in ("created_date", "updated_date")] == [printed] * 2
    assert json.loads(created)["created_date"] == printed
    assert FORM.fullmatch(json.loads(created)["expires_date"])


def created_id(body: str) -> str:
    return str(json.loads(body)["id"])


async def test_accepted_write_has_its_issue_time_with_six_digits(gateway_settings: GatewaySettings) -> None:
    async with harness.gateway(gateway_settings) as client:
        accepted = await client.post("/notes", json=NOTE, headers={"Prefer": "respond-async"})
        polled = await client.get(accepted.headers["location"])

        assert FORM.fullmatch(accepted.json()["issued_at"])
        assert polled.json()["issued_at"] == accepted.json()["issued_at"]
        for microsecond in (0, 500_000, 123_456):
            time = datetime.now(UTC).replace(microsecond=microsecond)
            url = CommandUrls(gateway_settings).url(create(time=time), confirmed=True)
            printed = (await client.get(url)).json()["issued_at"]
            assert FORM.fullmatch(printed)
            assert datetime.fromisoformat(printed) == time


def test_secret_is_derived_from_the_time_in_its_original_form() -> None:
    hashes = KeyedHashes(settings_without_servers())

    assert {time: hashes.personal_token(7, COMMAND_ID, time) for time in SECRETS} == SECRETS


@pytest.mark.parametrize("fraction", ["", ".000000"])
def test_secret_of_an_outcome_of_an_earlier_version_is_revealed_again(fraction: str) -> None:
    body = {"id": str(COMMAND_ID), "created_date": f"2026-01-01T00:00:00{fraction}+00:00"}
    outcome = Outcome(id=COMMAND_ID, status=OutcomeStatus.APPLIED, http_status=201, body=json.dumps(body))

    revealed = json.loads(reveal_token(KeyedHashes(settings_without_servers()), 7, outcome).body or "")

    assert revealed == body | {"token": SECRETS[ISSUED_AT]}
