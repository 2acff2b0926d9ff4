"""Random requests of two users to two gateways; each response has to be the model's."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any
from uuid import uuid4

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.model.model import OF_TRASH, Model, Note, Outcome, Write
from tests.support.accounts import bearer
from tests.support.canaries import PASSWORD

STEPS_BETWEEN_COMPARISONS = 8
POLLED_SECONDS = 30
UNKNOWN = 2**62
"""The id of no note."""
MEMBERS = {"id", "title", "description", "created_date", "updated_date", "version"}
SORTED_BY: dict[str, Callable[[Note], object]] = {
    "id": lambda note: note["id"],
    "created": lambda note: note["created_date"],
    "updated": lambda note: note["updated_date"],
    "title": lambda note: note["title"],
}
EARLIEST, MOON, LATER = (f"{day}T20:17:40.000001+00:00" for day in ("0001-01-02", "1969-07-20", "8999-12-31"))
BAD_LINES = ('{"title": "ink"}', "ink", '{"title": "ink", "description": "", "colour": "blue"}', "[" * 2000)
IGNORED_LINES = ("", '{"end": {"complete": true}}')

USERS = st.integers(0, 1)
TEXTS = st.sampled_from(["", "ink", "pen", "Ink"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5
)
BOTH_TEXTS = st.fixed_dictionaries({"title": TEXTS, "description": TEXTS})
PARTS = st.fixed_dictionaries({}, optional={"title": TEXTS, "description": TEXTS})
KEYS = st.sampled_from([None, None, "a", "b"])
PREFERENCES = st.sampled_from(["", "", "", "return=minimal", "respond-async"])
CONDITIONS = st.sampled_from(
    [
        *[{}] * 4,
        {"if_match": (0,)},
        {"if_match": (5, 0, -1)},
        {"if_match": (-1,)},
        {"if_none_match": (0,)},
        {"if_none_match": (1,)},
        {"if_match": (0,), "if_none_match": (-1,)},
    ]
)
"""Versions, relative to the note's."""
CHANGES = ["replace", "patch", "patch", "delete", "restore", "purge"]
ITEMS = st.lists(
    st.tuples(st.sampled_from(["create", "replace", "patch", "delete"]), st.integers(0, 15), BOTH_TEXTS, CONDITIONS),
    min_size=1,
    max_size=5,
)
LINES = st.lists(
    st.fixed_dictionaries(
        {"title": TEXTS, "description": TEXTS},
        optional={"created_date": st.sampled_from([EARLIEST, MOON, LATER])},
    )
    | st.sampled_from([*BAD_LINES, *IGNORED_LINES]),
    min_size=1,
    max_size=5,
)
TRESPASSES = st.sampled_from(
    ["GET", "PUT", "PATCH", "DELETE", "GET trash", "DELETE trash", "GET versions", "POST restore", "batch", "changes"]
)


@dataclass
class Follower:
    """A client that keeps a copy by reading changes."""

    cursor: str | None = None
    copy: dict[int, Note] = field(default_factory=dict)
    place: tuple[int, int] = (-1, -1)
    """Of the last change: its revision, and its note."""

    def apply(self, changes: Sequence[dict[str, Any]]) -> None:
        for change in changes:
            place = change["revision"], change["id"]
            assert place > self.place, f"{place} after {self.place}"
            self.place = place
            assert change["deleted"] == ("note" not in change)
            if change["deleted"]:
                self.copy.pop(change["id"], None)
            else:
                self.copy[change["id"]] = change["note"]


@dataclass
class Person:
    """A user, with the model of the user's notes."""

    headers: dict[str, str]
    model: Model = field(default_factory=Model)
    followers: list[Follower] = field(default_factory=lambda: [Follower(), Follower()])
    ids: list[int] = field(default_factory=list)
    """Of every note that there ever was."""
    command: str | None = None
    """The URL of a write."""
    tags: dict[str, tuple[str, object]] = field(default_factory=dict)
    """The entity tag of each page that was read, and the page."""

    def choose(self, number: int, op: str) -> int:
        """Return the id of a note that the operation can act on, or seldom of another one."""
        notes = self.model.trash if op in OF_TRASH else self.model.notes
        ids = list(notes) if number > 3 else [*self.ids, UNKNOWN]
        return ids[number % len(ids)] if ids else UNKNOWN


