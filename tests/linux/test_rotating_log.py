"""Lines that are handed over without waiting. How files are written and turned over: network/egress/test_accounting."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fastclaw import telemetry_limits
from fastclaw.linux.rotating_log import RotatingLog

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_is_offered_is_written_and_who_offers_too_much_is_told_how_much_is_lost(tmp_path: Path) -> None:
    lost: list[int] = []
    said: list[str] = []
    log = RotatingLog(str(tmp_path / "log"), 10_000_000, "the journal", lost.append, said.append)
    hangs = threading.Event()
    log._thread.submit(hangs.wait)
    try:
        for number in range(telemetry_limits.LOG_QUEUE + 5):
            log.offer(b"%d\n" % number)
    finally:
        hangs.set()
    await log.aclose()
    assert sum(lost) == 5
    assert len(said) == 1
    assert "the journal" in said[0]
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert lines == [b"%d" % number for number in range(telemetry_limits.LOG_QUEUE)]


async def test_of_a_log_that_nobody_wrote_to_there_is_no_file(tmp_path: Path) -> None:
    log = RotatingLog(str(tmp_path / "log"), 10, "it", lambda _: None, lambda _: None)
    await log.aclose()
    await log.aclose()
    assert not (tmp_path / "log").exists()
