"""What people did with their accounts, and what they were answered: the evidence for the checks of accounts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.history import Answer
from tests.faults.keyed_writes import KeyedWrite

OWN_REQUEST = (401, 403)
"""Answers about their own request only: they say nothing about an earlier one with the same key."""


@dataclass(slots=True)
class PersonalWrite(KeyedWrite):
    """A write by a person."""

    credentials: "Credentials | None" = None
    """What each attempt had; None for a registration."""
    polled_with: list["Credentials"] = field(default_factory=list)
    """What each poll had; nothing for a registration."""
    repetitions: list[Answer] = field(default_factory=list)
    """The answers to repetitions with later credentials, once it has its outcome."""
    learned: float | None = None
    """When the person found out otherwise than by an answer that it was applied, as by signing in."""

    @property
    def decided(self) -> Answer | None:
        """The first answer with the outcome."""
        attempts = (each for each in self.attempts if each.is_outcome and each.status not in OWN_REQUEST)
        polls = (each for each in self.polls if each.status == 200 and each.body["answer"])
        return next(attempts, None) or next(polls, None)

    @property
    def note_is_written(self) -> bool:
        """Whether it writes its marker into a note."""
        return self.kind in ("create", "replace", "batch")

    @property
    def known(self) -> float | None:
        """The time since which the person knows that it is applied."""
        return min((time for time in (self.applied, self.learned) if time is not None), default=None)

    def is_known_before(self, time: float) -> bool:
        """Whether the person knew before this time that it is applied."""
        return self.known is not None and self.known < time


@dataclass(slots=True, eq=False)
class Credentials:
    """A token, and the writes that end it: a new password, the deletion of the user, or its revocation."""

    token: str
    id: str | None = None
    """Of a personal token."""
    ends: list[PersonalWrite] = field(default_factory=list)
    """A new password and the deletion; a worker applies nothing that has ended credentials."""
    revocation: PersonalWrite | None = None
    """Only the gateways know about it."""


@dataclass(slots=True)
class Use:
    """A read with credentials, and its answer."""

    credentials: Credentials
    answer: Answer


@dataclass(slots=True)
class SignIn:
    """An attempt to sign in with a password."""

    password: PersonalWrite
    """The registration or the change that has set it."""
    name: PersonalWrite
    """The registration or the change that has set the name."""
    answer: Answer


@dataclass(slots=True)
class Stream:
    """A stream of changes that was opened with credentials."""

    credentials: Credentials
    revisions: list[int] = field(default_factory=list)
    """Of the changes that arrived."""
    ended: float | None = None
    """When it could not be opened again; None if nobody waited for that."""
    watched: float = 0.0
    """Until when it was watched."""


@dataclass(slots=True)
class Person:
    """A person from the registration until the account is deleted."""

    id: int = 0
    """0 until it is known."""
    writes: list[PersonalWrite] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    sign_ins: list[SignIn] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def of_kind(self, *kinds: str) -> list[PersonalWrite]:
        """The writes of these kinds."""
        return [write for write in self.writes if write.kind in kinds]

    def requests(self) -> Iterator[tuple["Credentials", Answer]]:
        """All requests with credentials."""
        for use in self.uses:
            yield use.credentials, use.answer
        for write in self.writes:
            if write.credentials:
                yield from ((write.credentials, attempt) for attempt in write.attempts)
                yield from zip(write.polled_with, write.polls, strict=True)

    @property
    def leave(self) -> PersonalWrite | None:
        """The deletion of the account."""
        return next(iter(self.of_kind("leave")), None)

    def answers(self) -> Iterator[Answer]:
        """All requests."""
        for write in self.writes:
            yield from write.attempts
            yield from write.polls
            yield from write.repetitions
        yield from (use.answer for use in self.uses)
        yield from (attempt.answer for attempt in self.sign_ins)
