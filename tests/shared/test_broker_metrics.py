"""The broker's metrics are read within a time, or left out."""

import socket

import pytest
from pydantic import Secret

from shared import broker_metrics
from shared.broker_metrics import read_broker_metrics
from shared.broker_url import BrokerUrl

URL = Secret(BrokerUrl.parse("amqp://nobody:nothing@127.0.0.1:1/"))


async def test_node_that_accepts_and_does_not_answer_has_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(broker_metrics, "PORT", silent.getsockname()[1])
        monkeypatch.setattr(broker_metrics, "TIMEOUT_SECONDS", 0.2)

        assert await read_broker_metrics(URL) == {}
