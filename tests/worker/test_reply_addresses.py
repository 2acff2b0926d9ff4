"""The addresses to which the worker sends replies, whatever address the publisher of a command names."""

from base64 import b64encode

import aio_pika
import pytest
from asyncpg import Connection, Record

from dev.backend import Services
from shared.contracts import encode_batch, encode_command
from shared.messaging import REPLY_TO, Topology
from tests.support import harness
from tests.support.commands import create
from tests.support.harness import eventually
from worker.reply_addresses import is_reply_address
from worker.settings import WorkerSettings

NODE = b"reply@119142065"
PROCESS_ID = b"\x83Xv\x00\x0f" + NODE + b"\x00\x00\x04\x68" + b"\x00" * 8
KEY = "xK9CaRKJob7pmTa3jAPd9A=="
BROKERS = ["3.10.8", "4.0.5", "4.3.6"]


def address(process_id: bytes, key: str = KEY) -> str:
    return f"{REPLY_TO}.{b64encode(process_id).decode()}.{key}"


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize(
    "good",
    [
        address(PROCESS_ID),
        address(PROCESS_ID.replace(b"v\x00\x0f", b"w\x0f")),
        address(PROCESS_ID.replace(b"v\x00\x0f" + NODE, b"d\x00\x0frabbit@rabbitmq")),
    ],
)
def test_address_of_a_process_gets_replies(broker: str, good: str) -> None:
    assert is_reply_address(good, broker)


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("bad", ["", REPLY_TO, f"{REPLY_TO}.", "inkwell.commands.v1.0", f"x{address(PROCESS_ID)}"])
def test_other_queues_get_no_replies(broker: str, bad: str) -> None:
    assert not is_reply_address(bad, broker)


@pytest.mark.parametrize(
    "bad",
    [
        f"{REPLY_TO}.xyz.abc",
        f"{REPLY_TO}.\xe4.abc",
        address(b""),
        address(b"hello"),
        address(PROCESS_ID[:-1]),
        address(PROCESS_ID + b"\x00"),
        address(b"\x84" + PROCESS_ID[1:]),
        address(PROCESS_ID.replace(NODE, b"\xff" * len(NODE))),
        address(PROCESS_ID.replace(b"\x00\x0f", b"\xff\xff")),
    ],
)
def test_address_that_the_broker_would_stumble_over_gets_replies_only_where_it_does_not(bad: str) -> None:
    assert not is_reply_address(bad, "4.0.5")
    assert is_reply_address(bad, "4.3.0")


async def test_reply_that_is_wanted_in_another_queue_is_not_sent(
    servers: Services, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    topology = Topology.of(worker_settings)
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        victim = await channel.declare_queue(exclusive=True)
        async with harness.worker(worker_settings):
            exchange = await channel.get_exchange(topology.commands_exchange)
            message = aio_pika.Message(encode_batch([encode_command(create())]), reply_to=victim.name)
            await exchange.publish(message, topology.command_queue(0))
            await eventually(lambda: database.fetchval("select count(*) from notes"))

        assert await victim.get(fail=False) is None
