"""Fills a running Inkwell with notes of one user through its API: `make seed N=100000`."""

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import Never
from uuid import uuid4

import httpx
from tqdm import tqdm

NAME, PASSWORD = "seed", "development-only-seed"  # public, like every development password
BATCH_NOTES = 1000
BATCHES_AT_ONCE = 4
TRIES = 30
WORDS = ("ink", "pen", "paper", "letter", "blue", "bottle", "desk", "lamp", "note", "write", "read", "buy", "send")
RARE_WORDS = 5000
Text = dict[str, str]


def main() -> int:
    """Return 1 if Inkwell is unreachable or refuses a request."""
    parser = argparse.ArgumentParser(prog="python -m dev.seed", description=__doc__)
    parser.add_argument("notes", type=int, nargs="?", default=10_000)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('INKWELL_PORT', '8000')}")
    options = parser.parse_args()
    try:
        asyncio.run(seed(options.url, options.notes))
    except httpx.HTTPError as error:
        sys.stderr.write(f"{options.url}: {type(error).__name__} {error}; is it running? `make up` starts it\n")
        return 1
    print(f"{options.notes} notes of {NAME!r}, whose password is {PASSWORD!r}")
    return 0


async def seed(url: str, notes: int) -> None:
    """Add this many notes; raises httpx.HTTPError."""
    chance = random.Random(notes)  # noqa: S311 - no secret
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {await token(client)}"
        with tqdm(total=notes, unit=" notes") as progress:
            texts = texts_of(chance, notes)
            await asyncio.gather(*(add(client, texts, progress) for _ in range(BATCHES_AT_ONCE)))


async def token(client: httpx.AsyncClient) -> str:
    """An access token of the user, who is registered if missing."""
    await client.post("/users", json={"name": NAME, "password": PASSWORD})
    response = await client.post("/auth/token", data={"username": NAME, "password": PASSWORD})
    return str(response.raise_for_status().json()["access_token"])


def texts_of(chance: random.Random, notes: int) -> Iterator[Text]:
    """This many notes with a natural distribution of words: a few are in most notes, most are in a few."""
    for number in range(notes):
        words = chance.choices(WORDS, [1 / rank for rank in range(1, len(WORDS) + 1)], k=8)
        words.append(f"word{chance.randrange(RARE_WORDS)}")
        yield {"title": " ".join(words[:3]).capitalize(), "description": " ".join(words[3:]) + f", {number}"}


async def add(client: httpx.AsyncClient, texts: Iterator[Text], progress: "tqdm[Never]") -> None:
    """Add notes in parallel until none are left; repeat unknown writes with their keys."""
    while items := [{"op": "create", **text} for text in islice(texts, BATCH_NOTES)]:
        headers = {"Idempotency-Key": str(uuid4()), "Prefer": "return=minimal, wait=30"}
        for _ in range(TRIES):
            response = await client.post("/notes/batch", json={"items": items}, headers=headers)
            if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
            await asyncio.sleep(1)
        response.raise_for_status()
        progress.update(len(items))


if __name__ == "__main__":
    sys.exit(main())
