"""What the proxy counts in shared memory, and what it writes down."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits, telemetry_limits
from fastclaw.errors import StartFailed
from fastclaw.network.egress.accounting import AuditLog, Counters, Decision, _line, now
from fastclaw.network.egress.policy import REASONS
from tests.balance import descriptors_left, open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


ZERO = {"allowed": 0, "denied": {}, "failed": {}, "bytes": {"sent": 0, "received": 0}, "open": 0}


def test_what_is_counted_here_is_read_there() -> None:
    with closing(Counters.create()) as ours, closing(Counters.attach(os.dup(ours.fd))) as theirs:
        assert ours.snapshot() == ZERO
        theirs.allowed()
        theirs.denied("not_allowed")
        theirs.denied("not_allowed")
        theirs.denied("special_address")
        theirs.failed("unreachable")
        theirs.sent(2**40)
        theirs.received(3)
        theirs.opened()
        theirs.opened()
        theirs.closed()
        assert ours.snapshot() == {
            "allowed": 1,
            "denied": {"not_allowed": 2, "special_address": 1},
            "failed": {"unreachable": 1},
            "bytes": {"sent": 2**40, "received": 3},
            "open": 1,
        }
        assert ours.moved == 2**40 + 3


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_a_place_of_its_own(reason: str) -> None:
    with closing(Counters.create()) as counters:
        counters.denied(reason)  # type: ignore[arg-type]
        counters.failed(reason)  # type: ignore[arg-type]
        assert counters.snapshot() == {**ZERO, "denied": {reason: 1}, "failed": {reason: 1}}
        assert counters.decisions() == {("denied", reason): 1, ("failed", reason): 1}
        counters.allowed()
        assert counters.decisions()["allowed", ""] == 1


def test_a_killed_process_leaves_its_numbers_and_no_open_connection() -> None:
    code = (
        "import os, signal, sys; from fastclaw.network.egress.accounting import Counters\n"
        "counters = Counters.attach(int(sys.argv[1])); counters.allowed(); counters.opened(); counters.sent(7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with closing(Counters.create()) as counters:
        argv = [sys.executable, "-c", code, str(counters.fd)]
        done = subprocess.run(argv, pass_fds=[counters.fd], check=False, timeout=60)
        assert done.returncode == -9
        assert counters.snapshot() == {**ZERO, "allowed": 1, "bytes": {"sent": 7, "received": 0}, "open": 1}
        counters.reset_open()
        assert counters.snapshot()["open"] == 0
        assert counters.snapshot()["allowed"] == 1


def test_missing_log_lines_are_shown_where_there_are_some() -> None:
    with closing(Counters.create()) as counters:
        counters.logged_lost()
        counters.logged_lost(4)
        assert counters.snapshot() == {**ZERO, "log_lost": 5}


def test_nobody_can_cut_the_memory_off_under_the_others() -> None:
    with closing(Counters.create()) as counters:
        seals = fcntl.fcntl(counters.fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(counters.fd, 0)


def test_a_file_that_is_no_such_memory_is_refused_and_closed() -> None:
    before = open_descriptors()
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="length"):
        Counters.attach(os.dup(file.fileno()))
    assert open_descriptors() == before


def test_closed_twice_it_leaves_no_descriptor() -> None:
    before = open_descriptors()
    counters = Counters.create()
    counters.close()
    counters.close()
    assert open_descriptors() == before


NOBODY = 65534


class Kept:
    """A audit_log with what it says.

    Attributes:
        said: of the disk's troubles.
    """

    def __init__(self, path: Path, max_bytes: int, counters: Counters) -> None:
        self.said: list[str] = []
        self._counters = counters
        self.audit_log = AuditLog(str(path), max_bytes, counters, self.said.append)

    async def write(self, *numbers: int) -> None:
        for number in numbers:
            await self.audit_log.write(decision(number))

    @property
    def lost(self) -> int:
        return int(self._counters.snapshot().get("log_lost", 0))


@asynccontextmanager
async def kept(path: Path, max_bytes: int = network_limits.EGRESS_LOG_BYTES) -> AsyncIterator[Kept]:
    """A audit_log that is closed at the end."""
    counters = Counters.create()
    made = Kept(path, max_bytes, counters)
    try:
        yield made
    finally:
        await made.audit_log.aclose()
        counters.close()


def decision(number: int, **more: Any) -> Decision:
    fields: dict[str, Any] = {"decision": "allowed", "how": "connect", "host": "a.example", "text": f"line {number:06}"}
    return Decision(**{"port": 443, "time": "2026-01-01T00:00:00.000Z", **fields, **more})


LINE = len(_line(decision(0)))
"""All test lines are as long."""


def numbers(*paths: Path) -> list[int]:
    """Which lines are in these files, in order; all of them whole."""
    return [int(json.loads(line)["text"][5:]) for path in paths for line in path.read_text().splitlines(keepends=True)]


def generation(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """As a full disk does it: what goes beyond is not written, the first time in part (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def somebody_usual() -> Iterator[None]:
    """Root may write everywhere."""
    was = os.geteuid()
    os.seteuid(NOBODY if was == 0 else was)
    try:
        yield
    finally:
        os.seteuid(was)


def a_pipe(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)


async def test_a_line_has_all_fields_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path) as log:
        entry = Decision(
            decision="denied", reason="not_allowed", how="http", host="a.example", port=80, method="GET", text="no"
        )
        await log.audit_log.write(entry)
    line = path.read_text()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert list(found.items()) == [
        ("decision", "denied"),
        ("reason", "not_allowed"),
        ("how", "http"),
        ("host", "a.example"),
        ("port", 80),
        ("address", None),
        ("method", "GET"),
        ("rule", None),
        ("text", "no"),
    ]


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_one_line_of_json(text: str) -> None:
    line = _line(decision(0, text=text))
    assert line.count(b"\n") == 1
    assert json.loads(line)["text"] == text.encode("utf-8", "backslashreplace").decode()


