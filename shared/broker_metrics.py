"""Counts unacknowledged messages from RabbitMQ's own metrics; AMQP does not expose the number."""

import asyncio
import re
from http.client import HTTPException
from urllib.parse import quote, unquote
from urllib.request import ProxyHandler, build_opener

from pydantic import AmqpDsn, Secret

PORT = 15692
"""The default port of the plugin rabbitmq_prometheus, which needs no credentials."""
TIMEOUT_SECONDS = 2.0
_UNACKNOWLEDGED = re.compile(
    r'^rabbitmq_detailed_queue_messages_unacked\{vhost="(?P<vhost>[^"]*)",queue="(?P<queue>[^"]*)"\} (?P<number>\d+)',
    re.MULTILINE,
)


async def count_unacknowledged(broker_url: Secret[AmqpDsn]) -> dict[str, int]:
    """The number of unacknowledged messages in each queue, as of a few seconds ago.

    Omits queues unknown to this node; empty if its metrics do not answer.
    """
    url = broker_url.get_secret_value()
    vhost = unquote((url.path or "/").removeprefix("/")) or "/"
    address = f"http://{url.host}:{PORT}/metrics/detailed?family=queue_coarse_metrics&vhost={quote(vhost, safe='')}"
    try:
        text = await asyncio.to_thread(_read, address)
    except (OSError, HTTPException):
        return {}
    return {each["queue"]: int(each["number"]) for each in _UNACKNOWLEDGED.finditer(text) if each["vhost"] == vhost}


def _read(address: str) -> str:
    # Ignores the HTTP proxy that the environment may name.
    with build_opener(ProxyHandler({})).open(address, timeout=TIMEOUT_SECONDS) as answer:
        return bytes(answer.read()).decode()
