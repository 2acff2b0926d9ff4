"""FastAPI's async database tutorial: every request runs its own SQL and waits for it.

Besides the URL and the pool's size two things differ from the tutorial: the start-up hooks are a lifespan, since
FastAPI has dropped the older kind, and the list is limited, as in the tutorial's section on pagination.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from databases import Database
from databases.interfaces import Record
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import Column, DateTime, Integer, MetaData, Select, String, Table
from sqlalchemy.schema import CreateTable

POOL_SIZE = 10
"""asyncpg's default; 5, 20 and 40 made no clear difference on two cores."""

database = Database(os.environ["BENCH_DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE)
metadata = MetaData()
notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("title", String(50)),
    Column("description", String(200)),
    Column("created_date", DateTime),
)


class NoteIn(BaseModel):
    """The body of a request."""

    title: str
    description: str


class Note(BaseModel):
    """The body of a response."""

    id: int
    title: str
    description: str
    created_date: datetime


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the pool while the app runs, and create the table."""
    async with database:
        await database.execute(CreateTable(notes, if_not_exists=True))
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/notes/", response_model=Note, status_code=201)
async def create_note(note: NoteIn) -> Record | None:
    """Insert a note, then read it."""
    created = datetime.now(UTC).replace(tzinfo=None)
    note_id = await database.execute(notes.insert().values(**note.model_dump(), created_date=created))
    return await database.fetch_one(one(note_id))


@app.get("/notes/", response_model=list[Note])
async def read_notes(skip: int = 0, limit: int = 100) -> list[Record]:
    """A page of notes."""
    return await database.fetch_all(notes.select().offset(skip).limit(limit))


@app.get("/notes/search", response_model=list[Note])
async def search_notes(q: str, limit: int = 100) -> list[Record]:
    """Notes whose title or description contains the text."""
    pattern = f"%{q}%"
    return await database.fetch_all(
        notes.select().where(notes.c.title.ilike(pattern) | notes.c.description.ilike(pattern)).limit(limit)
    )


@app.get("/notes/{note_id}", response_model=Note)
async def read_note(note_id: int) -> Record:
    """One note."""
    return await existing(note_id)


@app.put("/notes/{note_id}", response_model=Note)
async def update_note(note_id: int, note: NoteIn) -> Record | None:
    """Check that the note exists, update it, read it."""
    await existing(note_id)
    await database.execute(notes.update().where(notes.c.id == note_id).values(**note.model_dump()))
    return await database.fetch_one(one(note_id))


async def existing(note_id: int) -> Record:
    """The note, or 404."""
    note = await database.fetch_one(one(note_id))
    if note is None:
        raise HTTPException(status_code=404, detail="Note not found")
    return note


def one(note_id: int) -> Select[tuple[int, str, str, datetime]]:
    """The query for one note."""
    return notes.select().where(notes.c.id == note_id)
