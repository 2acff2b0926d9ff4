"""The checks of accounts find each broken promise in a made-up history, and nothing in a history without one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.checks import accounts
from tests.faults.checks.case import Case
from tests.faults.facts import Facts
from tests.faults.history import Answer, Disturbance, History
from tests.faults.people import Credentials, Person, PersonalWrite, SignIn, Stream, Use

PERSON, SOMEBODY = 7, 8
COLUMNS = (
    *("seq", "transaction", "kind", "id", "owner_id", "version", "title", "description", "revision"),
    *("created_date", "updated_date", "deleted_date", "type", "status", "http_status", "note_id", "body"),
)
STATUSES = {"register": 201, "create": 201, "token": 201, "leave": 204, "revoke": 204, "delete": 204}


@dataclass
class Story:
    """A person's made-up history with the database's facts; each step takes a second, and has its own transaction."""

    history: History = field(default_factory=History)
    facts: Facts = field(default_factory=lambda: Facts([], []))
    person: Person = field(default_factory=lambda: Person(PERSON))
    now: float = 0.0

    def __post_init__(self) -> None:
        self.history.people.append(self.person)

    def answered(self, status: int, code: str | None = None, *, gateway: int = 0, body: Any = None) -> Answer:
        self.now += 1
        return Answer(gateway, self.now, 4.0, self.now + 0.5, status, code, body)

    def wrote(self, kind: str, credentials: Credentials | None = None, status: str = "applied") -> PersonalWrite:
        """A write that is answered with its outcome, which is decided now."""
        answer = self.answered(STATUSES.get(kind, 200)) if status == "applied" else self.refused()
        write = PersonalWrite(PERSON, kind, None, f"{kind}-{self.now}", f"key-{self.now}", credentials=credentials)
        write.attempts.append(answer)
        self.person.writes.append(write)
        self.decided(write, status)
        return write

    def decided(self, write: PersonalWrite, status: str, reason: str | None = "credentials_outdated") -> None:
        """Adds the outcome to the database, in a transaction of its own."""
        number = len(self.facts.audit) + 1
        decided = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        row = dict.fromkeys(COLUMNS) | {"transaction": number, "owner_id": PERSON, "revision": number}
        command = {"seq": number, "kind": "command", "id": write.id, "status": status, "updated_date": decided}
        self.facts.audit += [row | command, row | {"seq": number + 1, "kind": "owner", "id": str(PERSON)}]
        if write.note_is_written and status == "applied":
            self.wrote_note(write.marker, number + 2, transaction=number)
        self.facts.outcomes[write.id] = {"reason": None if status == "applied" else reason}

    def wrote_note(self, text: str, seq: int = 99, transaction: int = 99) -> None:
        """Adds a note to the database's audit."""
        row = dict.fromkeys(COLUMNS) | {"seq": seq, "transaction": transaction, "kind": "insert", "id": f"1{seq}"}
        self.facts.audit.append(row | {"owner_id": PERSON, "version": 1, "description": text, "revision": 1})

    def decision(self, write: PersonalWrite) -> dict[str, Any]:
        """The audit of the write's decision."""
        found: dict[str, Any] = next(row for row in self.facts.audit if row["id"] == write.id)
        return found

    @property
    def found(self) -> list[str]:
        """What the checks of accounts find."""
        case = Case(self.history, self.facts)
        return [each for rule in accounts.RULES for each in rule(case)]

    def refused(self) -> Answer:
        return self.answered(401, "credentials_outdated")

    def read(self, credentials: Credentials, status: int = 200, *, gateway: int = 0, body: Any = None) -> None:
        answer = self.answered(status, "credentials_outdated" if status == 401 else None, gateway=gateway, body=body)
        self.person.uses.append(Use(credentials, answer))

    def signed_in(self, password: PersonalWrite, name: PersonalWrite, status: int = 200) -> None:
        answer = self.answered(status, "invalid_grant" if status == 400 else None)
        self.person.sign_ins.append(SignIn(password, name, answer))


