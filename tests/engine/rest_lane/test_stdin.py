"""Input into pipes of other processes, on real ones: what arrives, what ends, and what never waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.engine.rest_lane.stdin import Input, StdinHelpers
from fastclaw.linux import proc
from tests.balance import balanced, open_descriptors
from tests.engine.rest_lane.rest_rig import write_all
from tests.pids import has_not_ended, sleeps_in, state_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SOON_S = 5.0
"""Anything that waits for nobody; the rest is room for a loaded machine."""

LOCKS_ITS_STDIN = """
import os, socket
again = os.open("/proc/self/fd/0", os.O_WRONLY)
empty, other = socket.socketpair()
print("up", flush=True)
os.read(0, 1)
os.splice(empty.fileno(), again, 1)
"""
"""After a byte: splice(2) from an empty socket to a pipe waits for data with the pipe's lock held."""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long to start the server."""
    monkeypatch.setattr(limits, "STDIN_OPEN_MS", 20_000)


@asynccontextmanager
async def some_helpers() -> AsyncIterator[StdinHelpers]:
    """All gone afterwards."""
    async with balanced():
        helpers = StdinHelpers()
        yield helpers
        await helpers.aclose()


@contextmanager
def a_process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours whose stdin and stdout are pipes; we are to it what conmon is to a command."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def opened(helpers: StdinHelpers, process: subprocess.Popen[bytes]) -> Input:
    """A way in, and the only one."""
    entry = await helpers.open(process.pid)
    assert entry is not None
    assert process.stdin is not None
    process.stdin.close()
    return entry


def give_back(entry: Input) -> None:
    """No more input."""
    os.close(entry.fd)
    entry.close()


async def read(process: subprocess.Popen[bytes]) -> bytes:
    """All that it says."""
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.read)


def server_of(helpers: StdinHelpers) -> int:
    """The pid of the process that makes them."""
    assert helpers._server is not None
    return helpers._server.pid


def helper_pids(server: int) -> list[int]:
    """Helpers that there are, those included that are not reaped yet."""
    return [pid for pid, _ in proc.children(server)]


def fill(fd: int) -> int:
    """Write until there is no room; how much there was."""
    total = 0
    with suppress(BlockingIOError):
        while True:
            total += os.write(fd, bytes(65_536))
    return total


async def test_every_byte_arrives_and_then_the_end() -> None:
    data = os.urandom(1 << 20) * 3 + b"last"
    async with some_helpers() as helpers:
        with a_process("cat") as process:
            entry = await opened(helpers, process)
            assert process.stdout is not None
            read, _ = await asyncio.gather(asyncio.to_thread(process.stdout.read), write_all(entry.fd, data))
            assert read == data
            assert process.wait(5) == 0
            entry.close()
            await until(lambda: not helper_pids(server_of(helpers)))


async def test_we_hold_nothing_of_the_strangers_pipe() -> None:
    async with some_helpers() as helpers:
        with a_process("cat") as process:
            entry = await opened(helpers, process)
            assert os.readlink(f"/proc/{process.pid}/fd/0") not in open_descriptors().values()
            assert not os.get_inheritable(entry.fd)
            assert not os.get_blocking(entry.fd)
            give_back(entry)


async def test_what_was_written_before_the_end_arrives() -> None:
    """Closed and given back at once."""
    async with some_helpers() as helpers:
        for _ in range(20):
            with a_process("sh", "-c", "sleep 0.01; cat") as process:
                entry = await opened(helpers, process)
                os.write(entry.fd, bytes(65_536))
                give_back(entry)
                assert len(await read(process)) == 65_536


async def test_a_process_that_reads_no_more_is_noticed_without_a_byte() -> None:
    async with some_helpers() as helpers:
        with a_process("sh", "-c", "read x; exec <&-; sleep 60") as process:
            entry = await opened(helpers, process)
            os.write(entry.fd, b"go\n")
            await until(lambda: not helper_pids(server_of(helpers)))
            with pytest.raises(BrokenPipeError):
                os.write(entry.fd, b"x")
            give_back(entry)


async def test_a_process_that_ends_with_input_unread_breaks_it() -> None:
    async with some_helpers() as helpers:
        with a_process("sleep", "60") as process:
            entry = await opened(helpers, process)
            fill(entry.fd)
            process.kill()
            await asyncio.wait_for(write_all(os.dup(entry.fd), bytes(1 << 20)), SOON_S)  # more than there is room for
            with pytest.raises(BrokenPipeError):
                os.write(entry.fd, b"x")
            give_back(entry)


async def test_a_slow_reader_is_waited_for() -> None:
    async with some_helpers() as helpers:
        with a_process("cat") as process:
            entry = await opened(helpers, process)
            process.send_signal(signal.SIGSTOP)
            total = 0
            async with asyncio.timeout(SOON_S):
                while (more := fill(entry.fd)) or not total:
                    total += more
                    await asyncio.sleep(0.1)
            assert total <= 4 * 65_536  # two pipes, what the helper holds, what cat holds
            process.send_signal(signal.SIGCONT)
            os.close(entry.fd)
            assert len(await read(process)) == total
            entry.close()


