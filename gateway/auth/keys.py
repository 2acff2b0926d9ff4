"""Keyed hashes: unguessable values that every gateway derives from the same fingerprint key."""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from gateway.settings import GatewaySettings

_BLAKE2B_KEY_BYTES = 64
"""BLAKE2b's limit: the rest of a longer key is left out. Hashing the key first would change every fingerprint."""
TOKEN_PREFIX = "inkwell_"  # noqa: S105 - no secret
"""Distinguishes a personal token from a JWT, and lets secret scanners recognize it."""


class KeyedHashes:
    """Hashes under the fingerprint key; gateways of different versions must compute the same values."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._key = settings.fingerprint_key.get_secret_value().encode()

    def fingerprint(self, data: BaseModel, query: bytes) -> str:
        """Return the fingerprint of a request with this data and query.

        Omits the digest of a personal token: it is not part of the request, and differs for each repetition.
        """
        request = data.model_dump_json(exclude_none=True, exclude={"secret_digest"}).encode() + b"?" + query
        return hashlib.blake2b(request, digest_size=16, key=self._key[:_BLAKE2B_KEY_BYTES]).hexdigest()

    def salt(self, command_id: UUID) -> bytes:
        """Return the salt of a command's password, the same for each repetition and unique to the command."""
        key = self._key[:_BLAKE2B_KEY_BYTES]
        return hashlib.blake2b(command_id.bytes, digest_size=16, key=key, person=b"inkwell salt").digest()

    def personal_token(self, owner: int, command_id: UUID, issued_at: datetime) -> str:
        """Return the secret of the personal token that a command creates, the same for each repetition.

        Includes the time: a key that is reused after its outcome was pruned yields the same command id.
        """
        message = f"inkwell personal token {owner} {command_id} {issued_at.isoformat()}".encode()
        secret = urlsafe_b64encode(hmac.digest(self._key, message, "sha256")).decode().rstrip("=")
        return TOKEN_PREFIX + secret
