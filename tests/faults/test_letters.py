"""A correspondent and an operator write texts that tell their writes apart."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import dead_letters
from tests.faults.clients import POISON
from tests.faults.connection import Owner
from tests.faults.dead_letters import Correspondent, Operator
from tests.faults.history import Answer, History
from tests.faults.keyed_writes import KeyedWrite

WRITES = 300


async def test_correspondent_and_operator_never_write_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, stopping, history = list[str](), asyncio.Event(), History()

    async def write(_: Correspondent, kind: str, marker: str, note: int | None = None) -> KeyedWrite:
        texts.append(marker.removeprefix(POISON).strip())
        if len(texts) == WRITES:
            stopping.set()
        return KeyedWrite(1, kind, note, marker, "key")

    async def do_nothing(*_: Any) -> None:
        pass

    for each in ("write", "settle", "ask_again"):
        monkeypatch.setattr(Correspondent, each, write if each == "write" else do_nothing)
    for each in ("_cure", "_operate"):
        monkeypatch.setattr(Operator, each, do_nothing)
    for each in ("LETTER_SECONDS", "OPERATION_SECONDS"):
        monkeypatch.setattr(dead_letters, each, 0)
    cluster: Any = SimpleNamespace(clients=())
    failed = Answer(0, 0, 0, status=500, code="command_failed")
    history.letters.append(KeyedWrite(1, "create", None, POISON, "key", attempts=[failed]))
    correspondent = Correspondent(Owner(1, {}), cluster, history, 1)

    await asyncio.gather(correspondent.run(stopping), Operator(correspondent, cluster, history, 1).run(stopping))

    assert len({*texts}) == len(texts) >= WRITES
