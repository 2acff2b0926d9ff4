"""How the publisher turns a backlog into messages."""

import pytest

from dev.backend import Services
from gateway.api.note_bodies import ITEMS_LIMIT_BYTES
from gateway.http.request_head import HEADERS_LIMIT_BYTES
from gateway.settings import GatewaySettings
from gateway.writes import publisher
from gateway.writes.publisher import Backlog
from gateway.writes.replies import Attempt
from shared.contracts import (
    LARGEST_MESSAGE_BYTES,
    MAX_COMMAND_BYTES,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_COMMANDS,
)
from shared.messaging import Topology
from tests.support import harness
from tests.support.commands import create

ADDED_BYTES = 64
"""Members of an item that the command has but the request lacks."""


def backlog_of(*attempts: Attempt) -> Backlog:
    backlog = Backlog()
    for attempt in attempts:
        backlog.add(attempt)
    return backlog


async def test_message_takes_the_oldest_and_no_more_than_its_limit_of_commands() -> None:
    attempts = [Attempt(create()) for _ in range(MAX_MESSAGE_COMMANDS + 1)]
    backlog = backlog_of(*attempts)

    assert backlog.take() == attempts[:MAX_MESSAGE_COMMANDS]
    assert [attempt.handed_over for attempt in attempts] == [True] * MAX_MESSAGE_COMMANDS + [False]
    assert backlog.take() == attempts[MAX_MESSAGE_COMMANDS:]


async def test_message_stays_within_its_limit_of_bytes() -> None:
    backlog = backlog_of(*[Attempt(create(description="x" * 100_000)) for _ in range(30)])

    while backlog:
        assert sum(len(attempt.encoded) + 1 for attempt in backlog.take()) <= MAX_MESSAGE_BYTES


async def test_command_larger_than_a_message_goes_alone() -> None:
    large, small = Attempt(create(description="é" * (MAX_MESSAGE_BYTES // 2 + 1))), Attempt(create())

    assert backlog_of(large, small).take() == [large]


def test_every_request_within_the_settings_fits_into_a_message() -> None:
    body = max(ITEMS_LIMIT_BYTES, *(each.le for each in GatewaySettings.model_fields["body_limit_bytes"].metadata[1:]))

    assert body + HEADERS_LIMIT_BYTES + MAX_ITEMS * ADDED_BYTES + 4096 < MAX_COMMAND_BYTES < LARGEST_MESSAGE_BYTES


async def test_command_that_no_message_holds_is_refused_and_never_published(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch, servers: Services
) -> None:
    monkeypatch.setattr(publisher, "MAX_COMMAND_BYTES", 700)
    async with (
        harness.copies(servers, Topology.of(gateway_settings)) as copies,
        harness.gateway(gateway_settings) as client,
    ):
        refused = await client.post("/notes", json={"title": "x", "description": "é" * 200})
        taken = await client.post("/notes", json={"title": "x", "description": ""}, headers={"Prefer": "wait=0"})

        assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
        assert taken.status_code == 202
        assert len(await harness.bodies(copies)) == 1
