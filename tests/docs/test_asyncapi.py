"""docs/asyncapi.yaml is made of the models, describes the real broker, and is what every message is compared with."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import aio_pika
import httpx
import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldValue

from dev.asyncapi import PATH, PERSISTENT, build, document
from dev.backend import ROOT, Services
from gateway.writes import publisher
from shared.contracts import COMMANDS_CONTENT_TYPE, Command
from shared.primary import TIMELINE_HEADER
from shared.topology import Topology
from tests.support import harness, message_witness
from tests.support.isolation import PARTITIONS

ROUTES = message_witness.routes(build())
TO_A_PARTITION = ("test.commands.v1", "test.commands.v1.0.of.2")
TO_A_GATEWAY = ("", "amq.rabbitmq.reply-to.g1h2AA==.abc==")
GOLDEN = sorted((ROOT / "tests/contracts").glob("*.json"))
REPLY_HEADERS: dict[str, FieldValue] = {TIMELINE_HEADER: "7409012345678901234/1"}


def commands(*events: object, **properties: Any) -> Message:
    body = json.dumps(events).encode()
    return Message(body, content_type=COMMANDS_CONTENT_TYPE, delivery_mode=DeliveryMode.PERSISTENT, **properties)


def golden(name: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads((ROOT / f"tests/contracts/{name}.json").read_text())
    return events


def test_document_is_made_of_the_models() -> None:
    assert PATH.read_text() == document(), "run `make generate`"


def test_document_has_every_command() -> None:
    sent = build()["components"]["messages"]["commands"]["payload"]["items"]["oneOf"]

    assert {each["$ref"].rpartition("/")[2] for each in sent} == {model.__name__ for model in get_args(Command)}


def check(folder: Path, text: str) -> str:
    """What AsyncAPI's parser objects to."""
    command = ["node", "check_asyncapi.mjs"]
    return subprocess.run(
        command, input=text, cwd=folder, capture_output=True, text=True, timeout=120, check=True
    ).stdout


def test_published_parser_accepts_the_document(node_folder: Path) -> None:
    assert check(node_folder, PATH.read_text()) == ""


@pytest.mark.parametrize(
    ("part", "name"), [("reply", "operation"), ("is", "binding"), ("contentType", "message")], ids=lambda name: name
)
def test_published_parser_objects_to_a_mistake(node_folder: Path, part: str, name: str) -> None:
    mistaken = re.sub(rf"\b{part}: ?", f"{part}s: ", PATH.read_text())

    assert f"{part}s" in check(node_folder, mistaken), f"a mistake in the {name}s"


EXAMPLES = [
    (name, example) for name, message in build()["components"]["messages"].items() for example in message["examples"]
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example["summary"] for _, example in EXAMPLES])
def test_example_fits_its_message(name: str, example: dict[str, Any]) -> None:
    form = message_witness.Form(build(), build()["components"]["messages"][name])
    is_text = isinstance(example["payload"], str)
    body = (example["payload"] if is_text else json.dumps(example["payload"])).encode()

    assert list(form.objections(Message(body, headers=example.get("headers", {})))) == []


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_stored_messages_fit_the_document(file: Path) -> None:
    if file.stem.startswith("replies"):
        sent = Message(file.read_bytes(), headers=REPLY_HEADERS)
        assert message_witness.objections(ROUTES["worker"], *TO_A_GATEWAY, sent) == []
    else:
        sent = commands(*json.loads(file.read_text()))
        assert message_witness.objections(ROUTES["gateway"], *TO_A_PARTITION, sent) == []


