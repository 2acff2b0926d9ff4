"""Whatever is asked on a connection has a deadline: the broker may fall silent once it has accepted it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import ModuleType
from typing import NamedTuple

import pytest
from aio_pika.abc import AbstractConnection
from pydantic import Secret
from structlog.testing import capture_logs

from gateway.reads import hints
from gateway.reads.hints import Hints
from gateway.settings import GatewaySettings
from gateway.writes import publisher
from gateway.writes.publisher import Publisher
from gateway.writes.replies import Replies
from shared import broker, partitions, topology
from shared.broker import open_connection
from shared.broker_url import BrokerUrl
from shared.clock import Clock
from shared.connections import Connections
from shared.contracts import Command, encode_batch, encode_command
from shared.partitions import read_partitions, wait_until_changed, wait_until_declared
from shared.primary import Primary
from shared.settings import ServiceSettings
from shared.topology import Topology, wait_until_lost
from tests.support.commands import create
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker import consumer, dead_letters, hint_sender, queue_check, repartition, reply_sender, subscriptions
from worker.command_line import operate_on_queue, read_arguments
from worker.consumer import Consumer
from worker.dead_letters import Sender, build_replay
from worker.hint_sender import HintSender
from worker.reply_sender import ReplySender
from worker.settings import WorkerSettings

SHORT_SECONDS, ENOUGH_SECONDS = 0.3, 5.0


@pytest.fixture
async def link(worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """The services' link to the broker; they do not wait long for a silent one to close a connection."""
    for module in (broker, reply_sender, subscriptions):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT_SECONDS", SHORT_SECONDS)
    [address] = worker_settings.broker_url.get_secret_value().hosts
    async with proxy_to(*address) as proxy:
        yield proxy


@pytest.fixture
def linked_gateway(gateway_settings: GatewaySettings, link: Proxy) -> GatewaySettings:
    return gateway_settings.model_copy(update={"broker_url": through(link, gateway_settings)})


@pytest.fixture
def linked_worker(gateway_settings: GatewaySettings, worker_settings: WorkerSettings, link: Proxy) -> WorkerSettings:
    assert gateway_settings.queue_prefix == worker_settings.queue_prefix  # whose queues exist
    return worker_settings.model_copy(update={"broker_url": through(link, worker_settings)})


def through(link: Proxy, settings: ServiceSettings) -> Secret[BrokerUrl]:
    """The URL of the broker through the link."""
    url = settings.broker_url.get_secret_value()
    [(host, port)] = url.hosts
    return Secret(BrokerUrl.parse(url.text.replace(f"@{host}:{port}", f"@127.0.0.1:{link.port}")))


def topology_of(settings: ServiceSettings) -> Topology:
    return Topology.of(settings)


def replies(settings: ServiceSettings) -> ReplySender:
    primary = Primary.of(settings.database_url.get_secret_value())
    return ReplySender(settings.broker_url, topology_of(settings), primary)


def consume(settings: WorkerSettings) -> Consumer:
    return Consumer(settings, Connections(settings.database_url, "test", 1))


def publish(settings: GatewaySettings) -> Publisher:
    return Publisher(settings, Replies(Primary.of(settings.database_url.get_secret_value())), Clock())


async def replay(settings: WorkerSettings) -> None:
    async with AsyncExitStack() as exits:
        await Sender(settings, exits)._new_channel()


class Session(NamedTuple):
    """What a service sets up on a new connection, with the module that connects and the one that has the deadline."""

    connects: ModuleType
    limits: ModuleType
    run: Callable[[GatewaySettings, WorkerSettings], Awaitable[object]]


SESSIONS = {
    "publisher": Session(publisher, publisher, lambda gateway, _: publish(gateway)._session()),
    "hints": Session(hints, hints, lambda gateway, _: Hints(gateway, lambda _: None, lambda: None)._session()),
    "consumer": Session(consumer, partitions, lambda _, worker: consume(worker)._session()),
    "replies": Session(reply_sender, reply_sender, lambda _, worker: replies(worker)._session()),
    "sent hints": Session(
        hint_sender, hint_sender, lambda _, worker: HintSender(worker.broker_url, topology_of(worker))._session()
    ),
    "replays": Session(dead_letters, dead_letters, lambda _, worker: replay(worker)),
    "operator": Session(partitions, partitions, lambda _, worker: read_partitions(worker, "test")),
}


