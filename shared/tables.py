"""The tables, and the one SQL expression that prints a note.

Both services print notes with `note_json`, so a write's response and a later read are the same text.
"""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    case,
    cast,
    false,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP, TSVECTOR
from sqlalchemy.sql.elements import ColumnElement

SCHEMA_REVISION = "0009"
"""The newest migration that this code needs; revisions are numbered, so that older ones sort before it."""

IMPLICIT_OWNER = 1
"""Owns all notes if there is no authentication: a user without a name, which the first migration creates."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("credentials_version", Integer, nullable=False, server_default="1"),
    Column("name", Text, comment="as its user writes it"),
    Column("folded_name", Text, comment="unique key of the name"),
    Column("password_hash", Text),
    Column("created_date", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_date", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column(
        "deleted_date", DateTime(timezone=True), comment="when the user was deleted; their data is hidden from then on"
    ),
    Column(
        "revision",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="how many commands of the user were decided, corrections by hand included",
    ),
    Column(
        "purged_revision",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="deletions of notes up to this revision may have no tombstone",
    ),
    # Deferred, because one statement may transfer a name from one user to another.
    UniqueConstraint("folded_name", deferrable=True, initially="DEFERRED"),
    Index("users_deleted_idx", "id", postgresql_where=text("deleted_date is not null")),
    # Every batch updates its owners: with room in the page it is a HOT update, which writes no index.
    postgresql_with={"fillfactor": "80"},
)

personal_tokens = Table(
    "personal_tokens",
    metadata,
    Column("id", Uuid, primary_key=True, comment="of the command that created it"),
    Column("owner_id", BigInteger, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("secret_digest", Text, nullable=False, comment="SHA-256 of the secret, in hexadecimal"),
    Column("credentials_version", Integer, nullable=False, comment="the owner's when it was created; outdated with it"),
    Column("created_date", DateTime(timezone=True), nullable=False),
    Column("expires_date", DateTime(timezone=True), nullable=False),
    Index(None, "owner_id"),
    Index(None, "secret_digest"),
)

# Longer titles do not fit into an index; collation "C" sorts by code point, regardless of the database's locale.
TITLE_START = '"left"(title, 200)'
SORTED_TITLE = f'{TITLE_START} collate "C"'
# A tsvector is limited to a megabyte; a search finds nothing beyond these lengths.
WORDS = (
    "setweight(inkwell_words(\"left\"(title, 1000)), 'A') || "
    "setweight(inkwell_words(\"left\"(description, 40000)), 'B')"
)
# What separates the two is not found in texts.
FOLDED_TEXT = 'inkwell_fold("left"(title, 1000) || chr(31) || "left"(description, 40000))'

# Every search scans the pending list of recent writes: 256 kB of it take a millisecond.
GIN: dict[str, Any] = {"postgresql_using": "gin", "postgresql_with": {"gin_pending_list_limit": 256}}

notes = Table(
    "notes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("owner_id", BigInteger, ForeignKey("users.id"), nullable=False),
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_date", DateTime(timezone=True), nullable=False),
    Column("updated_date", DateTime(timezone=True), nullable=False),
    Column("version", Integer, nullable=False),
    Column("words", TSVECTOR, Computed(WORDS, persisted=True), comment="what a search finds"),
    Column(
        "mod_revision",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="the owner's revision when it was last changed; 0 before there were any",
    ),
    Column(
        "folded_text",
        Text,
        Computed(FOLDED_TEXT, persisted=True),
        comment="title and description as a search compares them",
    ),
    Index(None, "owner_id", "id"),
    Index(None, "owner_id", "created_date", "id"),
    Index(None, "owner_id", "updated_date", "id"),
    Index(None, "owner_id", "mod_revision", "id"),
    Index("notes_owner_id_title_idx", "owner_id", text(TITLE_START), "id"),  # SORTED_TITLE; reflection omits collations
    Index("notes_words_idx", "owner_id", "words", **GIN),
    Index("notes_trigrams_idx", "owner_id", "folded_text", **GIN, postgresql_ops={"folded_text": "gin_trgm_ops"}),
)

HAS_TEXT = "title is not null"
"""Whether a tombstone is in the trash: the text has not been erased."""

# A separate table, so that reads of notes and their indexes need not exclude deleted ones.
tombstones = Table(
    "tombstones",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False, comment="of the note"),
    Column("owner_id", BigInteger, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    *(Column(name, Text, comment="null once it is erased") for name in ("title", "description")),
    *(Column(name, notes.c[name].type, nullable=False) for name in ("created_date", "updated_date", "version")),
    Column("mod_revision", BigInteger, nullable=False, comment="the owner's when the note was deleted"),
    Column(
        "deleted_date",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="by Postgres' clock",
    ),
    Column(
        "erased",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="whether its versions and outcomes have lost the text, too",
    ),
    Index(None, "owner_id", "mod_revision", "id"),
    Index(None, "deleted_date"),
    Index("tombstones_trash_idx", "owner_id", "mod_revision", "id", postgresql_where=text(HAS_TEXT)),
    Index("tombstones_with_text_idx", "deleted_date", postgresql_where=text(HAS_TEXT)),
    Index("tombstones_to_erase_idx", "id", postgresql_where=text("title is null and not erased")),
)

# Only what commands of several writes have written: the outcome of a single write is a version itself.
note_versions = Table(
    "note_versions",
    metadata,
    Column("note_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("owner_id", BigInteger, nullable=False),
    Column("body", Text, nullable=False, comment="the note as JSON, as an outcome's body has it"),
    Column(
        "stored_date", DateTime(timezone=True), nullable=False, server_default=func.now(), comment="by Postgres' clock"
    ),
    Index(None, "owner_id"),
    Index(None, "stored_date"),
)

HAS_VERSION = "status = 'applied' and note_version is not null and body is not null"
"""Whether an outcome has a version of a note in its body."""

# Inbox, outcomes, dead letters and audit trail in one. No foreign keys: a row outlives its owner and its note.
commands = Table(
    "commands",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("type", Text),
    Column("owner_id", BigInteger),
    Column("fingerprint", Text),
    Column("attempt_id", Uuid, comment="the attempt whose delivery decided the outcome"),
    Column("issued_at", DateTime(timezone=True)),
    Column("decided_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("status", Text, nullable=False),
    Column("reason", Text, comment="why it was rejected or failed"),
    Column("http_status", SmallInteger, nullable=False),
    Column("note_id", BigInteger),
    Column("note_version", Integer),
    Column("body", Text, comment="the answer's body, byte for byte"),
    Column("command", JSON, comment="the whole command, kept where it failed"),
    Column("replayed_at", DateTime(timezone=True), comment="when an operator last sent it again"),
    Index(None, "owner_id"),
    Index("commands_decided_at_idx", "decided_at", postgresql_where=text("status <> 'failed'")),
    Index("commands_versions_idx", "note_id", "note_version", postgresql_where=text(HAS_VERSION)),
    Index("commands_failed_idx", "decided_at", postgresql_where=text("status = 'failed'")),
    CheckConstraint("status in ('applied', 'rejected', 'failed')", name="status"),
)

# A worker writes here before it applies a possible poison message, which may have killed the workers before it.
attempt_marks = Table(
    "attempt_marks",
    metadata,
    Column("command_id", Uuid, primary_key=True),
    Column("process_id", Uuid, primary_key=True, comment="one life of a worker process"),
)

Expression = ColumnElement[Any]
"""SQL for a value of any type."""
NOTE_FIELDS = ("id", "title", "description", "created_date", "updated_date", "version")
JSON_TIME = r'\"YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"\"'
"""A time in quotes, as `shared.contracts.values.print_time` prints it; every session runs in UTC."""


def note_json(fields: Mapping[str, Expression]) -> ColumnElement[str]:
    """Return SQL that prints the note with these `NOTE_FIELDS`, and others after them, as the JSON that clients get.

    Concatenation is faster than `row_to_json`, which looks up each column's type for each note. `to_json` is faster
    than `to_char`.
    """
    names = (*NOTE_FIELDS[1:], *(name for name in fields if name not in NOTE_FIELDS))
    members = [_sql_literal(f',"{name}":') + _to_json(fields[name]) for name in names]
    return reduce(add, members, _sql_literal('{"id":') + _to_json(fields["id"])) + _sql_literal("}")


def _to_json(value: Expression) -> ColumnElement[str]:
    """Return SQL that prints a value as JSON; `to_json` omits trailing zeros of a time, so `to_char` prints those."""
    as_json = cast(func.to_json(value), Text)
    if isinstance(value.type, DateTime):
        lacks_digits = cast(value, TIMESTAMP(timezone=True, precision=5)) == value
        return case((lacks_digits, func.to_char(value, _sql_literal(JSON_TIME), type_=Text)), else_=as_json)
    return as_json if isinstance(value.type, Text) else cast(value, Text)


def _sql_literal(text: str) -> ColumnElement[str]:
    """Return an inline SQL string literal instead of a bind parameter."""
    return literal_column(f"'{text}'", Text)
