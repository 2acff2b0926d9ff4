"""Folds a batch of commands over the rows that were read; the effect is the same as applying them one by one.

Pure, like the handlers: the rows are in memory, and the changes to them are stored afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import assert_never
from uuid import UUID

from shared.contracts import (
    NO_OWNER,
    AccountCommand,
    BadCommand,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateNote,
    CreateToken,
    DeleteUser,
    Outcome,
    OutcomeStatus,
    RegisterUser,
    Rejection,
    RenewHash,
    RevokeToken,
    SingleNoteCommand,
    TrashCommand,
    find_envelope,
    fold_name,
)
from worker.decisions import (
    Applied,
    Decision,
    Failed,
    Note,
    NoteDecision,
    NoteDeleted,
    NotePurged,
    NotesWritten,
    NoteVersions,
    NoteWritten,
    PersonalToken,
    Rejected,
    TokenCreated,
    TokenRevoked,
    Tombstone,
    User,
    UserDeleted,
    UserWritten,
)
from worker.handlers import (
    Change,
    change_note,
    change_notes,
    change_user,
    check_target,
    count_creations,
    create_note,
    create_token,
    decide_on_trash,
    register_user,
    renew_hash,
    target_ids,
)
from worker.replays import Letter, ReplayedWrite, TrashState, list_replayed_writes
from worker.rows import Rows, Snapshot

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Earlier than any command."""


