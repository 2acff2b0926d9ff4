"""The requests of the load generator."""

import shutil
from collections import Counter

import pytest
from fastapi import FastAPI, Request

from bench.contenders import Contender
from bench.load import run_wrk
from bench.scenarios import SCENARIOS
from tests.support import harness


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is missing")
async def test_no_replacement_has_the_text_of_another_in_whichever_run() -> None:
    sent: Counter[str] = Counter()
    notes: set[int] = set()
    app = FastAPI()

    @app.put("/notes/{note_id}")
    async def replace_note(request: Request, note_id: int) -> None:
        note = await request.json()
        assert note.keys() == {"title", "description"}
        assert len(note["description"]) <= 200
        sent[note["description"]] += 1
        notes.add(note_id)

    async with harness.serving(app) as url:
        for _ in range(2):
            responses = await run_wrk(Contender("", url, []), SCENARIOS["replace"], 1, connections=4, seconds=1)
            assert not responses.refused

    assert notes == set(range(1, 101))
    assert len(sent) > 200
    assert set(sent.values()) == {1}
