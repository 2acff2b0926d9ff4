"""Personal tokens, for scripts. Only the digest of the secret is sent to the worker and stored."""

import hashlib
import json
from datetime import datetime

from gateway.auth.keys import KeyedHashes
from shared.contracts import Outcome, OutcomeStatus


def digest(token: str) -> str:
    """Return the digest to store for a token; it needs no salt, since tokens are random."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def reveal_token(keyed_hashes: KeyedHashes, owner: int, outcome: Outcome) -> Outcome:
    """Return the outcome of a creation with the token's secret in its body; the worker never sees the secret."""
    if outcome.status is not OutcomeStatus.APPLIED or not outcome.body:
        return outcome
    body = json.loads(outcome.body)
    body["token"] = keyed_hashes.personal_token(owner, outcome.id, datetime.fromisoformat(body["created_date"]))
    return outcome.model_copy(update={"body": json.dumps(body, ensure_ascii=False, separators=(",", ":"))})
