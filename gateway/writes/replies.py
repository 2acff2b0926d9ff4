"""The attempts whose outcome this gateway waits for, and the replies that settle them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pydantic import ValidationError

from gateway.telemetry.metrics import WAITING
from shared.broker import REPLY_TO
from shared.contracts import Command, Outcome, decode_replies, encode_command
from shared.primary import TIMELINE_HEADER, Primary, Timeline

log = structlog.get_logger()


class Attempt:
    """One request's attempt at a command: the broker confirms it, then the worker decides its outcome."""

    __slots__ = ("command", "confirmed", "decided", "encoded", "handed_over")

    def __init__(self, command: Command) -> None:
        loop = asyncio.get_running_loop()
        self.command = command
        self.encoded = encode_command(command)
        self.handed_over = False
        """Whether the broker may have the command; until then it can be withdrawn."""
        self.confirmed: asyncio.Future[None] = loop.create_future()
        """Done when the broker has the command; raises NotAcceptedError or UnconfirmedError."""
        self.decided: asyncio.Future[Outcome | None] = loop.create_future()
        """Done when a reply arrives; None if the reply omits the outcome, which must be looked up."""

    def decide(self, outcome: Outcome | None) -> None:
        """Set the outcome from a reply, which implies the confirm."""
        if not self.decided.done():
            self.decided.set_result(outcome)
        self.confirm()

    def confirm(self) -> None:
        """Record that the broker has the command."""
        if not self.confirmed.done():
            self.confirmed.set_result(None)

    def fail(self, error: Exception) -> None:
        """Record that the broker does not have the command, or may not have it."""
        if not self.confirmed.done():
            self.confirmed.set_exception(error)
            self.confirmed.exception()  # marks it as retrieved: the waiting request may be gone


class Replies:
    """Receives replies on the publishing channel, as direct reply-to requires."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self._waiting: dict[UUID, Attempt] = {}
        self._polls = 0
        self.draining = False
        """Set on shutdown: writes and polls no longer wait for outcomes."""
        WAITING.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """The number of waiting attempts and polls."""
        return len(self._waiting) + self._polls

    @contextmanager
    def count_poll(self) -> Iterator[None]:
        """Count a poll as waiting during the block."""
        self._polls += 1
        try:
            yield
        finally:
            self._polls -= 1

    @contextmanager
    def expect(self, command: Command) -> Iterator[Attempt]:
        """Register an attempt for its reply during the block, which publishes it."""
        attempt = Attempt(command)
        self._waiting[command.attempt_id] = attempt
        try:
            yield attempt
        finally:
            del self._waiting[command.attempt_id]

    async def listen(self, channel: AbstractChannel) -> None:
        """Consume the replies to commands published on this channel from now on."""
        queue = await channel.get_queue(REPLY_TO, ensure=False)
        await queue.consume(self._on_reply, no_ack=True)

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        try:
            replies = decode_replies(message.body)
        except ValidationError:
            log.warning("reply ignored: it cannot be read; its commands are looked up", bytes=len(message.body))
            return
        # First, so that the client's next read does not go to a former primary, which lacks this write.
        self._primary.observe(Timeline.parse(str(message.headers.get(TIMELINE_HEADER, ""))))
        for reply in replies:
            if attempt := self._waiting.get(reply.attempt_id):
                attempt.decide(reply.outcome)

    def drain(self) -> None:
        """End the wait of every write and poll, and let no other wait."""
        self.draining = True
        self.look_up_now()

    def look_up_now(self) -> None:
        """End the wait of confirmed attempts: their replies may be lost with the channel, so outcomes are looked up."""
        for attempt in self._waiting.values():
            if attempt.confirmed.done() and not attempt.decided.done():
                attempt.decided.set_result(None)
