"""Values on which gateways of all versions must agree, or a retry at another one acts twice or is rejected."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import BaseModel

from gateway.auth.keys import KeyedHashes
from gateway.http.idempotency import build_command_id
from gateway.settings import GatewaySettings
from shared.contracts import NotePatch, NoteReplacement, NoteTarget, NoteText


@pytest.mark.parametrize(
    ("scope", "command_type", "target", "key", "expected"),
    [
        (1, "note.create", None, "8e03978e-40d5-43dd-bc93", "aa624837-ed67-596a-9786-5e6d56e6a89e"),
        (1, "note.replace", 7, "8e03978e-40d5-43dd-bc93", "f949a2a0-c42d-54f7-9adb-24b074e7acec"),
        ("user:ada", "user.register", None, "8e03978e-40d5-43dd-bc93", "bac479e6-29f6-5c33-ac81-bcac3f9c6af9"),
        (1, "token.revoke", "019b2c3d-4e5f-7a6b-8c7d-0000000000ff", "8e03978e", "f8184251-c258-5c6e-a8b6-dd83b29b80d1"),
        (64, "note.delete", 2**63 - 1, 'a "quoted" key', "3a754989-fb93-56f0-b7af-c33c5dad6f27"),
    ],
)
def test_key_names_the_same_command_in_every_version(
    scope: int | str, command_type: str, target: int | str | None, key: str, expected: str
) -> None:
    assert build_command_id(scope, command_type, target, key) == UUID(expected)


@pytest.mark.parametrize(
    ("data", "query", "expected"),
    [
        (NoteText(title="Ink", description="Buy a bottle — blue 🖋"), b"", "57834d6f7bb9ff51a8bfdabe505665db"),
        (
            NoteReplacement(note_id=7, title="Pen", description="", if_match=(2, 3)),
            b"",
            "881b5d6277e874418bb6e66ca067a6bf",
        ),
        (NotePatch(note_id=7, description="Two", if_none_match="*"), b"", "2a37f713ae29cab5b4ac25d77fbdd6a9"),
        (NoteTarget(note_id=7), b"dry=1", "2cfef2525cd77e930108af53d2664f7e"),
    ],
)
def test_request_has_the_same_fingerprint_in_every_version(
    gateway_settings: GatewaySettings, data: BaseModel, query: bytes, expected: str
) -> None:
    assert KeyedHashes(gateway_settings).fingerprint(data, query) == expected


def test_personal_token_and_salt_of_a_command_are_the_same_in_every_version(gateway_settings: GatewaySettings) -> None:
    command, issued_at = UUID("019b2c3d-4e5f-7a6b-8c7d-000000000001"), datetime(2026, 11, 22, 10, 30, 0, 4, tzinfo=UTC)

    hashes = KeyedHashes(gateway_settings)
    assert hashes.personal_token(7, command, issued_at) == "inkwell_YRwjUw2E1H2Dyisj5fqwY7FEmBwSfDZ8QV8LornS3kU"
    assert hashes.salt(command).hex() == "cf919c6b487bf2da5b796ab3e672fa5c"