async def test_nothing_is_opened_and_no_thread_runs_without_a_line(tmp_path: Path) -> None:
    before, threads = open_descriptors(), threading.active_count()
    log = Kept(tmp_path / "log", 1, Counters.create())
    assert len(open_descriptors()) == len(before) + 2  # the counters
    assert threading.active_count() == threads
    await log.audit_log.aclose()
    log._counters.close()
    assert not (tmp_path / "log").exists()


async def test_a_file_is_for_its_owner_only_and_one_that_is_there_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(2):
        async with kept(path) as log:
            await log.write(number)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert numbers(path) == [0, 1]


async def test_no_line_is_lost_under_load_and_writers_wait(tmp_path: Path) -> None:
    path, writers, each = tmp_path / "log", 40, 250
    async with kept(path) as log:
        most = 0

        async def write(first: int) -> None:
            nonlocal most
            for number in range(first, first + each):
                await log.write(number)
                most = max(most, log.audit_log._lines.qsize())

        await asyncio.gather(*(write(number * each) for number in range(writers)))
        assert most == telemetry_limits.LOG_QUEUE
    assert sorted(numbers(path)) == list(range(writers * each))
    assert (log.said, path.stat().st_size) == ([], writers * each * LINE)


async def test_files_turn_over_exactly_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path, 10 * LINE) as log:
        await log.write(*range(57))
    files = [generation(path, 3), generation(path, 2), generation(path, 1), path]
    assert numbers(*files) == list(range(20, 57))
    assert [file.stat().st_size // LINE for file in files] == [10, 10, 10, 7]
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_a_full_file_that_is_there_turns_over_with_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * LINE + b"\n")
    async with kept(path, 2 * LINE) as log:
        await log.write(1)
    assert generation(path, 1).stat().st_size == LINE + 1
    assert numbers(path) == [1]


async def test_a_line_longer_than_a_file_has_one_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path, LINE - 1) as log:
        await log.write(1, 2)
    assert (numbers(generation(path, 1)), numbers(path)) == ([1], [2])


