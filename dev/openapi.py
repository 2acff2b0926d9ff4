"""Writes docs/openapi.json, the document of a gateway with default settings: `make generate`."""

import json
from pathlib import Path

from gateway.app import create_app
from gateway.settings import GatewaySettings

PATH = Path(__file__).parent.parent / "docs" / "openapi.json"
NOT_USED = "a-key-that-nothing-is-signed-with"
REQUIRED = {
    "database_url": "postgresql://nobody@127.0.0.1:1/nowhere",
    "broker_url": "amqp://nobody@127.0.0.1:1/",
    "signing_keys": (NOT_USED,),
    "fingerprint_key": NOT_USED,
}
"""Required settings that do not affect the document."""


def document() -> str:
    """The document in the format of the file."""
    defaults = {name: field.get_default() for name, field in GatewaySettings.model_fields.items()}
    settings = GatewaySettings.model_validate(defaults | REQUIRED)
    return json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(document())
