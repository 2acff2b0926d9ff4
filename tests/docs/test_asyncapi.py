"""docs/asyncapi.yaml is made of the models, describes the real broker, and is what every message is compared with."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import aio_pika
import httpx
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.common import FieldValue

from dev.asyncapi import PATH, build, document
from dev.backend import ROOT, Services
from dev.messages import PERSISTENT
from gateway.writes import publisher
from shared.contracts import COMMANDS_CONTENT_TYPE, Command
from shared.primary import TIMELINE_HEADER
from shared.topology import Topology
from tests.support import harness, message_witness
from tests.support.isolation import PARTITIONS
from tests.support.message_witness import Published

ROUTES = message_witness.routes(build())
GOLDEN = sorted((ROOT / "tests/contracts").glob("*.json"))


def commands(*events: object, **changes: Any) -> Published:
    """A message with commands as a gateway publishes it, except for the changes."""
    return to_a_partition(json.dumps(events).encode(), **changes)


def to_a_partition(body: bytes, **changes: Any) -> Published:
    place = {name: changes.pop(name) for name in ("exchange", "key", "mandatory") if name in changes}
    usual: dict[str, Any] = {
        "content_type": COMMANDS_CONTENT_TYPE,
        "delivery_mode": PERSISTENT,
        "timestamp": datetime(2026, 7, 1, tzinfo=UTC),
        "reply_to": "amq.rabbitmq.reply-to.g1h2AA==.abc==",
    }
    sent = Published(
        "test.commands.v1", "test.commands.v1.0.of.2", body, Basic.Properties(**usual | changes), mandatory=True
    )
    return sent._replace(**place)


def to_a_gateway(body: bytes, timeline: str | None = "7409012345678901234/1") -> Published:
    headers: dict[str, FieldValue] = {TIMELINE_HEADER: timeline} if timeline else {}
    return Published(
        "", "amq.rabbitmq.reply-to.g1h2AA==.abc==", body, Basic.Properties(headers=headers, delivery_mode=1)
    )


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

    assert list(form.objections(Published("", "", body, Basic.Properties(headers=example.get("headers"))))) == []


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_stored_messages_fit_the_document(file: Path) -> None:
    body = file.read_bytes()
    if file.stem.startswith("replies"):
        assert message_witness.objections(ROUTES["worker"], to_a_gateway(body)) == []
    else:
        assert message_witness.objections(ROUTES["gateway"], to_a_partition(body)) == []


CREATE = golden("commands.v1")[0]
BREACHES = {
    "no batch": to_a_partition(b"{}"),
    "no JSON": to_a_partition(b"["),
    "an unknown command": commands(CREATE | {"type": "note.paint"}),
    "a command in a version that does not exist": commands(CREATE | {"dataversion": 2}),
    "a command without an attempt": commands({name: CREATE[name] for name in CREATE if name != "attemptid"}),
    "a time without a zone": commands(CREATE | {"time": "2026-07-01T12:30:45"}),
    "null for what is omitted": commands(CREATE | {"traceparent": None}),
    "more commands than a message may have": commands(*[CREATE] * 501),
    "a bad command among good ones": commands(CREATE, CREATE | {"id": "7"}, CREATE),
    "commands that a restart would lose": commands(CREATE, delivery_mode=1),
    "commands that may vanish without a route": commands(CREATE, mandatory=False),
    "commands without a time": commands(CREATE, timestamp=None),
    "replies to a stranger": commands(CREATE, reply_to="a.queue.of.mine"),
    "another content type": commands(CREATE, content_type="application/json"),
    "a queue that the document lacks": commands(exchange="", key="test.elsewhere"),
    "dead letters of a gateway": commands(exchange="", key="test.dead-letters.v2"),
    "replies of a gateway": to_a_gateway(b"[]"),
}


def test_message_without_a_breach_is_not_objected_to() -> None:
    assert message_witness.objections(ROUTES["gateway"], commands(CREATE)) == []
    assert message_witness.objections(ROUTES["worker"], to_a_gateway(b"[]")) == []


@pytest.mark.parametrize("breach", BREACHES)
def test_message_that_the_document_forbids_is_objected_to(breach: str) -> None:
    assert message_witness.objections(ROUTES["gateway"], BREACHES[breach])


@pytest.mark.parametrize("timeline", [None, "1"], ids=["no timeline", "no number"])
def test_reply_without_a_timeline_is_objected_to(timeline: str | None) -> None:
    assert message_witness.objections(ROUTES["worker"], to_a_gateway(b"[]", timeline))


async def test_undocumented_message_of_a_gateway_is_noticed(
    shared_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "encode_batch", lambda _: b'[{"id": 1}]')

    await shared_client.post("/notes", json={"title": "Ink", "description": ""}, headers={"Prefer": "respond-async"})

    [objection] = message_witness.take_objections()
    assert objection.startswith("gateway published to 'test-")


IN_ANOTHER_PROCESS = f"""
from aiormq.channel import Channel

source = "Channel.basic_publish(None, b'nonsense', exchange='inkwell.commands.v1', routing_key='elsewhere').close()"
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
        if operation["action"] == "send" and not name.startswith(("probe", "sendHints"))
    }

    assert set(sent.values()) == {PERSISTENT}
