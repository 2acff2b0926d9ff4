"""Writes docs/asyncapi.yaml, which describes the messages between the services: `make generate`.

Payloads are the schemas of the models that encode and decode them.
"""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import (
    DataclassField,
    ModelField,
    NullableSchema,
    TaggedUnionSchema,
    TypedDictField,
    WithDefaultSchema,
)

from dev.messages import CHANNELS, MESSAGES, OPERATIONS, Channel, Json, Message, Operation
from shared import __version__
from shared.contracts import LARGEST_MESSAGE_BYTES

PATH = Path(__file__).parent.parent / "docs" / "asyncapi.yaml"
SCHEMAS = "#/components/schemas/"
AMQP_BINDING = "0.3.0"
PARAMETERS = {
    "partition": "The number of the partition, from 0.",
    "partitions": "How many partitions there are, a number that the broker keeps.",
    "queue": "32 hexadecimal digits, of the receiver's choice.",
}
USERS = {
    "gateway": "Publishes to the exchange for commands, and receives its own replies and hints.",
    "worker": "Declares exchanges and queues, consumes commands, and publishes replies, hints and unreadable messages.",
}


class WireSchema(GenerateJsonSchema):
    """Schemas of what is sent: members that are None are omitted, and all others are there."""

    def field_is_required(self, field: ModelField | DataclassField | TypedDictField, total: bool) -> bool:  # noqa: ARG002, FBT001 - pydantic's signature
        """Whether the member is always there."""
        schema = field["schema"]
        return schema["type"] != "default" or schema.get("default") is not None

    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        """The schema of a value that is not None."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        """The schema without its default, which is for readers."""
        return self.generate_inner(schema["schema"])

    def tagged_union_schema(self, schema: TaggedUnionSchema) -> JsonSchemaValue:
        """The alternatives; AsyncAPI's `discriminator` names a schema, not a value, so there is none."""
        union = super().tagged_union_schema(schema)
        union.pop("discriminator", None)
        return union

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002 - pydantic's signature
        """Names of members need no titles."""
        return False


class WithoutAliases(yaml.SafeDumper):
    """Writes a value that occurs twice twice."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Whether to repeat the value."""
        return True


def document() -> str:
    """The document in the format of the file."""
    text: str = yaml.dump(build(), Dumper=WithoutAliases, sort_keys=False, allow_unicode=True, width=120)
    return "# Made by `make generate`.\n" + text


def build() -> Json:
    """The document."""
    payloads, schemas = _schemas()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Inkwell, between its services",
            "version": __version__,
            "description": "The messages between gateways and workers, through RabbitMQ. Clients use the HTTP API, "
            "which openapi.json describes. Names begin with INKWELL_QUEUE_PREFIX, by default `inkwell`. Readers ignore "
            "unknown members; a message whose effect changes is a new `dataversion` of its command. No message has "
            f"more than {LARGEST_MESSAGE_BYTES:,} bytes.",
            "license": {"name": "MIT"},
            "tags": [{"name": "gateway"}, {"name": "worker"}],
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "rabbitmq:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "The broker of INKWELL_BROKER_URL, over TLS with `amqps://`.",
                "security": [_security(user) for user in USERS],
            }
        },
        "channels": {name: _channel(channel) for name, channel in CHANNELS.items()},
        "operations": {name: _operation(operation) for name, operation in OPERATIONS.items()},
        "components": {
            "messages": {name: _message(name, message, payloads[name]) for name, message in MESSAGES.items()},
            "schemas": schemas,
            "securitySchemes": {
                user: {"type": "userPassword", "description": f"`inkwell_{user}`. {can}"} for user, can in USERS.items()
            },
        },
    }


def _schemas() -> tuple[dict[str, Json], Json]:
    """The payloads of the messages, and the schemas that they refer to."""
    payloads: dict[str, Json] = {}
    adapters: list[tuple[str, Literal["serialization"], TypeAdapter[Any]]] = []
    for name, message in MESSAGES.items():
        if isinstance(message.payload, TypeAdapter):
            adapters.append((name, "serialization", message.payload))
        else:
            payloads[name] = message.payload
    modelled, schemas = TypeAdapter.json_schemas(
        adapters, ref_template=SCHEMAS + "{model}", schema_generator=WireSchema
    )
    return payloads | {name: payload for (name, _), payload in modelled.items()}, schemas["$defs"]


def _message(name: str, message: Message, payload: Json) -> Json:
    headers = {"headers": message.headers} if message.headers else {}
    shown = {"headers": message.example_headers} if message.example_headers else {}
    is_json = message.content_type.endswith("json")
    examples = [
        {"summary": summary, **shown, "payload": json.loads(body) if is_json else body.decode()}
        for summary, body in message.examples.items()
    ]
    return {
        "name": name,
        **_texts(message.text),
        "contentType": message.content_type,
        **headers,
        "payload": payload,
        "bindings": {"amqp": {"bindingVersion": AMQP_BINDING}},
        "examples": examples,
    }


def _channel(channel: Channel) -> Json:
    binding: Json = {"is": "routingKey", "exchange": channel.exchange}
    if channel.queue is not None:
        binding = {"is": "queue", "queue": {"name": channel.address} | channel.queue}
    parameters = {
        name: {"description": description}
        for name, description in PARAMETERS.items()
        if f"{{{name}}}" in (channel.address or "")
    }
    return {
        "address": channel.address,
        **_texts(channel.text),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
        **({"parameters": parameters} if parameters else {}),
        "bindings": {"amqp": binding | {"bindingVersion": AMQP_BINDING}},
    }


def _operation(operation: Operation) -> Json:
    reply = {"address": {"location": "$message.header#/replyTo"}, **_references("replies", ("replies",))}
    return {
        "action": operation.action,
        **_references(operation.channel, operation.messages),
        **_texts(operation.text),
        "tags": [{"name": operation.service}],
        "security": [_security(operation.service)],
        "bindings": {"amqp": operation.binding | {"bindingVersion": AMQP_BINDING}},
        **({"reply": reply} if operation.replies else {}),
    }


def _texts(text: str) -> Json:
    """The first sentence as the summary, the others as the description."""
    first, _, others = text.partition(". ")
    summary = {"summary": first if first.endswith(".") else f"{first}."}
    return summary | {"description": others} if others else summary


def _references(channel: str, messages: tuple[str, ...]) -> Json:
    return {
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
    }


def _security(user: str) -> Json:
    return {"$ref": f"#/components/securitySchemes/{user}"}


if __name__ == "__main__":
    PATH.write_text(document())
