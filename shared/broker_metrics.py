"""What RabbitMQ's own metrics say of its queues, which AMQP does not: how many messages are unacknowledged."""

import asyncio
import re
from http.client import HTTPException
from urllib.parse import quote, unquote
from urllib.request import ProxyHandler, build_opener

from pydantic import AmqpDsn, Secret

PORT = 15692
"""Where the plugin rabbitmq_prometheus listens, without credentials, if it is enabled and can be reached."""
TIMEOUT_SECONDS = 2.0
_UNACKNOWLEDGED = re.compile(
    r'^rabbitmq_detailed_queue_messages_unacked\{vhost="(?P<vhost>[^"]*)",queue="(?P<queue>[^"]*)"\} (?P<number>\d+)',
    re.MULTILINE,
)


async def find_unacknowledged(broker_url: Secret[AmqpDsn]) -> dict[str, int]:
    """How many messages of each queue a consumer has and has not acknowledged, some seconds ago.

    Without the queues of which this node knows nothing: none of them, where its metrics do not answer.
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
    # Without a proxy, which the environment may name for other addresses.
    with build_opener(ProxyHandler({})).open(address, timeout=TIMEOUT_SECONDS) as answer:
        return bytes(answer.read()).decode()
