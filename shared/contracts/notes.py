"""What commands say of notes."""

from typing import Literal

from pydantic import BaseModel

from shared.contracts.values import Int64, StorableText


class NoteText(BaseModel, frozen=True):
    """What a client writes of a note."""

    title: StorableText
    description: StorableText


class Preconditions(BaseModel, frozen=True):
    """The versions of a note in which a command may have an effect; without one, in every version."""

    if_match: tuple[int, ...] | None = None
    if_none_match: tuple[int, ...] | Literal["*"] | None = None

    def allow(self, version: int) -> bool:
        """Whether the command may have an effect on this version."""
        if self.if_match is not None and version not in self.if_match:
            return False
        return self.if_none_match is None or (self.if_none_match != "*" and version not in self.if_none_match)


class NoteTarget(Preconditions, frozen=True):
    """Which note a command is about."""

    note_id: Int64


class NoteReplacement(NoteTarget, NoteText, frozen=True):
    """A note's new text."""


class NotePatch(NoteTarget, frozen=True):
    """The parts of a note that get a new text; the others stay."""

    title: StorableText | None = None
    description: StorableText | None = None
