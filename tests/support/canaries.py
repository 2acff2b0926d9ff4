"""Secrets that the tests write and that must not leak: passwords, tokens, the texts of notes.

All output of the services in every test is searched for them, and so is every problem that a client gets.
"""

import re

import httpx

from gateway.http.responses import PROBLEM_JSON

PASSWORD = "correct horse battery staple"
NEW_PASSWORD = "a quite different password"
NOTE = {"title": "Ink", "description": "Buy a bottle"}

SECRETS = {
    "a password": f"{PASSWORD}|{NEW_PASSWORD}",
    "a note's text": NOTE["description"],
    "a password's hash": r"\$argon2id\$",
    "an access token": r"\beyJ[\w-]+\.[\w-]+\.[\w-]{20,}",
    "a personal token": r"\binkwell_[\w-]{40,}",
}


def find_secrets(text: str) -> list[str]:
    """The kinds of secrets that the text contains."""
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


async def in_no_problem(response: httpx.Response) -> None:
    """Fails if a problem contains a secret; an event hook for clients."""
    if response.headers.get("content-type") == PROBLEM_JSON:
        await response.aread()
        assert not find_secrets(response.text), response.text
