"""A worker with a bug: a note titled "deadly" kills the process. Patched here; the product has no such switch."""

import os
import signal

from shared.contracts import CreateNote
from worker import fold, handlers
from worker.__main__ import main
from worker.decisions import NoteWritten

create_note = handlers.create_note


def deadly_create_note(command: CreateNote, note_id: int) -> NoteWritten:
    if command.data.title == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return create_note(command, note_id)


fold.create_note = deadly_create_note  # type: ignore[attr-defined]  # a patch
main()
