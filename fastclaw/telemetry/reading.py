"""Reads a journal, however long it is and wherever it was cut: line by line, with what is no line counted."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastclaw import telemetry_limits
from fastclaw.telemetry.lines import Line, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reading:
    """The lines of a journal and of what it was rotated into, the oldest first. To be read once.

    Its files are opened together, the newest first, so that none is missed which a runtime rotates meanwhile.

    Parameters:
        path: of the newest file.

    Attributes:
        bad: lines that are none, or not whole.
        read_bytes, total_bytes: how far it is, and how far it goes.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._opened = ExitStack()
        self._files: dict[int, BinaryIO] = {}
        self.bad = self.read_bytes = self.total_bytes = 0
        self._open(path)
        for number in range(1, telemetry_limits.LOG_FILES):
            older = Path(f"{path}.{number}")
            if older.is_file():
                self._open(older)

    def _open(self, path: Path) -> None:
        file = self._opened.enter_context(path.open("rb"))
        about = os.fstat(file.fileno())
        if about.st_ino not in self._files:  # else it was rotated just now
            self._files[about.st_ino] = file
            self.total_bytes += about.st_size

    def __iter__(self) -> Iterator[Line]:
        with self._opened:
            for file in reversed(self._files.values()):
                while data := file.readline(telemetry_limits.JOURNAL_LINE_BYTES):
                    self.read_bytes += len(data)
                    line = decoded(data)
                    if line is None:
                        self.bad += 1
                    else:
                        yield line
