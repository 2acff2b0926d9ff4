"""A queue in its simplest form: a message, a transaction and a reply for each request. This is its HTTP side."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

REPLY_TO = "amq.rabbitmq.reply-to"
QUEUE = os.environ["BENCH_QUEUE"]


class NoteIn(BaseModel):
    """The body of a request."""

    title: str
    description: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect, and pass every reply to its waiting request."""
    waiting: dict[str | None, asyncio.Future[bytes]] = {}

    async def settle(reply: AbstractIncomingMessage) -> None:
        waiting.pop(reply.correlation_id).set_result(reply.body)

    async with await aio_pika.connect(os.environ["BENCH_BROKER_URL"]) as connection:
        channel = await connection.channel()
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await (await channel.get_queue(REPLY_TO, ensure=False)).consume(settle, no_ack=True)
        app.state.waiting, app.state.exchange = waiting, channel.default_exchange
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/notes/")
async def create_note(request: Request, note: NoteIn) -> Response:
    """Publish the note; wait for the broker's confirm and for the worker's reply."""
    attempt = uuid4().hex
    reply = request.app.state.waiting[attempt] = asyncio.get_running_loop().create_future()
    message = Message(
        note.model_dump_json().encode(),
        correlation_id=attempt,
        delivery_mode=DeliveryMode.PERSISTENT,
        reply_to=REPLY_TO,
    )
    await request.app.state.exchange.publish(message, QUEUE)
    return Response(await reply, 201, media_type="application/json")
