"""The signed URL of a command: it contains what a gateway needs to know of a command that has no row yet."""

import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from itsdangerous import BadData, Signer
from itsdangerous.encoding import base64_decode, base64_encode

from gateway.settings import GatewaySettings
from shared.contracts import Command

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HEAD = struct.Struct(">16s16sqq?")
"""Command id, attempt id, owner, issue time in microseconds since the epoch, confirmed; the fingerprint follows."""


@dataclass(frozen=True, slots=True)
class CommandTicket:
    """The content of a command's URL."""

    command_id: UUID
    attempt_id: UUID
    owner: int
    issued_at: datetime
    fingerprint: str
    confirmed: bool
    """Whether the broker had confirmed the command when the URL was built."""


class CommandUrls:
    """Builds and reads command URLs; the first key signs, every key verifies."""

    def __init__(self, settings: GatewaySettings) -> None:
        keys = [key.get_secret_value() for key in reversed(settings.signing_keys)]
        self._prefix = f"{settings.prefix}/commands/"
        self._signer = Signer(keys, salt="inkwell.command-url", digest_method=hashlib.sha256)

    def url(self, command: Command, *, confirmed: bool) -> str:
        """Return the path of a command's URL."""
        issued_at = (command.time - EPOCH) // timedelta(microseconds=1)
        head = HEAD.pack(command.id.bytes, command.attempt_id.bytes, command.owner, issued_at, confirmed)
        return f"{self._prefix}{self._signer.sign(base64_encode(head + command.fingerprint.encode())).decode()}"

    def read(self, token: str) -> CommandTicket | None:
        """Return the URL's content; None unless the signature is valid and the encoding canonical."""
        try:
            ticket = base64_decode(self._signer.unsign(token))
            signature = base64_decode(token.rpartition(".")[2])
        except BadData:
            return None
        if b".".join(map(base64_encode, (ticket, signature))) != token.encode():
            return None
        command_id, attempt_id, owner, issued_at, confirmed = HEAD.unpack_from(ticket)
        return CommandTicket(
            command_id=UUID(bytes=command_id),
            attempt_id=UUID(bytes=attempt_id),
            owner=owner,
            issued_at=EPOCH + timedelta(microseconds=issued_at),
            fingerprint=ticket[HEAD.size :].decode(),
            confirmed=confirmed,
        )
