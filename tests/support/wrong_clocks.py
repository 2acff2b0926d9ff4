"""Processes whose wall clock a test sets while they run, with libfaketime; their monotonic clock is not affected."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
HOUR, DAY = 3600, 86_400
MONTH = 30 * DAY

needs_libfaketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")


class SettableClock:
    """The wall clock of the processes that have its environment."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that give a process this clock; empty without libfaketime."""
        if LIBRARY is None:
            return {}
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: float) -> None:
        """Set it this far ahead of the machine's clock."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+}\n")
        os.replace(written, self._file)  # noqa: PTH105 - in one step

    @contextmanager
    def wrong(self, seconds: float) -> Iterator[None]:
        """Set it this far ahead for the block."""
        self.set(seconds)
        try:
            yield
        finally:
            self.set(0)