CREATE = golden("commands.v1")[0]
BREACHES = {
    "no batch": (TO_A_PARTITION, Message(b"{}", delivery_mode=DeliveryMode.PERSISTENT)),
    "no JSON": (TO_A_PARTITION, Message(b"[", delivery_mode=DeliveryMode.PERSISTENT)),
    "an unknown command": (TO_A_PARTITION, commands(CREATE | {"type": "note.paint"})),
    "a command in a version that does not exist": (TO_A_PARTITION, commands(CREATE | {"dataversion": 2})),
    "a command without an attempt": (
        TO_A_PARTITION,
        commands({name: value for name, value in CREATE.items() if name != "attemptid"}),
    ),
    "a time without a zone": (TO_A_PARTITION, commands(CREATE | {"time": "2026-07-01T12:30:45"})),
    "null for what is omitted": (TO_A_PARTITION, commands(CREATE | {"traceparent": None})),
    "more commands than a message may have": (TO_A_PARTITION, commands(*[CREATE] * 501)),
    "a bad command among good ones": (TO_A_PARTITION, commands(CREATE, CREATE | {"id": "7"}, CREATE)),
    "commands that a restart would lose": (TO_A_PARTITION, Message(b"[]", delivery_mode=DeliveryMode.NOT_PERSISTENT)),
    "another content type": (
        TO_A_PARTITION,
        Message(b"[]", content_type="application/json", delivery_mode=DeliveryMode.PERSISTENT),
    ),
    "a queue that the document lacks": (("", "test.elsewhere"), commands()),
    "dead letters of a gateway": (("", "test.dead-letters.v2"), commands()),
    "replies of a gateway": (TO_A_GATEWAY, Message(b"[]", headers=REPLY_HEADERS)),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_message_that_the_document_forbids_is_objected_to(breach: str) -> None:
    route, message = BREACHES[breach]

    assert message_witness.objections(ROUTES["gateway"], *route, message)


@pytest.mark.parametrize("headers", [{}, {TIMELINE_HEADER: "1"}], ids=["no timeline", "no number"])
def test_reply_without_a_timeline_is_objected_to(headers: dict[str, FieldValue]) -> None:
    assert message_witness.objections(ROUTES["worker"], *TO_A_GATEWAY, Message(b"[]", headers=headers))


async def test_undocumented_message_of_a_gateway_is_noticed(
    shared_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "encode_batch", lambda _: b'[{"id": 1}]')

    await shared_client.post("/notes", json={"title": "Ink", "description": ""}, headers={"Prefer": "respond-async"})

    [objection] = message_witness.take_objections()
    assert objection.startswith("gateway published to 'test-")


IN_ANOTHER_PROCESS = f"""
from aio_pika import Message
from aio_pika.exchange import Exchange

source = "Exchange(None, 'inkwell.commands.v1').publish(Message(b'nonsense'), 'elsewhere').close()"
exec(compile(source, {str(ROOT / "worker/example.py")!r}, "exec"))
"""


def test_undocumented_message_of_another_process_is_noticed() -> None:
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], cwd=ROOT, check=True)

    [objection] = message_witness.take_objections()
    assert objection.startswith("worker published to 'inkwell.commands.v1' with 'elsewhere'")


async def test_broker_has_the_exchanges_and_queues_of_the_document(servers: Services, queue_prefix: str) -> None:
    topology = Topology(queue_prefix, PARTITIONS)
    await harness.declare(servers, topology)
    places = [channel["bindings"]["amqp"] for channel in build()["channels"].values()]
    exchanges = [place["exchange"] for place in places if "exchange" in place]
    queues = [place["queue"] for place in places if place.get("queue", {}).get("durable")]
    assert exchanges
    assert queues

    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        for exchange in exchanges:
            name = exchange["name"].replace("inkwell", queue_prefix)
            await channel.declare_exchange(
                name, exchange["type"], durable=exchange["durable"], auto_delete=exchange["autoDelete"]
            )
        for queue in queues:
            name = queue["name"].replace("inkwell", queue_prefix).replace("{partition}", "0")
            await channel.declare_queue(name, passive=True)
        with pytest.raises(ChannelPreconditionFailed):
            await channel.declare_exchange(topology.commands_exchange, "fanout", durable=True)


def test_commands_and_dead_letters_survive_a_restart_of_the_broker() -> None:
    sent = {
        name: operation["bindings"]["amqp"].get("deliveryMode")
        for name, operation in build()["operations"].items()
        if operation["action"] == "send" and "probe" not in name
    }

    assert set(sent.values()) == {PERSISTENT}