@pytest.mark.parametrize(
    "argv", [["sh", "-c", "exec </dev/null; echo; sleep 60"], ["sh", "-c", "exec 0<&-; echo; sleep 60"]]
)
async def test_no_pipe_no_way_in(argv: list[str]) -> None:
    async with some_helpers() as helpers:
        with a_process(*argv) as process:
            assert process.stdout is not None
            process.stdout.readline()
            began = time.monotonic()
            assert await helpers.open(process.pid) is None
            assert time.monotonic() - began < limits.STDIN_OPEN_MS / 1000
        assert await helpers.open(process.pid) is None  # it has ended


async def test_a_pipe_that_is_locked_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    async with some_helpers() as helpers:
        await warm_up(helpers)
        monkeypatch.setattr(limits, "STDIN_OPEN_MS", 200)
        with a_process(sys.executable, "-c", LOCKS_ITS_STDIN) as process:
            await lock(process)
            began = time.monotonic()
            assert await helpers.open(process.pid) is None
            assert time.monotonic() - began < SOON_S
            assert [state_of(pid) for pid in helper_pids(server_of(helpers))] == ["D"]
            process.kill()
            await until(lambda: not helper_pids(server_of(helpers)))


async def test_a_pipe_that_is_locked_later_stops_only_its_helper() -> None:
    """Nor is the helper waited for at the end."""
    async with some_helpers() as helpers:
        with a_process(sys.executable, "-c", LOCKS_ITS_STDIN) as process, a_process("cat") as other:
            entry = await opened(helpers, process)
            server = server_of(helpers)
            assert process.stdout is not None
            process.stdout.readline()
            os.write(entry.fd, b"x")
            await until(lambda: sleeps_in(process.pid).startswith("unix_stream"))
            fill(entry.fd)
            (helper,) = helper_pids(server)
            await until(lambda: state_of(helper) == "D")
            fill(entry.fd)
            beside = await opened(helpers, other)
            os.write(beside.fd, b"fine")
            os.close(beside.fd)
            assert await read(other) == b"fine"
            os.close(entry.fd)
            for one in (entry, beside):
                one.close()
            began = time.monotonic()
            await helpers.aclose()
            assert time.monotonic() - began < limits.STDIN_SERVER_EXIT_MS / 1000
            assert state_of(helper) == "D"
            process.kill()
            await until(lambda: not Path(f"/proc/{helper}").exists() or state_of(helper) in "ZX")


async def test_one_that_still_waits_after_its_end_is_killed() -> None:
    """For a process that lives on, and reads nothing."""
    async with some_helpers() as helpers:
        with a_process("sleep", "60") as process:
            entry = await opened(helpers, process)
            fill(entry.fd)
            await asyncio.sleep(0.05)
            fill(entry.fd)
            os.close(entry.fd)
            (helper,) = helper_pids(server_of(helpers))
            entry.close()
            await until(lambda: helper not in helper_pids(server_of(helpers)))
            assert process.poll() is None


async def test_a_server_that_is_killed_is_replaced_and_its_helpers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STDIN_SERVER_PAUSE_MS", 0)
    async with some_helpers() as helpers:
        with a_process("cat") as first, a_process("cat") as second:
            before = await opened(helpers, first)
            server = server_of(helpers)
            os.kill(server, signal.SIGKILL)
            await until(lambda: helpers._server is not None and helpers._server.has_ended)
            after = await opened(helpers, second)
            assert server_of(helpers) != server
            for entry, process in ((before, first), (after, second)):
                os.write(entry.fd, b"fine")
                give_back(entry)
                assert await read(process) == b"fine"


async def test_a_caller_that_is_cancelled_leaves_nothing() -> None:
    async with some_helpers() as helpers:
        with a_process("cat") as process:
            await warm_up(helpers)
            for turns in range(8):
                opening = asyncio.ensure_future(helpers.open(process.pid))
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    entry = await opening
                    assert entry is not None
                    give_back(entry)
            await until(lambda: not helper_pids(server_of(helpers)))


async def test_where_no_server_can_be_started_there_is_no_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with some_helpers() as helpers:
        with a_process("cat") as process:
            helpers.prepare()
            assert await helpers.open(process.pid) is None


OWNS_HELPERS = """
import asyncio, subprocess
from fastclaw.linux import proc
from fastclaw.engine.rest_lane.stdin import StdinHelpers

async def main():
    helpers = StdinHelpers()
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)
    entry = await helpers.open(process.pid)
    server = helpers._server.pid
    print(process.pid, server, *(pid for pid, _ in proc.children(server)), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_owner_that_is_killed_leaves_no_server_and_no_helper() -> None:
    with a_process(sys.executable, "-c", OWNS_HELPERS) as owner:
        assert owner.stdout is not None
        sleeper, *others = map(int, (await asyncio.to_thread(owner.stdout.readline)).split())
        assert len(others) == 2
        owner.kill()
        await until(lambda: not any(has_not_ended(pid) for pid in others))
        os.kill(sleeper, signal.SIGKILL)
        await until(lambda: not has_not_ended(sleeper))


async def warm_up(helpers: StdinHelpers) -> None:
    """Have the server up."""
    with a_process("cat") as process:
        entry = await opened(helpers, process)
        give_back(entry)
    await until(lambda: not helper_pids(server_of(helpers)))


async def lock(process: subprocess.Popen[bytes]) -> None:
    """Have it lock its pipe, which we write to ourselves for the last time."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    os.write(process.stdin.fileno(), b"x")
    await until(lambda: sleeps_in(process.pid).startswith("unix_stream"))