@dataclass
class Account(Story):
    """A registered person with an access token and a personal token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.register = self.wrote("register")
        self.signed_in(self.register, self.register)
        self.access = Credentials("access")
        self.token = Credentials("personal", "id")
        self.wrote("token", self.access)
        self.wrote("create", self.access)
        self.facts.remains |= {("user", PERSON): 1, ("note", PERSON): 1}

    def changed_password(self) -> PersonalWrite:
        change = self.wrote("password", self.access)
        self.access.ends.append(change)
        self.token.ends.append(change)
        return change

    def revoked(self) -> PersonalWrite:
        self.token.revocation = self.wrote("revoke", self.access)
        return self.token.revocation

    def left(self) -> PersonalWrite:
        leave = self.wrote("leave", self.access)
        self.access.ends.append(leave)
        self.token.ends.append(leave)
        self.facts.remains.clear()
        return leave


def applied_after_a_new_password(story: Account) -> None:
    story.changed_password()
    story.wrote("create", story.token)


def applied_after_the_deletion(story: Account) -> None:
    story.left()
    story.wrote("create", story.access)


def applied_later_in_the_same_transaction(story: Account) -> None:
    story.changed_password()
    late = story.wrote("create", story.access)
    change, create = [row for row in story.facts.audit if row["kind"] == "command"][-2:]
    create["transaction"] = change["transaction"]
    late.attempts[:] = [story.answered(202)]


def rejected_with_valid_credentials(story: Account) -> None:
    story.wrote("create", story.access, "rejected")


def rejected_because_of_a_later_change(story: Account) -> None:
    write = PersonalWrite(PERSON, "create", None, "text", "key", credentials=story.access)
    write.attempts.append(story.answered(202))
    story.person.writes.append(write)
    story.changed_password()
    story.decided(write, "rejected")


def rejected_for_another_reason(story: Account) -> None:
    write = story.wrote("create", story.access, "rejected")
    story.facts.outcomes[write.id]["reason"] = "name_taken"


def lost(story: Account) -> None:
    story.facts.audit.remove(story.decision(story.wrote("replace", story.access)))


def failed(story: Account) -> None:
    story.decision(story.register)["status"] = "failed"


def refused_and_applied(story: Account) -> None:
    story.wrote("create", story.access).attempts[:] = [story.answered(503, "not_accepted")]


def written_twice(story: Account) -> None:
    story.wrote_note(story.wrote("create", story.access).marker)


def written_although_rejected(story: Account) -> None:
    story.changed_password()
    story.wrote_note(story.wrote("create", story.token, "rejected").marker)


def told_a_lie(story: Account) -> None:
    story.decision(story.changed_password())["status"] = "rejected"


def seems_deleted(story: Account) -> None:
    write = PersonalWrite(PERSON, "leave", None, "", "key", credentials=story.access, learned=story.now)
    write.attempts.append(story.answered(504, "unconfirmed"))
    story.person.writes.append(write)


def answered_strangely(story: Account) -> None:
    story.wrote("password", story.access).attempts.append(story.answered(403, "wrong_password"))


def answered_otherwise_to_later_credentials(story: Account) -> None:
    story.wrote("create", story.access).repetitions.append(story.answered(409, "idempotency_key_spent"))


def read_after_a_new_password(story: Account) -> None:
    story.changed_password()
    story.read(story.token)


def read_after_the_deletion(story: Account) -> None:
    story.left()
    story.read(story.access)


def unread_with_valid_credentials(story: Account) -> None:
    story.read(story.access, 401)


def read_with_a_revoked_token_at_the_same_gateway(story: Account) -> None:
    story.revoked()
    story.read(story.token, gateway=0)


def read_with_a_token_that_was_revoked_long_ago(story: Account) -> None:
    story.revoked()
    story.now += 40
    story.read(story.token, gateway=1)


def signed_in_with_the_former_password(story: Account) -> None:
    story.changed_password()
    story.signed_in(story.register, story.register)


def signed_in_after_the_deletion(story: Account) -> None:
    story.left()
    story.signed_in(story.register, story.register)


def not_signed_in_with_the_new_password(story: Account) -> None:
    story.signed_in(story.changed_password(), story.register, 400)


def throttled(story: Account) -> None:
    story.signed_in(story.register, story.register, 429)


def told_of_a_change_after_a_new_password(story: Account) -> None:
    story.changed_password()
    story.person.streams.append(Stream(story.access, [len(story.facts.audit) + 1], ended=story.now))


def streamed_long_after_a_new_password(story: Account) -> None:
    story.changed_password()
    story.person.streams.append(Stream(story.access, watched=story.now + 60))


def left_a_note(story: Account) -> None:
    story.left()
    story.facts.remains["note", PERSON] = 1


def gone_without_a_deletion(story: Account) -> None:
    story.facts.remains.clear()


def written_after_the_deletion(story: Account) -> None:
    story.left()
    story.wrote_note("text")


def shown_anothers(story: Account) -> None:
    story.read(story.access, body=[{"id": 1, "description": "another's"}])


BROKEN = {
    applied_after_a_new_password: "I13",
    applied_after_the_deletion: "I13",
    applied_later_in_the_same_transaction: "I13",
    rejected_with_valid_credentials: "I4",
    rejected_because_of_a_later_change: "I6",
    rejected_for_another_reason: "I4",
    lost: "I1",
    failed: "I1",
    refused_and_applied: "I3",
    written_twice: "I2",
    written_although_rejected: "I3",
    told_a_lie: "I4",
    seems_deleted: "I4",
    answered_strangely: "I4",
    answered_otherwise_to_later_credentials: "I2",
    read_after_a_new_password: "I13",
    read_after_the_deletion: "I13",
    unread_with_valid_credentials: "I13",
    read_with_a_revoked_token_at_the_same_gateway: "I13",
    read_with_a_token_that_was_revoked_long_ago: "I7",
    signed_in_with_the_former_password: "I13",
    signed_in_after_the_deletion: "I13",
    not_signed_in_with_the_new_password: "I13",
    throttled: "I13",
    told_of_a_change_after_a_new_password: "I13",
    streamed_long_after_a_new_password: "I7",
    left_a_note: "I13",
    gone_without_a_deletion: "I1",
    written_after_the_deletion: "I13",
    shown_anothers: "I10",
}


def test_nothing_is_found_where_nothing_is_broken() -> None:
    story = Account()
    story.read(story.token, body=[{"id": 1, "description": story.person.of_kind("create")[0].marker}])
    story.revoked()
    story.read(story.token, gateway=1)
    story.read(story.token, 401)
    rename = story.wrote("rename", story.access)
    stream = Stream(story.access, [len(story.facts.audit)], watched=story.now + 40)
    story.person.streams.append(stream)
    queued = PersonalWrite(PERSON, "create", None, "queued", "key", credentials=story.access)
    queued.attempts.append(story.answered(504, "unconfirmed"))
    story.person.writes.append(queued)
    change = story.changed_password()
    stream.ended = story.now + 20
    story.decided(queued, "rejected")
    former, story.access = story.access, Credentials("new")
    late = story.wrote("create", former, "rejected")
    late.attempts[:] = [story.answered(202)]
    rejected = {"status": 401, "headers": {}, "body": {}}
    late.polls.append(story.answered(200, body={"status": "rejected", "answer": rejected}))
    late.polled_with.append(story.access)
    late.repetitions.append(story.answered(409, "idempotency_key_spent"))
    story.signed_in(story.register, rename, 400)
    story.signed_in(change, rename)
    story.read(former, 401)
    story.read(story.access)
    story.left()
    story.signed_in(change, rename, 400)
    story.read(story.access, 401)

    assert story.found == []


@pytest.mark.parametrize("break_it", [read_with_a_token_that_was_revoked_long_ago, streamed_long_after_a_new_password])
def test_credentials_may_be_accepted_longer_while_something_fails(break_it: Callable[[Account], None]) -> None:
    story = Account()
    break_it(story)
    story.history.disturbances.append(Disturbance("postgres-kill", "postgres", story.now - 1, 1, story.now + 30))
    story.history.recoveries.append(1.0)

    assert story.found == []


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Callable[[Account], None], promise: str) -> None:
    story = Account()
    break_it(story)

    found = story.found

    assert found
    assert {violation.partition(":")[0] for violation in found} >= {promise}
