"""The URL of a command: all that is known of it before it has a row, signed so that nobody can make one up."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from itsdangerous import BadData, URLSafeSerializer

from gateway.settings import GatewaySettings
from shared.contracts import Command

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CommandTicket:
    """What a command's URL holds."""

    command_id: UUID
    owner: int
    issued_at: datetime
    fingerprint: str
    confirmed: bool
    """Whether the broker had confirmed the command when the URL was made."""


class CommandUrls:
    """Makes command URLs and reads them back; the first key signs, every key verifies."""

    def __init__(self, settings: GatewaySettings) -> None:
        keys = [key.get_secret_value() for key in reversed(settings.signing_keys)]
        self._serializer = URLSafeSerializer(keys, salt="inkwell.command-url")

    def url(self, command: Command, *, confirmed: bool) -> str:
        """The path of a command's resource."""
        issued_at = (command.time - EPOCH) // timedelta(microseconds=1)
        command_id = base64.urlsafe_b64encode(command.id.bytes).decode()
        token = self._serializer.dumps([command_id, command.owner, issued_at, command.fingerprint, int(confirmed)])
        return f"/commands/{token}"

    def read(self, token: str, owner: int) -> CommandTicket | None:
        """What the URL holds; None unless this deployment signed it for this owner."""
        try:
            command_id, ticket_owner, issued_at, fingerprint, confirmed = self._serializer.loads(token)
        except BadData:
            return None
        if ticket_owner != owner:
            return None
        return CommandTicket(
            UUID(bytes=base64.urlsafe_b64decode(command_id)),
            ticket_owner,
            EPOCH + timedelta(microseconds=issued_at),
            fingerprint,
            bool(confirmed),
        )
