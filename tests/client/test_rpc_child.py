"""A runtime as a child process: started, written to, read from, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.client.rpc import Child
from fastclaw.errors import FastclawError, IoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


class Heard:
    """What a child said, and how it was lost."""

    def __init__(self) -> None:
        self.data = b""
        self.more = asyncio.Event()
        self.lost: asyncio.Future[Callable[[], FastclawError]] = asyncio.get_running_loop().create_future()

    def on_data(self, data: bytes) -> None:
        """One read."""
        self.data += data
        self.more.set()

    async def until(self, wanted: bytes) -> None:
        """Return once it has been said."""
        async with asyncio.timeout(10):
            while wanted not in self.data:
                self.more.clear()
                await self.more.wait()


@pytest.fixture
async def heard() -> Heard:
    """For one child."""
    return Heard()


@pytest.fixture
async def child(heard: Heard) -> AsyncIterator[Child]:
    """Ended at the end; what it leaves is weighed by tests/conftest.py."""
    one = Child(heard.on_data, heard.lost.set_result)
    yield one
    await one.aclose()


async def test_bytes_both_ways_and_eof(child: Child, heard: Heard) -> None:
    await child.start(["cat"])
    child.write(b"hello")
    await heard.until(b"hello")
    child.write_eof()
    assert await child.ended(5_000)
    assert child.code == 0
    error = (await asyncio.wait_for(heard.lost, 5))()
    assert (error.reason, error.data["exit_code"]) == ("runtime_exited", 0)
    child.write(b"dropped")
    child.send_signal(signal.SIGTERM)


async def test_a_program_that_is_not_there(child: Child) -> None:
    with pytest.raises(IoError, match="nonesuch"):
        await child.start(["nonesuch"])
    assert child.code is None
    assert await child.aclose() is None


@pytest.mark.parametrize("turns", range(7))
async def test_a_start_that_is_cancelled_leaves_nothing(child: Child, turns: int) -> None:
    starting = asyncio.create_task(child.start([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled() or starting.exception() is None


async def test_environment_and_stderr(child: Child, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        await child.start(["/bin/sh", "-c", 'echo "$A" >&2'], env={"A": "b"}, stderr=log)
        assert await child.ended(5_000)
    assert (tmp_path / "log").read_bytes() == b"b\n"


async def test_it_has_a_session_of_its_own(child: Child, heard: Heard) -> None:
    """So a Ctrl-C on our terminal is ours alone."""
    await child.start(["cat"])
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid != os.getsid(0)


@pytest.fixture
def ignored_children() -> Iterator[None]:
    """As where whoever started this process ignores SIGCHLD."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("script", ["exit 7", "read -r line", "kill -9 $$"])
@pytest.mark.usefixtures("ignored_children")
async def test_where_the_kernel_does_not_tell_no_exit_code_is_made_up(child: Child, heard: Heard, script: str) -> None:
    """enricai/leerie PR 58: Popen reads ECHILD as exit code 0."""
    await child.start(["sh", "-c", script])
    child.write_eof()
    error = (await asyncio.wait_for(heard.lost, 5))()
    assert "not known" in str(error)
    assert (error.reason, error.data["exit_code"]) == ("runtime_exited", None)
    assert (child.has_ended, child.code, await child.aclose()) == (True, None, None)


@pytest.mark.parametrize(
    ("ignores", "expected"),
    [("", 0), ("import time; time.sleep(1000)", -signal.SIGTERM), ("signal.pause()", -signal.SIGKILL)],
    ids=["EOF", "TERM", "KILL"],
)
async def test_the_end_escalates(
    child: Child, heard: Heard, monkeypatch: pytest.MonkeyPatch, ignores: str, expected: int
) -> None:
    monkeypatch.setattr(limits, "CLIENT_EXIT_MS", 2_000 if expected == 0 else 100)
    deaf = "signal.signal(signal.SIGTERM, lambda *_: None); " if "pause" in ignores else ""
    loop = f"while True: {ignores}" if "pause" in ignores else ignores or "sys.stdin.read()"
    script = f"import signal, sys; {deaf}print('up', flush=True)\n{loop}"
    await child.start([sys.executable, "-c", script])
    await heard.until(b"up")
    assert await child.aclose() == expected


async def test_a_cancelled_end_still_ends_it(child: Child, heard: Heard) -> None:
    await child.start([sys.executable, "-c", "print('up', flush=True)\nwhile True: __import__('time').sleep(1000)"])
    await heard.until(b"up")
    ending = asyncio.create_task(child.aclose())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert child.code == -signal.SIGKILL


async def test_waiting_for_the_end_has_a_deadline(child: Child) -> None:
    await child.start(["cat"])
    assert not await child.ended(20)