@dataclass
class Response:
    """The response to a write, or that at its command's URL."""

    status: int
    headers: httpx.Headers
    body: Any


class Requests(RuleBasedStateMachine):
    """The rules; an instance is one example, with users of its own."""

    def __init__(self, gateways: Sequence[httpx.Client], count_step: Callable[[], None]) -> None:
        super().__init__()
        self._gateways = cycle(gateways)
        self._count_step = count_step
        self._steps = 0
        self._people = [Person(self._sign_up()) for _ in range(2)]

    def _sign_up(self) -> dict[str, str]:
        """Register a user; return the headers of their requests."""
        client, name = next(self._gateways), f"model-{uuid4().hex}"
        client.post("/users", json={"name": name, "password": PASSWORD}).raise_for_status()
        token = client.post("/auth/token", data={"username": name, "password": PASSWORD}).raise_for_status()
        return bearer(token.json()["access_token"])

    @rule(user=USERS, text=BOTH_TEXTS, key=KEYS, preference=PREFERENCES)
    def create(self, user: int, text: dict[str, str], key: str | None, preference: str) -> None:
        self._perform(self._people[user], Write("create", text=tuple(sorted(text.items()))), key, preference)

    @rule(
        user=USERS,
        op=st.sampled_from(CHANGES),
        number=st.integers(0, 15),
        text=PARTS,
        conditions=CONDITIONS | st.just({"if_none_match": "*"}),
        key=KEYS,
        preference=PREFERENCES,
    )
    def change(
        self,
        *,
        user: int,
        op: str,
        number: int,
        text: dict[str, str],
        conditions: dict[str, Any],
        key: str | None,
        preference: str,
    ) -> None:
        person = self._people[user]
        if op == "replace":
            text = {"title": "", "description": ""} | text
        self._perform(person, build_change(person, op, number, text, conditions), key, preference)

    @rule(user=USERS, number=st.integers(0, 99), preference=PREFERENCES)
    def repeat(self, user: int, number: int, preference: str) -> None:
        """Sends a request with a key once more."""
        person = self._people[user]
        if pinned := list(person.model.outcomes.items()):
            (op, _, key), (write, _) = pinned[number % len(pinned)]
            if op != "import":
                self._perform(person, write, key, "" if write.items else preference)

    @rule(user=USERS, items=ITEMS, key=KEYS, preference=st.sampled_from(["", "respond-async"]))
    def batch(self, user: int, items: list[tuple[Any, ...]], key: str | None, preference: str) -> None:
        person = self._people[user]
        writes = [
            Write("create", text=tuple(sorted(text.items())))
            if op == "create"
            else build_change(person, op, number, {} if op == "delete" else text, conditions)
            for op, number, text, conditions in items
        ]
        self._perform(person, Write("batch", items=tuple(writes)), key, preference)

    @rule(user=USERS, lines=LINES, key=KEYS)
    def import_lines(self, user: int, lines: list[Any], key: str | None) -> None:
        person = self._people[user]
        notes = [line for line in lines if isinstance(line, dict)]
        body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        write = Write("import", 1, items=tuple(Write("create", text=tuple(sorted(note.items()))) for note in notes))
        outcome, is_repeated = person.model.expect(write, key) if notes else (Outcome(200), True)

        headers = {"Content-Type": "application/x-ndjson"} | ({"Idempotency-Key": key} if key else {})
        response = self._request(person, "POST", "/notes/import", headers=headers, content=body.encode())

        *results, end = read_lines(response)
        bad = [number for number, line in enumerate(lines, 1) if line in BAD_LINES]
        assert [each["line"] for each in results if "line" in each] == bad
        imported = 0 if outcome.code else len(notes)
        rejected = len(bad) + len(notes) - imported
        assert end == {"end": {"complete": True, "imported": imported, "rejected": rejected}}
        if notes:
            assert results[-1].get("problem", {}).get("code", "") == outcome.code
        if not is_repeated:
            self._learn_imported(person, outcome)
            person.model.pin(write, key, outcome)

    def _learn_imported(self, person: Person, outcome: Outcome) -> None:
        listed = self._request(person, "GET", "/notes?limit=1000").json()
        new = [note for note in listed if note["id"] not in person.model.notes]
        for note, each in zip(new, outcome.items, strict=True):
            expected = each.note or {}
            if expected.get("created_date") == LATER:
                expected["created_date"] = note["updated_date"]
            agree(expected, note)
            person.ids.append(note["id"])
            person.model.keep("create", note)

    def _perform(self, person: Person, write: Write, key: str | None, preference: str) -> None:
        """Send a write, compare its response, and change the model."""
        outcome, is_repeated = person.model.expect(write, key)
        response = self._send(person, write, key, preference)
        minimal = preference == "return=minimal" and not outcome.code
        assert response.status == (204 if minimal and outcome.status == 200 else outcome.status), response
        assert outcome.code == (response.body["code"] if response.status >= 400 else "")
        if outcome.version:
            assert response.headers["etag"] == f'"{outcome.version}"'
        if outcome.item is not None:
            assert response.body["item"] == outcome.item
        if is_repeated:
            check_repetition(outcome, response)
            return
        if not outcome.code and write.items:
            self._learn_several(person, write, outcome, response)
        elif not outcome.code:
            self._learn(person, write, outcome, response)
        person.model.pin(write, key, outcome)

    def _send(self, person: Person, write: Write, key: str | None, preference: str) -> Response:
        method, path, body = build_request(write)
        headers = {"Idempotency-Key": key} if key else {}
        headers |= {"Prefer": preference} if preference else {}
        for name, versions in (("If-Match", write.if_match), ("If-None-Match", write.if_none_match)):
            if versions is not None:
                headers[name] = "*" if versions == "*" else ", ".join(f'"{version}"' for version in versions)
        response = self._request(person, method, path, headers=headers, json=body)
        if response.status_code != 202:
            return Response(response.status_code, response.headers, response.json() if response.content else None)
        person.command = response.headers["location"]
        waiting = {"Prefer": f"wait={POLLED_SECONDS}"}
        state = self._request(person, "GET", person.command, headers=waiting).json()
        assert state["status"] == ("applied" if state["answer"]["status"] < 300 else "rejected")
        return Response(state["answer"]["status"], httpx.Headers(state["answer"]["headers"]), state["answer"]["body"])

    def _learn(self, person: Person, write: Write, outcome: Outcome, response: Response) -> None:
        """Compare the note of a response, or the one that is read after it, and keep it in the model."""
        if write.op in ("delete", "purge"):
            assert outcome.note
            person.model.keep(write.op, outcome.note)
            return
        note_id = write.note or int(response.headers["location"].rpartition("/")[2])
        note = response.body or self._request(person, "GET", f"/notes/{note_id}").json()
        before = person.model.notes.get(note_id) or person.model.trash.get(note_id)
        agree(outcome.note or {}, note)
        assert set(note) == MEMBERS
        assert note["updated_date"] >= (before or note)["updated_date"]
        if write.op == "create":
            assert note["created_date"] == note["updated_date"]
            person.ids.append(note_id)
        outcome.note = note
        person.model.keep(write.op, note)

    def _learn_several(self, person: Person, write: Write, outcome: Outcome, response: Response) -> None:
        last: dict[int, tuple[str, Note]] = {}
        for item, each, result in zip(write.items, outcome.items, response.body["items"], strict=True):
            each.note = (each.note or {}) | {"id": item.note or result["id"]}
            note_id = each.note["id"]
            assert result == {"status": each.status, "id": note_id, "version": each.version}
            person.model.history.setdefault(note_id, {}).setdefault(each.note["version"], each.note)
            last[note_id] = item.op, each.note
            if item.op == "create":
                person.ids.append(note_id)
        for note_id, (op, expected) in sorted(last.items()):
            place = "/notes/trash" if op == "delete" else "/notes"
            note = self._request(person, "GET", f"{place}/{note_id}").json()
            note.pop("deleted_date", None)
            agree(expected, note)
            person.model.keep(op, note)

    @rule(user=USERS, number=st.integers(0, 15), tag=st.sampled_from([None, 0, 1]))
    def read(self, user: int, number: int, tag: int | None) -> None:
        """Reads a note as it is, in the trash, and in a version; sometimes only if it is not in a version."""
        person = self._people[user]
        note_id = person.choose(number, "read")
        living, trashed = person.model.notes.get(note_id), person.model.trash.get(note_id)
        for path, note in ((f"/notes/{note_id}", living), (f"/notes/trash/{note_id}", trashed)):
            version = note["version"] if note else 1
            headers = {} if tag is None else {"If-None-Match": f'"{version + tag}"'}
            response = self._request(person, "GET", path, headers=headers)
            assert response.status_code == (404 if note is None else 304 if tag == 0 else 200)
            if note:
                assert response.headers["etag"] == f'"{version}"'
            if response.status_code == 200:
                agree(note or {}, response.json())

    @rule(user=USERS, number=st.integers(0, 15), limit=st.sampled_from([1, 3, 100]), version=st.integers(1, 4))
    def read_versions(self, user: int, number: int, limit: int, version: int) -> None:
        person = self._people[user]
        note_id = person.choose(number, "read")
        path = f"/notes/{note_id}/versions"
        one = self._request(person, "GET", f"{path}/{version}")
        if note_id not in person.model.notes:
            for response in (one, self._request(person, "GET", path)):
                assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
            return
        history = person.model.history[note_id]
        listed = [note for page in self._iter_pages(person, f"{path}?limit={limit}") for note in page]
        assert [note["version"] for note in listed] == sorted(history, reverse=True)
        for note in listed:
            agree(history[note["version"]], note)
            history[note["version"]] = note
        if version in history:
            assert one.json() == history[version]
        else:
            assert (one.status_code, one.json()["code"]) == (404, "version_not_found")

    @rule(
        user=USERS,
        sort=st.sampled_from(list(SORTED_BY)),
        descending=st.booleans(),
        limit=st.sampled_from([2, 5, 100]),
        total=st.booleans(),
    )
    def list_notes(self, user: int, sort: str, limit: int, *, descending: bool, total: bool) -> None:
        """Walks through a list, and back to its beginning."""
        person = self._people[user]
        notes = person.model.notes.values()
        expected = sorted(notes, key=lambda note: (SORTED_BY[sort](note), note["id"]), reverse=descending)
        path = f"/notes?limit={limit}&sort={'-' if descending else ''}{sort}{'&total=true' if total else ''}"
        cut = [expected[start : start + limit] for start in range(0, len(expected), limit)]
        assert list(self._iter_pages(person, path)) == (cut or [[]])
        first = self._request(person, "GET", path)
        assert first.headers.get("x-total-count") == (str(len(expected)) if total else None)
        self._check_tag(person, path, first)

    def _check_tag(self, person: Person, path: str, response: httpx.Response) -> None:
        """A page that has not changed is not sent again."""
        tag, page = response.headers["etag"], response.json()
        if path in person.tags:
            former, former_page = person.tags[path]
            again = self._request(person, "GET", path, headers={"If-None-Match": former})
            assert (again.status_code == 304) == (former == tag)
            assert former != tag or former_page == page
        person.tags[path] = tag, page

    def _iter_pages(self, person: Person, path: str) -> Iterator[list[Note]]:
        """Yield the pages, each after a look back at the one before."""
        former: list[Note] | None = None
        while path:
            response = self._request(person, "GET", path)
            page: list[Note] = response.json()
            if former and "prev" in response.links:
                assert self._request(person, "GET", response.links["prev"]["url"]).json() == former
            yield page
            former, path = page, response.links.get("next", {}).get("url", "")

    @rule(user=USERS, which=st.integers(0, 1), limit=st.integers(1, 4))
    def follow(self, user: int, which: int, limit: int) -> None:
        """Reads a page of changes; at the end of them, the copy has to be what there is."""
        person = self._people[user]
        follower = person.followers[which]
        if not self._follow(person, follower, limit):
            assert follower.copy == person.model.notes

    def _follow(self, person: Person, follower: Follower, limit: int) -> bool:
        since = {"since": follower.cursor} if follower.cursor else {}
        response = self._request(person, "GET", "/notes/changes", params={"limit": str(limit)} | since)
        page = response.json()
        assert len(page["changes"]) <= limit
        for change in page["changes"]:
            assert change.get("note") == person.model.notes.get(change["id"])
        follower.apply(page["changes"])
        follower.cursor = page["cursor"]
        return bool(page["more"])

    @rule(user=USERS, number=st.integers(0, 15), how=TRESPASSES)
    def trespass(self, user: int, number: int, how: str) -> None:
        """What is another user's does not exist."""
        owner, stranger = self._people[user], self._people[1 - user]
        note_id = owner.choose(number, "restore" if number % 2 else "read")
        method, _, place = how.partition(" ")
        if how == "changes":
            if cursor := owner.followers[0].cursor:
                gone = self._request(stranger, "GET", "/notes/changes", params={"since": cursor})
                assert (gone.status_code, gone.json()["code"]) == (410, "changes_gone")
        elif how == "batch":
            items = [{"op": "create", "title": "", "description": ""}, {"op": "delete", "id": note_id}]
            response = self._request(stranger, "POST", "/notes/batch", json={"items": items})
            assert (response.status_code, response.json()["item"]) == (404, 1)
        else:
            path = f"/notes/trash/{note_id}" if place == "trash" else f"/notes/{note_id}/{place}".rstrip("/")
            body = {"title": "mine", "description": "now"} if method in ("PUT", "PATCH") else None
            response = self._request(stranger, method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
        if owner.command:
            assert self._request(stranger, "GET", owner.command).status_code == 404

    @invariant()
    def is_as_the_model(self) -> None:
        """Now and then everything is compared."""
        if self._steps:
            self._count_step()
        if self._steps % STEPS_BETWEEN_COMPARISONS == 0:
            for person in self._people:
                self._compare(person)
        self._steps += 1

    def _compare(self, person: Person) -> None:
        notes = sorted(person.model.notes.values(), key=lambda note: note["id"])
        assert self._request(person, "GET", "/notes?limit=1000").json() == notes
        trash = [note for page in self._iter_pages(person, "/notes/trash?limit=4") for note in page]
        assert [note["id"] for note in trash] == [*reversed(person.model.trash)]
        for note in trash:
            agree(person.model.trash[note["id"]], note)
        follower = Follower()
        while self._follow(person, follower, 1000):
            pass
        assert follower.copy == person.model.notes
        _, *exported, end = read_lines(self._request(person, "GET", "/notes/export"))
        assert (exported, end["end"]["complete"]) == (notes, True)

    def _request(self, person: Person, method: str, path: str, **request: Any) -> httpx.Response:
        headers = person.headers | request.pop("headers", {})
        response = next(self._gateways).request(method, path, headers=headers, **request)
        assert response.status_code < 500, response.text
        return response


def read_lines(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the lines of NDJSON, whose texts may have other ends of lines."""
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


def build_change(person: Person, op: str, number: int, text: dict[str, str], conditions: dict[str, Any]) -> Write:
    """Return the write that changes one of the person's notes."""
    note_id = person.choose(number, op)
    note = person.model.notes.get(note_id) or person.model.trash.get(note_id) or {"version": 1}
    absolute = {
        name: versions if versions == "*" else tuple(max(1, note["version"] + each) for each in versions)
        for name, versions in conditions.items()
    }
    return Write(op, note_id, tuple(sorted(text.items())) if op in ("replace", "patch") else (), **absolute)


REQUESTS = {
    "create": ("POST", "/notes"),
    "replace": ("PUT", "/notes/{}"),
    "patch": ("PATCH", "/notes/{}"),
    "delete": ("DELETE", "/notes/{}"),
    "restore": ("POST", "/notes/{}/restore"),
    "purge": ("DELETE", "/notes/trash/{}"),
    "batch": ("POST", "/notes/batch"),
}


def build_request(write: Write) -> tuple[str, str, dict[str, Any] | None]:
    """Return the method, the path and the body of a write."""
    method, path = REQUESTS[write.op]
    body = {"items": [build_item(item) for item in write.items]} if write.items else dict(write.text)
    return method, path.format(write.note), None if write.op in (*OF_TRASH, "delete") else body


def build_item(write: Write) -> dict[str, Any]:
    """Return a write as an item of a batch."""
    members = {"id": write.note, "if_match": write.if_match, "if_none_match": write.if_none_match}
    return {"op": write.op, **dict(write.text)} | {name: value for name, value in members.items() if value is not None}


def check_repetition(outcome: Outcome, response: Response) -> None:
    """A repeated request has the response of the first."""
    if outcome.code != "idempotency_key_reused" and "issued_at" not in response.headers:
        assert response.headers.get("idempotent-replayed") == "true"
    if outcome.items:
        ids = [(each.note or {})["id"] for each in outcome.items]
        assert [(each["id"], each["version"]) for each in response.body["items"]] == [
            (note_id, each.version) for note_id, each in zip(ids, outcome.items, strict=True)
        ]
    elif response.status in (200, 201) and response.body:
        assert response.body == outcome.note


def agree(expected: Note, actual: Note) -> None:
    """What is known of a note has to be so."""
    assert expected.items() <= actual.items(), f"expected {expected}, got {actual}"
