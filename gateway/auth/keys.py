"""Keyed hashes: values that every gateway derives alike from the fingerprint key, and that nobody else can guess."""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from gateway.settings import GatewaySettings

_BLAKE2B_KEY_BYTES = 64
TOKEN_PREFIX = "inkwell_"  # noqa: S105 - no secret
"""Distinguishes a personal token from a JWT, also for tools that scan for leaked secrets."""


class KeyedHashes:
    """Hashes under the fingerprint key; gateways of different versions must agree on each of them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._key = settings.fingerprint_key.get_secret_value().encode()

    def fingerprint(self, data: BaseModel, query: bytes) -> str:
        """The fingerprint of a request with this data and query.

        The digest of a personal token is left out: the client does not ask for it, and each repetition has another one.
        """
        asked = data.model_dump_json(exclude_none=True, exclude={"secret_digest"}).encode() + b"?" + query
        return hashlib.blake2b(asked, digest_size=16, key=self._key[:_BLAKE2B_KEY_BYTES]).hexdigest()

    def salt(self, command_id: UUID) -> bytes:
        """The salt of the password in a command: the same for each repetition, and no other command has it."""
        key = self._key[:_BLAKE2B_KEY_BYTES]
        return hashlib.blake2b(command_id.bytes, digest_size=16, key=key, person=b"inkwell salt").digest()

    def personal_token(self, owner: int, command_id: UUID, issued_at: datetime) -> str:
        """The secret of the personal token that the owner's command of this time creates: the same when repeated.

        The time is part of it because a key used again after its outcome is pruned makes a command of the same id.
        """
        message = f"inkwell personal token {owner} {command_id} {issued_at.isoformat()}".encode()
        secret = urlsafe_b64encode(hmac.digest(self._key, message, "sha256")).decode().rstrip("=")
        return TOKEN_PREFIX + secret
