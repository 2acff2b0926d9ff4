"""Counts unacknowledged messages from RabbitMQ's own metrics; AMQP does not expose the number."""

import asyncio
import re
from http.client import HTTPException
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from pydantic import Secret

from shared.broker_url import BrokerUrl

PORT = 15692
"""The default port of the plugin rabbitmq_prometheus, which needs no credentials."""
TIMEOUT_SECONDS = 2.0
_UNACKNOWLEDGED = re.compile(
    r'^rabbitmq_detailed_queue_messages_unacked\{vhost="(?P<vhost>[^"]*)",queue="(?P<queue>[^"]*)"\} (?P<number>\d+)',
    re.MULTILINE,
)


async def count_unacknowledged(broker_url: Secret[BrokerUrl]) -> dict[str, int]:
    """The number of unacknowledged messages in each queue, as of a few seconds ago.

    Omits queues unknown to the URL's nodes; empty if the metrics of none answer.
    """
    url = broker_url.get_secret_value()
    found = await asyncio.gather(
        *(asyncio.to_thread(_read_or_nothing, _metrics_of(host, url)) for host, _ in url.hosts)
    )
    counts: dict[str, int] = {}
    for each in map(_UNACKNOWLEDGED.finditer, found):
        for line in each:
            if line["vhost"] == url.vhost:  # a follower of a queue counts none of its messages
                counts[line["queue"]] = max(int(line["number"]), counts.get(line["queue"], 0))
    return counts


def _metrics_of(host: str, url: BrokerUrl) -> str:
    node = f"[{host}]" if ":" in host else host
    return f"http://{node}:{PORT}/metrics/detailed?family=queue_coarse_metrics&vhost={quote(url.vhost, safe='')}"


def _read_or_nothing(address: str) -> str:
    try:
        return _read(address)
    except (OSError, HTTPException):
        return ""


def _read(address: str) -> str:
    # Ignores the HTTP proxy that the environment may name.
    with build_opener(ProxyHandler({})).open(address, timeout=TIMEOUT_SECONDS) as answer:
        return bytes(answer.read()).decode()
