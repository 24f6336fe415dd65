"""The journal: a file with one line for each exec, run and start of an environment, with its stages.

Nobody waits for the disk. Where it does not keep up, or refuses, lines are missing: the next one that is written says
how many, and `health` does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastclaw import stages
from fastclaw.linux.rotating_log import RotatingLog
from fastclaw.telemetry import lines
from fastclaw.telemetry.lines import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.stages import Flight

OPTION = "options.journal"


class Journal:
    """Writes the flights of a runtime into a file; a `stages.Ledger`.

    Parameters:
        path: of the file.
        max_bytes: before it is rotated.
        on_trouble: told once, in one line, that lines are missing.

    Raises:
        StartFailed: `bad_log`: it cannot be written there.
    """

    def __init__(self, path: str, max_bytes: int, on_trouble: Callable[[str], None]) -> None:
        RotatingLog.check(path, OPTION)
        self._path = path
        self._lost = self._said = 0
        self._log = RotatingLog(path, max_bytes, "the journal", self._on_lost, on_trouble)

    def __repr__(self) -> str:
        return f"<Journal {self._path}>"

    def _on_lost(self, count: int) -> None:
        self._lost += count

    def began(self, flight: Flight, program: str) -> None:
        """Its line comes with its answer."""

    def ended(self, flight: Flight) -> None:
        """Its line comes with its answer."""

    def answered(self, flight: Flight) -> None:
        """All that is known of it by now."""
        self._write(lines.of_call(flight, time.time() - (time.monotonic_ns() - flight.at[0]) / 1e9))

    def gone(self, flight: Flight) -> None:
        """What outlived its command is gone, too; a line that is still to come has it anyway."""
        if flight.at[stages.ANSWERED]:
            gone = {"gone": flight.timings()["gone"]}
            self._write(lines.encoded(Line(kind="gone", id=flight.subject, received_ns=flight.at[0], timings=gone)))

    def _write(self, line: bytes) -> None:
        lost = self._lost
        if lost != self._said:
            line = lines.encoded(Line(kind="lost", lines=lost)) + line
        if self._log.offer(line):
            self._said = lost

    def health(self) -> dict[str, Any]:
        """Where it is, and how many lines are missing."""
        return {"path": self._path, "lost": self._lost}

    async def aclose(self) -> None:
        """Write what waits. Idempotent."""
        await self._log.aclose()
