"""The journal of a real runtime, and what becomes of it where the disk is slow, full or not to be written."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from fastclaw import telemetry_limits
from fastclaw.errors import StartFailed
from fastclaw.stages import Flight
from fastclaw.telemetry.journal import Journal
from fastclaw.telemetry.lines import Line, decoded
from tests.served import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def lines_of(path: Path) -> list[Line]:
    found = [decoded(line) for line in path.read_bytes().splitlines(keepends=True)]
    assert None not in found
    return [line for line in found if line is not None]


def test_each_call_has_its_line_and_a_tree_that_lives_on_another(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for runtime in served(tmp_path, "local"):
        runtime.initialize(journal=str(path))
        runtime.call("run", cmd=["echo", "x"])
        runtime.call("run", cmd=["no-such-program"])
        process = runtime.exec("cat")["process_id"]
        runtime.call("kill", process_id=process, grace_ms=0)
        runtime.call("run", cmd=["sh", "-c", "sleep 0.2 >/dev/null 2>&1 &"])
        runtime.call("environment_start", environment="other")
        runtime.call("run", cmd=["true"], environment="other")
        assert runtime.call("health")["result"]["details"]["journal"] == {"path": str(path), "lost": 0}
        runtime.end_input()
        assert runtime.exit_code() == 0
    found = lines_of(path)
    seen = [(line.kind, line.environment, line.outcome) for line in found if line.kind != "gone"]
    assert sorted(seen) == [
        ("environment_start", "", "ready"),
        ("environment_start", "", "ready"),
        ("exec", "main", "killed"),
        ("run", "main", "exited"),
        ("run", "main", "exited"),
        ("run", "main", "not_found"),
        ("run", "other", "exited"),
    ]
    (gone,) = [line for line in found if line.kind == "gone"]
    (of_it,) = [line for line in found if line.kind == "run" and line.id == gone.id]
    assert "gone" not in of_it.timings
    assert gone.received_ns == of_it.received_ns
    assert gone.timings["gone"] > of_it.timings["exited"]
    assert all("answered" in line.timings for line in found if line.kind != "gone")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    one = Journal(str(tmp_path / "journal"), telemetry_limits.JOURNAL_BYTES, lambda _: None)
    yield one
    await one.aclose()


def write(journal: Journal, count: int) -> None:
    for number in range(count):
        flight = Flight(1)
        flight.subject = f"p-{number}"
        flight.ledger = journal
        flight.end("exited")
        flight.answer()


async def test_what_a_slow_disk_has_no_time_for_is_said_in_the_next_line(journal: Journal, tmp_path: Path) -> None:
    goes_on = threading.Event()
    journal._log._thread.submit(goes_on.wait)
    write(journal, telemetry_limits.LOG_QUEUE + 3)
    assert journal.health()["lost"] == 3
    goes_on.set()
    async with asyncio.timeout(10):
        await journal._log._lines.join()
    write(journal, 1)
    await journal.aclose()
    found = lines_of(tmp_path / "journal")
    assert len(found) == telemetry_limits.LOG_QUEUE + 2
    assert found[-2] == Line(kind="lost", lines=3)
    assert found[-1].id == "p-0"


@pytest.mark.parametrize("path", ["/no/such/directory/journal", "/dev/full", "/"])
async def test_where_none_can_be_written_the_start_says_so(path: str) -> None:
    with pytest.raises(StartFailed, match=r"options\.journal") as raised:
        Journal(path, telemetry_limits.JOURNAL_BYTES, lambda _: None)
    assert raised.value.reason == "bad_log"
