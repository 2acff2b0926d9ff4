"""Imports notes from a file in parts, each with a key derived from the file: repeating an import duplicates nothing."""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO
from uuid import uuid4

import httpx
from tqdm import tqdm

from inkwell_client.api import RetryPolicy, check, check_problem, iter_lines
from inkwell_client.errors import UnavailableError

PART_LINES = 2000
PART_BYTES = 512 * 1024
"""Limits on a part, a request that proxies accept. If they change, a file imported before is imported again."""
KEY_CHARACTERS = 40
BLOCK_BYTES = 1024 * 1024
NDJSON = "application/x-ndjson"


@dataclass
class Result:
    """What was imported."""

    imported: int = 0
    rejected: list[bytes] = field(default_factory=list)
    """The lines that were not, as they are in the file."""


def import_file(client: httpx.Client, file: BinaryIO, policy: RetryPolicy, *, again: bool = False) -> Result:
    """Create a note for each line not imported yet or, with `again`, for each line. Raises ClientError."""
    key = uuid4().hex if again else derive_key(file)
    size = file.seek(0, 2)
    file.seek(0)
    result = Result()
    first = 1
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
        for part in iter_parts(file):
            report = send_with_retries(client, part, f"{key}-{first}", policy)
            for line in report:
                add(result, line, part, first)
            progress.update(sum(map(len, part)))
            first += len(part)
    return result


def derive_key(file: BinaryIO) -> str:
    """Return a key that is the same for every file with this content."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()[:KEY_CHARACTERS]


def iter_parts(file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the lines of the file in parts, which depend on the lines alone."""
    part: list[bytes] = []
    size = 0
    for line in file:
        if part and (len(part) == PART_LINES or size + len(line) > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


def send_with_retries(client: httpx.Client, part: list[bytes], key: str, policy: RetryPolicy) -> list[dict[str, Any]]:
    """Import a part, with retries, and return the lines of the response."""
    while True:
        try:
            report = send(client, part, key)
        except (httpx.TransportError, UnavailableError) as error:
            policy.pause(error)
        else:
            policy.reset()
            return report


def send(client: httpx.Client, part: list[bytes], key: str) -> list[dict[str, Any]]:
    """Import a part and return the lines of the response; raises UnavailableError, or ClientError, if it ends early."""
    headers = {"Content-Type": NDJSON, "Idempotency-Key": key}
    with client.stream("POST", "/notes/import", content=b"".join(part), headers=headers) as response:
        check(response)
        lines = list(iter_lines(response))
    if not lines or not lines[-1].startswith('{"end"'):
        raise UnavailableError("the import was interrupted")
    report = [json.loads(line) for line in lines]
    end = report[-1]["end"]
    if not end["complete"]:
        last_chunk: dict[str, Any] = next((line for line in reversed(report) if "lines" in line), {})
        check_problem(end.get("problem") or last_chunk.get("problem"))
        raise UnavailableError("the import waits for an outcome")
    return report


def add(result: Result, line: dict[str, Any], part: list[bytes], first: int) -> None:
    """Add a line of the response to the result, and report what was rejected by its line in the file."""
    result.imported += line.get("imported", 0)
    if "problem" not in line:
        return
    start, end = line["lines"] if "lines" in line else (line["line"], line["line"])
    named = f"line {first + start - 1}" if start == end else f"lines {first + start - 1} to {first + end - 1}"
    tqdm.write(f"{named}: {describe_problem(line['problem'])}", file=sys.stderr)
    result.rejected += islice(part, start - 1, end)


def describe_problem(problem: dict[str, Any]) -> str:
    """Return a problem in one line, with the errors in its fields."""
    errors = [f"{error['pointer'].removeprefix('/body/')}: {error['detail']}" for error in problem.get("errors", ())]
    return f"{problem['code']}: {'; '.join(errors) or problem['detail']}"
