"""A child is started with nothing of ours, seen to end, reaped, and killed where it does not end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.linux.helper import Child, Helper, start_on_a_socket
from tests.balance import balanced, children, descriptors_left
from tests.pids import sleeps_in, state_of
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

SOON_MS = 30_000
WAITS_FOR_EOF = [sys.executable, "-c", "import os, sys; os.read(int(sys.argv[1]), 1)"]
NEVER_ENDS = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 60; done"]
SAYS_TWO_WORDS = [
    sys.executable,
    "-c",
    "import socket, sys; packets = socket.socket(fileno=int(sys.argv[1])); packets.send(b'one'); packets.send(b'two')",
]


async def test_a_child_that_is_told_to_end_is_reaped() -> None:
    async with balanced():
        child, ours = start_on_a_socket(WAITS_FOR_EOF)
        assert child.pid in children()
        assert os.getsid(child.pid) == child.pid
        assert repr(child) == f"<Child {child.pid}, running>"
        assert not child.has_ended
        ours.close()
        await child.aclose(SOON_MS)
        await child.aclose(0)
        assert repr(child) == f"<Child {child.pid}, ended>"


async def test_a_child_that_ends_by_itself_keeps_its_pid_until_it_is_closed() -> None:
    async with balanced():
        child = Child(["/bin/true"])
        assert await child.ends(SOON_MS)
        assert child.has_ended
        assert child.pid in children()
        child.kill()
        child.close()
        assert child.pid not in children()
        child.close()
        child.kill()


async def test_a_child_that_is_closed_before_it_ends_is_reaped_then() -> None:
    async with balanced():
        child, ours = start_on_a_socket(WAITS_FOR_EOF)
        child.close()
        ours.close()
        await until(lambda: child.pid not in children())


async def test_a_child_that_does_not_end_is_killed() -> None:
    async with balanced():
        child = Child(NEVER_ENDS)
        await child.aclose(50)


async def test_an_end_that_was_cancelled_goes_on_with_the_next() -> None:
    async with balanced():
        child = Child(NEVER_ENDS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.aclose(SOON_MS), 0.01)
        await child.aclose(0)


async def test_a_child_may_outlive_us() -> None:
    child = Child(NEVER_ENDS)
    child.detach()
    child.detach()
    assert child.pid in children()
    os.kill(child.pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child.pid, 0)[1]) == signal.SIGKILL  # noqa: ASYNC222 - it is over


async def test_one_that_the_kernel_has_reaped_has_ended() -> None:
    """quarto-dev/quarto-cli PR 4263: where SIGCHLD is ignored, nobody else can wait for a child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with balanced():
            child, ours = start_on_a_socket(WAITS_FOR_EOF)
            ours.close()
            await child.aclose(SOON_MS)
            assert child.has_ended
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_program_that_is_not_there() -> None:
    async with balanced():
        for start in (Child, start_on_a_socket, Helper):
            with pytest.raises(FileNotFoundError):
                start(["/no/such/program"])


async def test_without_descriptors_nothing_is_started_or_left() -> None:
    async with balanced():
        for room in range(8):
            with descriptors_left(room):
                try:
                    helper = Helper(WAITS_FOR_EOF)
                except OSError:
                    continue
            await helper.aclose(SOON_MS)
            break
        assert room == 3


async def test_it_has_what_it_is_given_and_nothing_else_of_ours(tmp_path: Path) -> None:
    script = (
        'exec >&2; read word; echo "$word $ONE"; grep -E "Sig(Ign|Blk)" /proc/self/status; exec ls -l /proc/self/fd'
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    read, write = os.pipe()
    os.write(write, b"heard\n")
    os.set_inheritable(write, True)
    try:
        with (tmp_path / "err").open("wb") as err:
            child = Child(["/bin/sh", "-c", script], {"ONE": "1"}, {0: read, 2: err.fileno()})
        await child.aclose(SOON_MS)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        os.close(read)
        os.close(write)
    heard, *masks_and_files = (tmp_path / "err").read_text().splitlines()
    assert heard == "heard 1"
    of_the_c_library = 0b11 << 31
    assert [int(line.split()[1], 16) & ~of_the_c_library for line in masks_and_files[:2]] == [0, 0]
    files = dict(line.split()[-3::2] for line in masks_and_files[3:])
    assert files.pop("3").startswith("/proc/")
    assert files.pop("0").startswith("pipe:")
    assert files == dict.fromkeys("12", str(tmp_path / "err"))


async def test_its_streams_may_all_be_nowhere() -> None:
    script = "for fd in 0 1 2; do [ /proc/self/fd/$fd -ef /dev/null ] || exit 1; done"
    child = Child(["/bin/sh", "-c", script], fds={2: DEVNULL})
    assert await child.ends(SOON_MS)
    how = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it is over
    assert (how is not None and how.si_status) == 0
    child.close()


LOCKS_A_PIPE = """
import os, socket, sys
empty, other = socket.socketpair()
print("ready", flush=True)
os.splice(empty.fileno(), int(sys.argv[1]), 1)
"""
"""splice(2) from an empty socket to a pipe waits for data with the pipe's lock held."""


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
            child = Child([sys.executable, "-c", "import os; os.write(0, b'x')"], fds={0: write})
            await until(lambda: state_of(child.pid) == "D")
            async with asyncio.timeout(5):
                await child.aclose(50)
            assert state_of(child.pid) == "D"
            assert f"process {child.pid}" in caplog.text
            holder.kill()
            await until(lambda: child.pidfd < 0)  # and it is reaped, since the loop still runs
        os.close(read)
        os.close(write)


async def test_a_helper_says_packets_and_then_its_end() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with balanced():
        helper = Helper(SAYS_TWO_WORDS, on_packet=heard.put_nowait, packet_bytes=3)
        assert [await heard.get() for _ in range(3)] == [b"one", b"two", b""]
        assert repr(helper) in (f"<Helper {helper.pid}, running>", f"<Helper {helper.pid}, ended>")
        await helper.aclose(SOON_MS)
        assert (helper.is_open, helper.has_ended) == (False, True)
        await helper.aclose(0)
    assert heard.empty()


async def test_a_packet_that_is_too_long_is_the_end() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with balanced():
        helper = Helper(SAYS_TWO_WORDS, on_packet=heard.put_nowait, packet_bytes=2)
        assert await heard.get() == b""
        await helper.aclose(SOON_MS)
    assert heard.empty()


async def test_a_helper_is_told_packets_with_descriptors() -> None:
    code = (
        "import os, socket, sys; packets = socket.socket(fileno=int(sys.argv[1]));"
        "frame, (fd,), _, _ = socket.recv_fds(packets, 9, 1); os.write(fd, frame); os.close(fd); packets.recv(1)"
    )
    async with balanced():
        helper = Helper([sys.executable, "-c", code])
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        helper.send(b"word", [theirs.detach()])
        with ours:
            assert await asyncio.get_running_loop().sock_recv(ours, 9) == b"word"
            assert await asyncio.get_running_loop().sock_recv(ours, 9) == b""
        helper.close()
        assert repr(helper) in (f"<Helper {helper.pid}, closed>", f"<Helper {helper.pid}, ended>")
        await helper.aclose(SOON_MS)
