"""A helper process is watched, reaped, and killed where it does not end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.linux.helper import Child
from tests.balance import balanced, children
from tests.waiting import until

WAITS_FOR_EOF = "import os, sys; os.read(int(sys.argv[1]), 1)"
NEVER_ENDS = "import signal; signal.sigwait([signal.SIGUSR1])"


async def test_it_ends_with_what_it_lives_on() -> None:
    async with balanced():
        theirs, ours = os.pipe()
        child = Child([sys.executable, "-c", WAITS_FOR_EOF, str(theirs)], theirs, quiet=True)
        os.close(theirs)
        assert child.pid in children()
        assert os.getsid(child.pid) == child.pid
        os.close(ours)
        await child.wait_ended(30)
        await child.wait_ended(0)


async def test_one_that_does_not_end_is_killed() -> None:
    async with balanced():
        theirs, ours = os.pipe()
        child = Child([sys.executable, "-c", NEVER_ENDS], theirs, quiet=True)
        os.close(theirs)
        os.close(ours)
        await child.wait_ended(0.05)


async def test_one_that_the_kernel_has_reaped_has_ended() -> None:
    """quarto-dev/quarto-cli PR 4263: where SIGCHLD is ignored, nobody else can wait for a child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with balanced():
            theirs, ours = os.pipe()
            child = Child([sys.executable, "-c", WAITS_FOR_EOF, str(theirs)], theirs, quiet=True)
            os.close(theirs)
            os.close(ours)
            await child.wait_ended(30)
            assert child.has_ended
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_program_that_is_not_there() -> None:
    async with balanced():
        with pytest.raises(FileNotFoundError):
            Child(["/no/such/program"], 0, quiet=True)


LOCKS_A_PIPE = """
import os, socket, sys
empty, other = socket.socketpair()
print("ready", flush=True)
os.splice(empty.fileno(), int(sys.argv[1]), 1)
"""
"""splice(2) from an empty socket to a pipe waits for data with the pipe's lock held."""

WRITES = "import os, sys; os.write(int(sys.argv[1]), b'x')"


async def test_one_that_no_signal_reaches_is_let_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "CHILD_KILLED_MS", 200)
    async with balanced():
        read, write = os.pipe()
        with subprocess.Popen(  # noqa: ASYNC220 - a fork takes no time worth waiting for
            [sys.executable, "-c", LOCKS_A_PIPE, str(write)], pass_fds=(write,), stdout=subprocess.PIPE
        ) as holder:
            await until(lambda: sleeps_in(holder.pid).startswith("unix_stream"))
            child = Child([sys.executable, "-c", WRITES, str(write)], write, quiet=True)
            await until(lambda: state(child.pid) == b"D")
            async with asyncio.timeout(5):
                await child.wait_ended(0.05)
            assert state(child.pid) == b"D"
            assert f"process {child.pid}" in caplog.text
            holder.kill()
            await until(lambda: child.has_ended)  # and it is reaped, since the loop still runs
        os.close(read)
        os.close(write)


def sleeps_in(pid: int) -> str:
    """The function of the kernel, by proc_pid_wchan(5)."""
    return Path(f"/proc/{pid}/wchan").read_text()


def state(pid: int) -> bytes:
    """One letter, by proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
