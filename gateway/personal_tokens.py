"""Personal tokens, for scripts: random to everybody, yet made of the command's id, so that a retry shows the same one.

Only the digest of the secret is sent and stored. Whoever has the fingerprint key could make the secrets; nobody else.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from datetime import datetime
from uuid import UUID

from gateway.settings import GatewaySettings
from shared.contracts import Outcome, OutcomeStatus

PREFIX = "inkwell_"
"""Tells a personal token from a JWT, also to tools that look for leaked secrets."""


def secret(settings: GatewaySettings, owner: int, command_id: UUID, issued_at: datetime) -> str:
    """The personal token that the owner's command of this time creates.

    The time, since a key that is used again when its outcome is forgotten makes a command of the same id.
    """
    key = settings.fingerprint_key.get_secret_value().encode()
    message = f"inkwell personal token {owner} {command_id} {issued_at.isoformat()}".encode()
    return PREFIX + urlsafe_b64encode(hmac.digest(key, message, "sha256")).decode().rstrip("=")


def digest(token: str) -> str:
    """What is stored of it; it needs no salt, since it is no word that anybody could guess."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def revealed(settings: GatewaySettings, owner: int, outcome: Outcome) -> Outcome:
    """The outcome of a creation with the token in its body, which the worker has never seen."""
    if outcome.status is not OutcomeStatus.APPLIED or not outcome.body:
        return outcome
    body = json.loads(outcome.body)
    body["token"] = secret(settings, owner, outcome.id, datetime.fromisoformat(body["created_date"]))
    return outcome.model_copy(update={"body": json.dumps(body, ensure_ascii=False, separators=(",", ":"))})