@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
async def test_broker_that_falls_silent_after_connecting_is_given_up(
    session: Session,
    link: Proxy,
    linked_gateway: GatewaySettings,
    linked_worker: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session.connects, "open_connection", partial(connect_and_freeze, link))
    monkeypatch.setattr(session.limits, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)

    async with asyncio.timeout(ENOUGH_SECONDS):
        with pytest.raises(TimeoutError):
            await session.run(linked_gateway, linked_worker)


@asynccontextmanager
async def connect_and_freeze(link: Proxy, url: Secret[BrokerUrl], name: str) -> AsyncIterator[AbstractConnection]:
    """A connection on which the broker is silent."""
    async with open_connection(url, name) as connection:
        link.freeze()
        yield connection


async def test_gateway_that_waits_for_the_queues_gives_a_silent_broker_up(
    link: Proxy, linked_gateway: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)
    async with open_connection(linked_gateway.broker_url, "test") as connection:
        channel = await connection.channel()
        link.freeze()
        async with asyncio.timeout(ENOUGH_SECONDS):
            with pytest.raises(TimeoutError):
                await wait_until_declared(channel, topology_of(linked_gateway))


@pytest.mark.parametrize("when", ["while its queue is checked", "while it subscribes", "after it has subscribed"])
async def test_subscription_to_a_silent_broker_ends_the_connection(
    when: str, link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_check, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(subscriptions, "WATCH_INTERVAL_SECONDS", SHORT_SECONDS)
    consuming = consume(linked_worker)
    consuming._assignment.slot = 0
    async with open_connection(linked_worker.broker_url, "test") as connection:
        if when == "while its queue is checked":
            link.freeze()
        elif when == "while it subscribes":
            monkeypatch.setattr(subscriptions, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)
            monkeypatch.setattr(subscriptions, "wait_for_correct_queue", freeze(link))
        else:
            monkeypatch.setattr(subscriptions, "PROBE_TIMEOUT_SECONDS", SHORT_SECONDS)
            monkeypatch.setattr(subscriptions.Subscriptions, "_watch", freeze(link, subscriptions.Subscriptions._watch))
        async with asyncio.timeout(ENOUGH_SECONDS):
            with pytest.raises(TimeoutError):
                await consuming._subscriptions._keep(connection, 0)

    assert await consuming._deliveries.take(1) is None  # which ends the session, so that it connects anew
    assert not consuming.partitions


async def test_worker_that_stops_waits_only_briefly_for_a_silent_broker_to_close_its_channels(
    link: Proxy, linked_worker: WorkerSettings
) -> None:
    consuming = consume(linked_worker)
    consuming._assignment.slot = 0
    async with open_connection(linked_worker.broker_url, "test") as connection:
        subscription = asyncio.create_task(consuming._subscriptions._keep(connection, 0))
        await eventually(lambda: has_subscribed(consuming))
        link.freeze()
        subscription.cancel()
        _, late = await asyncio.wait([subscription], timeout=ENOUGH_SECONDS)

    assert not late
    assert subscription.cancelled()


async def has_subscribed(consuming: Consumer) -> bool:
    return bool(consuming.partitions)


def freeze(link: Proxy, then: Callable[..., Awaitable[None]] | None = None) -> Callable[..., Awaitable[None]]:
    """A function that has the broker fall silent before another one."""

    async def freeze_first(*arguments: object) -> None:
        link.freeze()
        if then:
            await then(*arguments)

    return freeze_first


async def test_silent_broker_counts_as_lost_long_before_heartbeats_say_so(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "PROBE_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(topology, "LOST_CHECK_SECONDS", 0.01)
    async with open_connection(linked_worker.broker_url, "test") as connection:
        channel = await connection.channel()
        link.freeze()
        async with asyncio.timeout(ENOUGH_SECONDS):
            await wait_until_lost(connection, topology_of(linked_worker).commands_exchange, channel)

        assert not channel.is_closed  # nobody has closed it


async def test_change_of_the_number_is_noticed_after_a_silence(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "PROBE_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(partitions, "CHECK_SECONDS", 0.01)
    other = Topology(linked_worker.queue_prefix, 3)  # not the broker's number
    async with open_connection(linked_worker.broker_url, "test") as connection:
        link.freeze()
        changed = asyncio.create_task(wait_until_changed(connection, other))
        await asyncio.wait([changed], timeout=3 * SHORT_SECONDS)
        assert not changed.done()

        link.thaw()
        async with asyncio.timeout(ENOUGH_SECONDS):
            await changed


async def test_dead_letter_that_is_not_confirmed_is_sent_again_on_a_new_connection(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = replies(linked_worker)
    running = asyncio.create_task(sender.run())
    await eventually(lambda: is_connected(sender))
    monkeypatch.setattr(reply_sender, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)
    link.freeze()
    async with asyncio.timeout(ENOUGH_SECONDS):
        with pytest.raises(TimeoutError):
            await sender.send_unreadable(b"unreadable")
    former = sender._unreadable

    link.thaw()
    monkeypatch.setattr(reply_sender, "SETUP_TIMEOUT_SECONDS", 10.0)
    await eventually(lambda: is_connected(sender, former))
    await sender.send_unreadable(b"unreadable")

    running.cancel()
    await asyncio.wait([running])


async def is_connected(sender: ReplySender, former: object = None) -> bool:
    """Whether it has a channel for dead letters other than the former one."""
    return sender._unreadable not in (None, former)


async def test_replay_that_a_silent_broker_does_not_confirm_is_reported_as_not_accepted(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "PUBLISH_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(broker, "SETUP_TIMEOUT_SECONDS", 2 * SHORT_SECONDS)  # of the second try, on a new connection
    async with AsyncExitStack() as exits:
        sender = Sender(linked_worker, exits)
        sender._channel = await sender._new_channel()
        link.freeze()
        async with asyncio.timeout(ENOUGH_SECONDS):
            why = await sender.send(1, replay_of(create()))

        assert str(why).startswith("the broker did not accept it")
        assert await sender.send(2, replay_of(create())) == why  # it has given up


def replay_of(command: Command) -> bytes:
    """The message of a replay."""
    return build_replay(encode_command(command).decode(), command.time, force=False)


async def test_reply_without_a_connection_is_dropped(linked_worker: WorkerSettings) -> None:
    sender = replies(linked_worker)  # not running
    sender._broker_version = "4.3"

    with capture_logs() as logs:
        await sender.reply("amq.rabbitmq.reply-to.any", [])

    assert [line["event"] for line in logs] == ["reply dropped; the gateway looks its commands up"]


async def test_commands_on_queues_report_a_broker_that_falls_silent(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(partitions, "open_connection", partial(connect_and_freeze, link))
    monkeypatch.setattr(partitions, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)

    async with asyncio.timeout(ENOUGH_SECONDS):
        code = await operate_on_queue(read_arguments(["queues", "remake", "0"]), linked_worker)

    assert code == 1
    assert "not done; nothing is lost, run this again" in capsys.readouterr().err


async def test_change_of_the_number_gives_a_silent_broker_up(
    link: Proxy, linked_worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_and_freeze(events: list[bytes]) -> bytes:
        link.freeze()
        return encode_batch(events)

    monkeypatch.setattr(repartition, "SETUP_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(repartition, "encode_batch", encode_and_freeze)
    async with open_connection(linked_worker.broker_url, "test") as connection:
        async with asyncio.timeout(ENOUGH_SECONDS):
            with pytest.raises(TimeoutError):
                await repartition.drain_partition(connection, topology_of(linked_worker), 0)
