"""Reads a journal, however long it is and wherever it was cut: line by line, with what is no line counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastclaw import telemetry_limits
from fastclaw.telemetry.lines import Line, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reading:
    """The lines of a journal and of what it was rotated into, the oldest first.

    Parameters:
        path: of the newest file.

    Attributes:
        bad: lines that are none, or not whole.
        read_bytes, total_bytes: how far it is, and how far it goes.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        older = [Path(f"{path}.{number}") for number in reversed(range(1, telemetry_limits.LOG_FILES))]
        self._paths = [*(each for each in older if each.is_file()), path]
        self.bad = self.read_bytes = 0
        self.total_bytes = sum(os.stat(each).st_size for each in self._paths)

    def __iter__(self) -> Iterator[Line]:
        for path in self._paths:
            with path.open("rb") as file:
                while data := file.readline(telemetry_limits.JOURNAL_LINE_BYTES):
                    self.read_bytes += len(data)
                    line = decoded(data)
                    if line is None:
                        self.bad += 1
                    else:
                        yield line