@dataclass(slots=True)
class Fold:
    """The state that a batch is folded over, and its changes."""

    users: Rows[int, User] = field(default_factory=Rows)
    notes: Rows[int, Note] = field(default_factory=Rows)
    tokens: Rows[UUID, PersonalToken] = field(default_factory=Rows)
    names: Rows[str, int] = field(default_factory=Rows)
    """The user id of each folded name."""
    known: Mapping[UUID, Outcome] = field(default_factory=dict)
    """The outcomes that commands of the batch already have; a replay has that of its failure."""
    expired_before: datetime = EPOCH
    """A command issued before this time is too old to be applied."""
    replayed: list[ReplayedWrite] = field(default_factory=list)
    """The writes of applied replays to notes of the batch's owners."""
    note_ids: Iterator[int] = field(default_factory=lambda: iter(()))
    user_ids: Iterator[int] = field(default_factory=lambda: iter(()))
    decisions: dict[UUID, tuple[Command | BadCommand, Decision]] = field(default_factory=dict)
    """The decided commands, by id, each with its decision."""
    tombstones: Rows[int, Tombstone] = field(default_factory=Rows)
    keeps_trash: bool = True
    """Whether tombstones have the text of their notes."""
    versions: list[Note] = field(default_factory=list)
    """The versions of notes that have no outcome of their own, since one command made several."""

    @classmethod
    def of(cls, snapshot: Snapshot, expired_before: datetime = EPOCH, *, keeps_trash: bool = True) -> "Fold":
        """Return a fold over the rows that were read."""
        fold = cls(Rows(snapshot.owners), Rows(snapshot.notes), known=snapshot.outcomes, expired_before=expired_before)
        fold.tombstones = Rows(snapshot.tombstones)
        fold.keeps_trash = keeps_trash
        rows: list[Note | Tombstone] = [*snapshot.notes.values(), *snapshot.tombstones.values()]
        for row in rows:  # may be ahead of its owner after a restore or correction by hand
            owner = fold.users.get(row.owner_id)
            if owner and owner.revision < row.mod_revision:
                fold.users.put(owner.id, owner.with_revision(row.mod_revision))
        return fold

    def run(self, commands: Sequence[Command | BadCommand]) -> None:
        """Decide the commands in order; no id may occur twice."""
        for command in commands:
            decision = self.decide(command)
            if not isinstance(command, BadCommand) and not isinstance(decision, Rejected | Failed):
                self._keep(command, decision)
                self.replayed += list_replayed_writes(command, decision)
            self._conclude(command, decision)

    def fail(self, command: Command | BadCommand, reason: str) -> None:
        """Record the failure of a command that cannot be applied."""
        self._conclude(command, self.build_failure(command, reason))

    def _conclude(self, command: Command | BadCommand, decision: Decision) -> None:
        """Record the decision and raise the owner's revision, so that writers who have read the former one conflict."""
        self.decisions[command.id] = command, decision
        if (envelope := find_envelope(command)) and (owner := self.users.get(envelope.owner)):
            self.users.put(owner.id, owner.with_revision(owner.revision + 1))

    def decide(self, command: Command | BadCommand) -> Decision:
        """Return the decision on one command, based on the current state."""
        if isinstance(command, BadCommand):
            return self.build_failure(command, command.reason)
        if decision := self.precheck(command):
            return decision
        if isinstance(command, AccountCommand):
            return self._decide_on_account(command)
        if isinstance(command, TrashCommand):
            return decide_on_trash(command, self.tombstones.get(command.data.note_id))
        ids = iter(list(islice(self.note_ids, count_creations(command))))
        if isinstance(command, ChangeNotes):
            return self._decide_on_several(command, ids)
        return decide_on_note(command, self.notes, ids)

    def precheck(self, command: Command) -> Decision | None:
        """Return the decision on a command that must not reach its handler; None for every other."""
        if self._is_orphan(command):
            return Rejected(Rejection.CREDENTIALS_OUTDATED)
        if self._is_expired(command):
            return self.build_failure(command, "expired")
        if self._is_superseded(command):
            return self.build_failure(command, "superseded")
        owner = self.users.get(command.owner)
        is_outdated = owner and owner.credentials_version != command.credentials_version
        has_no_account = owner and owner.name is None and isinstance(command, AccountCommand)  # the implicit owner
        return Rejected(Rejection.CREDENTIALS_OUTDATED) if is_outdated or has_no_account else None

    def build_failure(self, command: Command | BadCommand, reason: str) -> Decision:
        """Return the failure, with the versions of the command's notes at its first failure.

        Rejects a deleted user's command instead: a failed command is kept, and a deleted user's data must not be.
        """
        if self._is_orphan(command):
            return Rejected(Rejection.CREDENTIALS_OUTDATED)
        if isinstance(command, BadCommand):
            return Failed(reason)
        if isinstance(command, TrashCommand):
            return self._build_trash_failure(command, reason)
        versions = self._versions_at_failure(command)
        if versions is None:
            versions = self._current_versions(command)
        if isinstance(command, ChangeNotes):
            return Failed(reason, note_versions=NoteVersions(versions=versions))
        if isinstance(command, Change):
            return Failed(reason, command.data.note_id, versions[command.data.note_id])
        return Failed(reason)

    def _build_trash_failure(self, command: TrashCommand, reason: str) -> Failed:
        """Return the failure, with the note's version in the trash and, apart from it, that of a live note."""
        state = self._trash_state_at_failure(command) or self._trash_state(command)
        note_id = command.data.note_id
        return Failed(reason, note_id, state.trashed, NoteVersions(versions={note_id: state.live}))

    def _decide_on_several(self, command: ChangeNotes, ids: Iterator[int]) -> Decision:
        """Decide the writes in order, on a draft; the first rejection rejects all of them."""
        draft = Rows(self.notes.now)
        decisions: list[NoteWritten | NoteDeleted] = []
        versions: list[Note] = []
        for index, single in enumerate(command.split()):
            decision = decide_on_note(single, draft, ids)
            if isinstance(decision, Rejected):  # with the version before the command, since none of its writes is kept
                version = decision.note_version and self._version_for(single, decision.note_id)
                return replace(decision, note_version=version, item=index)
            if isinstance(decision, NoteDeleted):
                draft.put(decision.note_id, None)
            elif decision.note is not draft.get(decision.note.id):
                draft.put(decision.note.id, decision.note)
                versions.append(decision.note)
            decisions.append(decision)
        return change_notes(decisions, draft.after, versions)

    def _decide_on_account(self, command: AccountCommand) -> Decision:
        if isinstance(command, RegisterUser):
            taken = self._is_taken(command.data.name)
            return Rejected(Rejection.NAME_TAKEN) if taken else register_user(command, next(self.user_ids))
        owner = self.users.get(command.owner)
        assert owner  # noqa: S101 - `precheck` has found it
        match command:
            case ChangeUser():
                taken = command.data.name is not None and self._is_taken(command.data.name, owner.id)
                return Rejected(Rejection.NAME_TAKEN) if taken else change_user(command, owner)
            case RenewHash():
                return renew_hash(command, owner)
            case DeleteUser():
                return UserDeleted(owner.id)
            case CreateToken():
                # In `before`, too: a token that this batch has revoked still has its id.
                known = command.id in self.tokens.before or self.tokens.get(command.id)
                return Rejected(Rejection.IDEMPOTENCY_KEY_REUSED) if known else create_token(command, owner)
            case RevokeToken():
                token = self.tokens.get(command.data.token_id)
                is_theirs = token is not None and token.owner_id == owner.id
                return TokenRevoked(command.data.token_id) if is_theirs else Rejected(Rejection.TOKEN_NOT_FOUND)
            case _:
                assert_never(command)

    def _keep(self, command: Command, decision: Applied) -> None:
        match decision:
            case NoteWritten(note=note):
                self._keep_note(command.owner, note.id, note)
            case NoteDeleted(note_id=note_id):
                self._keep_note(command.owner, note_id, None)
            case NotePurged(note_id=note_id):
                self._purge(note_id)
            case NotesWritten(notes=notes, versions=versions):
                self.versions += versions
                last = {note.id: note for note in versions}
                for note_id, note_or_none in notes.items():
                    self._keep_note(command.owner, note_id, note_or_none, last.get(note_id))
            case UserWritten(user=user):
                self._keep_user(user.id, user)
            case UserDeleted(user_id=user_id):
                self._keep_user(user_id, None)
            case _:
                self._keep_token(decision)

    def _keep_token(self, decision: TokenCreated | TokenRevoked) -> None:
        match decision:
            case TokenCreated(token=token):
                self.tokens.put(token.id, token)
            case TokenRevoked(token_id=token_id):
                self.tokens.put(token_id, None)
            case _:
                assert_never(decision)

    def _keep_note(self, owner_id: int, note_id: int, note: Note | None, last: Note | None = None) -> None:
        """Put the note's new state with the owner's new revision, and its tombstone if it is deleted.

        `last` is the note's last version, if the command has made one before the deletion.
        """
        before = self.notes.get(note_id)
        owner = self.users.get(owner_id)
        assert owner  # noqa: S101 - `precheck` has found it
        if note is None and (deleted := last or before):
            tombstone = Tombstone.of(deleted, owner.revision + 1)
            self.tombstones.put(note_id, tombstone if self.keeps_trash else tombstone.erase())
        elif note and note is not before:
            note = replace(note, mod_revision=owner.revision + 1)
            if self.tombstones.get(note_id):
                self.tombstones.put(note_id, None)
        self.notes.put(note_id, note)

    def _purge(self, note_id: int) -> None:
        tombstone = self.tombstones.get(note_id)
        assert tombstone  # noqa: S101 - `decide_on_trash` has found it
        self.tombstones.put(note_id, tombstone.erase())

    def _keep_user(self, user_id: int, user: User | None) -> None:
        before = self.users.get(user_id)
        if before and before.folded_name:
            self.names.put(before.folded_name, None)
        if user and user.folded_name:
            self.names.put(user.folded_name, user.id)
        self.users.put(user_id, user)

    def _is_taken(self, name: str, own_id: int | None = None) -> bool:
        return self.names.get(fold_name(name)) not in (None, own_id)

    def _is_orphan(self, command: Command | BadCommand) -> bool:
        """Whether the command's owner does not exist; a registration, or a bad command that may be one, needs none."""
        envelope = find_envelope(command)
        if envelope is None or (envelope.owner == NO_OWNER and isinstance(command, RegisterUser | BadCommand)):
            return False
        return self.users.get(envelope.owner) is None

    def _is_expired(self, command: Command) -> bool:
        """Whether the command is so old that its outcome may have been pruned."""
        if command.id in self.known:  # a replay
            return False
        may_expire = command.may_expire or command.replayed_at
        return bool(may_expire) and (command.replayed_at or command.time) < self.expired_before

    def _is_superseded(self, command: Command) -> bool:
        """Whether a note changed between the command's failure and its replay, other than by earlier replays."""
        if command.replay_forced:
            return False
        letter = Letter(command.owner, command.time, command.replayed_at)
        if isinstance(command, TrashCommand):
            then = self._trash_state_at_failure(command)
            now = self._trash_state(command)
            return then is not None and letter.is_superseded_in_trash(command.data.note_id, then, now, self.replayed)
        versions = self._versions_at_failure(command)
        if versions is None:
            return False
        return any(
            letter.is_superseded(note_id, versions.get(note_id), version, self.replayed)
            for note_id, version in self._current_versions(command).items()
        )

    def _versions_at_failure(self, command: Command) -> Mapping[int, int | None] | None:
        """Return the versions that the command's notes had when it first failed, or None if it has not failed."""
        failure = self._find_failure(command)
        if failure is None:
            return None
        if isinstance(command, ChangeNotes):
            return NoteVersions.parse(failure.body).versions
        return dict.fromkeys(target_ids(command), failure.note_version)

    def _find_failure(self, command: Command) -> Outcome | None:
        outcome = self.known.get(command.id)
        return outcome if outcome and outcome.status is OutcomeStatus.FAILED else None

    def _trash_state_at_failure(self, command: TrashCommand) -> TrashState | None:
        """Return where the command's note was when it first failed, or None if it has not failed."""
        failure = self._find_failure(command)
        note_id = command.data.note_id
        if failure is None:
            return None
        return TrashState(NoteVersions.parse(failure.body).versions.get(note_id), failure.note_version)

    def _trash_state(self, command: TrashCommand) -> TrashState:
        """Return where the command's note is."""
        tombstone = self.tombstones.get(command.data.note_id)
        note = tombstone.note if tombstone and tombstone.owner_id == command.owner else None
        return TrashState(self._version_for(command, command.data.note_id), note.version if note else None)

    def _current_versions(self, command: Command) -> Mapping[int, int | None]:
        return {note_id: self._version_for(command, note_id) for note_id in sorted(target_ids(command))}

    def _version_for(self, command: Command, note_id: int | None) -> int | None:
        note = None if note_id is None else self.notes.get(note_id)
        return note.version if note and note.owner_id == command.owner else None


def decide_on_note(command: SingleNoteCommand, notes: Rows[int, Note], ids: Iterator[int]) -> NoteDecision:
    """Return the decision on a command about one note."""
    if isinstance(command, CreateNote):
        return create_note(command, next(ids))
    target = check_target(command, notes.get(command.data.note_id))
    return target if isinstance(target, Rejected) else change_note(command, target)
