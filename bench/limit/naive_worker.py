"""The worker of the simplest queue: inserts each message's note alone, replies, acknowledges."""

import asyncio
import json
import os

import aio_pika
import asyncpg
import uvloop
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

CONNECTIONS = 10
TABLE = """
create table if not exists notes (
  id bigint generated always as identity primary key,
  title text not null, description text not null, created_date timestamptz not null default now()
)
"""
INSERT = "insert into notes (title, description) values ($1, $2) returning row_to_json(notes)::text"


async def run() -> None:
    """Consumes until the process is terminated."""
    async with (
        asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool,
        await aio_pika.connect(os.environ["BENCH_BROKER_URL"]) as connection,
    ):
        await pool.execute(TABLE)
        channel = await connection.channel()
        await channel.set_qos(2 * CONNECTIONS)

        async def insert(message: AbstractIncomingMessage) -> None:
            note = json.loads(message.body)
            printed = await pool.fetchval(INSERT, note["title"], note["description"])
            reply = Message(printed.encode(), correlation_id=message.correlation_id)
            await channel.default_exchange.publish(reply, message.reply_to or "")
            await message.ack()

        queue = await channel.declare_queue(
            os.environ["BENCH_QUEUE"], durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.consume(insert)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(run())
