"""Lines that are handed over without waiting. How files are written and turned over: network/egress/test_accounting."""

from __future__ import annotations

import resource
import threading
from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize("room", range(25))
async def test_of_what_a_full_disk_takes_in_part_each_that_was_handed_over_is_whole_or_lost(
    tmp_path: Path, room: int
) -> None:
    lost: list[int] = []
    log = RotatingLog(str(tmp_path / "log"), 10_000, "it", lost.append, lambda _: None)
    handed_over = [b"lost 7\nfirst\n", b"second\n", b"3\n"]
    for each in handed_over:
        log.offer(each)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # as a full disk does it (setrlimit(2))
    try:
        await log.aclose()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = (tmp_path / "log").read_bytes()
    whole = len(handed_over) - sum(lost)
    assert written == b"".join(handed_over[:whole])


@pytest.mark.parametrize(
    ("there", "then"), [(b"", b""), (b"whole\n", b"whole\n"), (b"whole\ncut of", b"whole\ncut of\n")]
)
async def test_what_somebody_was_cut_off_in_gets_an_end(tmp_path: Path, there: bytes, then: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(there)
    log = RotatingLog(str(path), 10_000, "it", lambda _: None, lambda _: None)
    log.offer(b"new\n")
    await log.aclose()
    assert path.read_bytes() == then + b"new\n"