async def test_a_file_that_somebody_removes_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path) as log:
        await log.write(1)
        await log.audit_log._lines.join()
        path.unlink()
        await log.write(2)
    assert numbers(path) == [2]


async def test_a_full_disk_is_said_once_and_its_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path) as log:
        with longest_file(3 * LINE + 10):
            for number in range(8):
                await log.write(number)
                await log.audit_log._lines.join()
            await log.write(*range(8, 20))
            await log.audit_log._lines.join()
        assert numbers(path) == [0, 1, 2]
        assert log.lost == 17
        await log.write(20)
        await log.audit_log._lines.join()
        assert (numbers(path), log.lost) == ([0, 1, 2, 20], 17)
    (said,) = log.said
    assert str(path) in said
    assert "File too large" in said
    assert "\n" not in said


async def test_of_a_batch_that_a_disk_takes_in_part_the_whole_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with longest_file(5 * LINE + LINE // 2):
        async with kept(path) as log:
            await log.write(*range(9))
            await log.audit_log._lines.join()
            assert log.lost == 4
    assert numbers(path) == [0, 1, 2, 3, 4]


async def test_a_directory_that_is_gone_loses_lines_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    async with kept(path) as log:
        await log.write(1)
        await log.audit_log._lines.join()
        assert (log.lost, len(log.said)) == (1, 1)
        path.parent.mkdir()
        await log.write(2)
    assert numbers(path) == [2]


async def test_no_line_is_lost_while_connections_have_all_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with kept(path) as log:
        with descriptors_left(0):
            await log.write(1, 2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(log.audit_log._lines.join(), 0.2)
        await log.audit_log._lines.join()
        assert (log.lost, log.said) == (0, [])
    assert numbers(path) == [1, 2]


async def test_a_disk_that_hangs_makes_writers_wait_and_the_end_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_limits, "LOG_FLUSH_MS", 50)
    goes_on = threading.Event()
    async with kept(tmp_path / "log") as log:
        try:
            log.audit_log._thread.submit(goes_on.wait)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        await log.write(0)
            handed = log.audit_log._unwritten
            await log.audit_log.aclose()
        finally:
            goes_on.set()
        most = telemetry_limits.LOG_QUEUE
        assert most <= handed <= 2 * most  # in the queue, and one batch under way
        assert log.lost == handed
        assert "not written in time" in log.said[0]


def test_the_check_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    AuditLog.check(str(path), "the log")
    path.write_text("kept\n")
    AuditLog.check(str(path), "the log")
    assert path.read_text() == "kept\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: (path.parent.mkdir(), path.mkdir()), "Is a directory"),
        (a_pipe, "no plain file"),
        (lambda path: (path.parent.mkdir(), path.symlink_to("/dev/null")), "symbolic link"),
        (lambda path: path.parent.write_text(""), "Not a directory"),
    ],
    ids=["no directory", "a directory", "a pipe", "a link", "in a file"],
)
def test_the_check_says_what_is_wrong(tmp_path: Path, make: Any, why: str) -> None:
    path = tmp_path / "logs" / "log"
    make(path)
    with pytest.raises(StartFailed, match=why) as raised:
        AuditLog.check(str(path), "the log")
    assert (raised.value.reason, raised.value.fault) == ("bad_log", "caller")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "a\0b", ""])
def test_the_check_refuses_devices_and_what_is_no_path(path: str) -> None:
    with pytest.raises(StartFailed, match=r"plain file|null (byte|character)|No such file"):
        AuditLog.check(path, "the log")


def test_the_check_wants_a_directory_that_files_can_be_renamed_in() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "log")
        path.touch()
        path.chmod(0o666)
        os.chmod(directory, 0o555)
        with somebody_usual(), pytest.raises(StartFailed, match="rotated"):
            AuditLog.check(str(path), "the log")
        os.chmod(directory, 0o700)


def test_the_time_is_utc() -> None:
    assert now().endswith("Z")
