"""Exports notes to a file, and continues after the last whole line if the connection or the program is interrupted."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from tqdm import tqdm

from inkwell_client.api import RetryPolicy, check, check_problem
from inkwell_client.errors import ClientError, UnavailableError

TAIL_BYTES = 4 * 1024 * 1024
"""Longer than the longest line."""
NOTE_START = b'{"id":'


def export_to_file(client: httpx.Client, path: Path, policy: RetryPolicy) -> int:
    """Write all notes to a new file, and return their number in this run; raises ClientError.

    The file appears once it is complete; until then its name ends in `.part`.
    """
    if path.exists():
        raise ClientError(f"{path} exists; remove it, or choose another name")
    part = path.with_name(path.name + ".part")
    with part.open("a+b") as file:
        last_id = find_end(file)
        count = export(client, file, last_id, policy)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return count


def find_end(file: BinaryIO) -> int:
    """Cut off an unfinished line, and return the id of the last note; 0 without one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    file.truncate(size - len(tail) + len(whole))
    return find_last_id(whole, 0)


def find_last_id(block: bytes, otherwise: int) -> int:
    """Return the id of the last note in these lines, if there is one."""
    for line in reversed(block.splitlines()):
        try:
            return int(json.loads(line)["id"])
        except (ValueError, KeyError):  # the first or last line of an export, or one whose beginning is cut off
            continue
    return otherwise


def export(client: httpx.Client, file: BinaryIO, last_id: int, policy: RetryPolicy) -> int:
    """Write the notes with greater ids, with retries; return their number. Raises ClientError."""
    position = Position(last_id)
    with tqdm(unit=" notes", disable=None) as progress:
        while True:
            error: Exception = UnavailableError("the export was interrupted")
            try:
                for block in iter_blocks(client, position):
                    file.write(block)
                    progress.update(block.count(b"\n"))
                    policy.reset()
                if position.is_complete:
                    return position.count
            except (httpx.TransportError, UnavailableError) as caught:
                error = caught
            policy.pause(error)


@dataclass
class Position:
    """How far an export has got."""

    last_id: int
    count: int = 0
    is_complete: bool = False


def iter_blocks(client: httpx.Client, position: Position) -> Iterator[bytes]:
    """Yield whole lines from the position on, and advance it; raises UnavailableError or ClientError on failure."""
    with client.stream("GET", "/notes/export", params={"after_id": position.last_id}) as response:
        check(response)
        for block in iter_whole_lines(response.iter_bytes()):
            yield block
            notes = [line for line in block.splitlines() if line.startswith(NOTE_START)]
            position.count += len(notes)
            position.last_id = find_last_id(block, position.last_id)
            if end := find_export_end(block):
                position.is_complete = end["complete"]
                check_problem(end.get("problem"))


def iter_whole_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts cut at the ends of lines; a last line without an end is dropped."""
    rest = b""
    for part in parts:
        whole, newline, rest = (rest + part).rpartition(b"\n")
        if newline:
            yield whole + newline


def find_export_end(block: bytes) -> dict[str, Any] | None:
    """Return what the last line says about the export, if it is the export's last line."""
    last = block.splitlines()[-1]
    end: dict[str, Any] | None = json.loads(last).get("end") if last.startswith(b'{"end"') else None
    return end
