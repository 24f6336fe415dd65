"""A process's socket with a real pseudo-terminal behind it: we hold the slave, as the process does, and are clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import socket
import termios
import tty
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.transport.listener import SocketDirectory
from fastclaw.transport.terminal import FromTerminal, TerminalEndpoint, ToTerminal, end_of_input, is_over
from tests.transport.rig import Rig, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.runtime import OnDisconnect

KEPT = 3_000
"""Bytes that the kernel surely keeps of what nobody reads of a terminal."""

SETTLED_MS = 50
"""A terminal's own buffers settle within microseconds."""

VEOF = b"\x04"
LINES = b"".join(b"%06d\n" % number for number in range(20_000))
"""More than every buffer on the way."""


class Terminal:
    """Attributes:
    master: ours.
    slave: the process's; it waits for nothing.
    """

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        os.set_blocking(self.slave, False)

    def make_raw(self) -> None:
        """As an editor does."""
        tty.setraw(self.slave)

    def quiet(self) -> None:
        """Reads lines as before, and neither echoes nor translates."""
        attributes = termios.tcgetattr(self.slave)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.slave, termios.TCSANOW, attributes)

    def write(self, data: bytes) -> None:
        """Output of the process."""
        assert os.write(self.slave, data) == len(data)

    async def read(self) -> bytes:
        """Input of the process, as a program's read gives it: a line, or b'' for EOF."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        while True:
            try:
                return os.read(self.slave, 65_536)
            except BlockingIOError:
                loop.add_reader(self.slave, came.set)
                async with asyncio.timeout(20):
                    await came.wait()
                loop.remove_reader(self.slave)
                came.clear()

    def fill(self) -> int:
        """Input that nobody reads, until the terminal takes no more."""
        return _fill(self.master, b"1234567\n" * 512)

    def fill_output(self) -> int:
        """Output that nobody reads, until the process would block."""
        return _fill(self.slave, b"y" * 1_000)

    def leave(self) -> None:
        """The process ends. Idempotent."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        self.leave()
        if self.master >= 0:
            os.close(self.master)


def _fill(fd: int, chunk: bytes) -> int:
    """The kernel moves what was written on, and has room again, a moment later: full is what stays full."""
    poll, written = select.poll(), 0
    poll.register(fd, select.POLLOUT)
    for piece in (chunk, chunk[-1:]):
        while (taken := _write_all(fd, piece)) or poll.poll(SETTLED_MS):
            written += taken
            poll.poll(SETTLED_MS)
    return written


def _write_all(fd: int, piece: bytes) -> int:
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(fd, piece)
    return written


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    made.quiet()
    yield made
    made.close()


# --- movers ---


def test_the_end_comes_after_all_output(terminal: Terminal) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        terminal.write(b"x" * KEPT)
        terminal.leave()
        move = FromTerminal()
        moved = 0
        while count := move(terminal.master, theirs.fileno()):
            moved += count
        assert moved == KEPT
        assert ours.recv(2 * KEPT, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"x" * KEPT


def test_a_silent_terminal_blocks_and_a_broken_target_is_told(terminal: Terminal) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            FromTerminal()(terminal.master, theirs.fileno())
        ours.close()
        terminal.write(b"x")
        with pytest.raises(BrokenPipeError):
            FromTerminal()(terminal.master, theirs.fileno())


def test_a_full_terminal_blocks_and_one_without_anybody_is_broken(terminal: Terminal) -> None:
    terminal.make_raw()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        terminal.fill()
        ours.send(b"more")
        move = ToTerminal()
        with pytest.raises(BlockingIOError):
            move(theirs.fileno(), terminal.master)
        assert move.is_holding
        assert not is_over(terminal.master)
        terminal.leave()
        assert is_over(terminal.master)
        with pytest.raises(BrokenPipeError) as raised:
            move(theirs.fileno(), terminal.master)
        assert raised.value.errno == errno.EPIPE


def test_what_is_eof(terminal: Terminal) -> None:
    assert end_of_input(terminal.master) == 2 * VEOF
    attributes = termios.tcgetattr(terminal.slave)
    attributes[6][termios.VEOF] = b"\x11"
    termios.tcsetattr(terminal.slave, termios.TCSANOW, attributes)
    assert end_of_input(terminal.master) == b"\x11\x11"
    attributes[6][termios.VEOF] = b"\0"
    termios.tcsetattr(terminal.slave, termios.TCSANOW, attributes)
    assert end_of_input(terminal.master) == b""
    terminal.make_raw()
    assert end_of_input(terminal.master) == b""


# --- the endpoint ---


class TerminalRig(Rig):
    """Takes over the terminal's master."""

    endpoint: TerminalEndpoint

    def __init__(self, terminal: Terminal, directory: SocketDirectory, on_disconnect: OnDisconnect) -> None:
        super().__init__(directory)
        output = terminal.master
        terminal.master = -1  # the endpoint's from now on
        self.endpoint = TerminalEndpoint(self, self.listener, output, os.dup(output), self.watcher, on_disconnect)


@asynccontextmanager
async def endpoint(terminal: Terminal, on_disconnect: OnDisconnect = "eof") -> AsyncIterator[TerminalRig]:
    directory = SocketDirectory()
    rig = TerminalRig(terminal, directory, on_disconnect)
    try:
        yield rig
    finally:
        rig.close()
        directory.remove()


async def test_both_ways(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        await client.send(b"a line\n")
        assert await terminal.read() == b"a line\n"
        terminal.write(b"an answer")
        assert await client.read() == b"an answer"


async def test_output_from_before_an_instant_end_reaches_a_late_client(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        terminal.write(b"x" * KEPT)
        assert rig.endpoint.has_pending_output()
        terminal.leave()
        assert await rig.connect_blind().read_to_end() == b"x" * KEPT
        assert rig.drained == 1
        await rig.vacant()


async def test_a_process_that_nobody_reads_blocks_and_nothing_is_lost(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        written = terminal.fill_output()
        client = await rig.connect()
        assert await client.read_exactly(written) == b"y" * written


@pytest.mark.parametrize("line", [b"", b"whole\n", b"half"])
async def test_a_half_close_is_eof_and_output_flows(terminal: Terminal, line: bytes) -> None:
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        await client.send(line)
        client.end_input()
        if line:
            assert await terminal.read() == line
        assert await terminal.read() == b""
        terminal.write(b"still here")
        assert await client.read() == b"still here"
        terminal.leave()
        assert await client.read_to_end() == b""


async def test_a_raw_terminal_gets_no_byte_that_nobody_sent(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        terminal.make_raw()
        client = await rig.connect()
        await client.send(b"raw")
        client.end_input()
        assert await terminal.read() == b"raw"
        terminal.write(b"answer")  # once it has come, the half-close has been seen
        assert await client.read() == b"answer"
        with pytest.raises(BlockingIOError):
            os.read(terminal.slave, 1)


async def test_eof_waits_for_room(terminal: Terminal) -> None:
    filled = terminal.fill()
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        client.end_input()
        await until(lambda: rig.endpoint._input_fd is None)
        seen = 0
        while data := await terminal.read():
            seen += len(data)
        assert seen == filled


async def test_eof_that_never_finds_room_is_let_go_with_the_endpoint(terminal: Terminal) -> None:
    terminal.fill()
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        client.end_input()
        await until(lambda: rig.endpoint._input_fd is None)


async def test_eof_that_waits_is_let_go_when_the_process_ends(terminal: Terminal) -> None:
    terminal.fill()
    async with endpoint(terminal, "eof") as rig:
        client = await rig.connect()
        client.close()
        await until(lambda: rig.endpoint._input_fd is None)
        assert rig.endpoint._eof_fd >= 0
        terminal.leave()
        await until(lambda: rig.endpoint._eof_fd < 0)


async def test_input_waits_for_the_process_and_all_of_it_arrives(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        sending = asyncio.create_task(client.send(LINES))
        got = b""
        while len(got) < len(LINES):
            got += await terminal.read()
        await sending
        assert got == LINES


async def test_who_sends_to_nobody_is_told_and_the_loop_rests(terminal: Terminal) -> None:
    terminal.fill()
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        await client.send(b"for nobody\n")
        client.close()  # what it sent waits
        await rig_settles()
        terminal.leave()
        await until(lambda: rig.endpoint._input_fd is None)
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(0.3)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2


async def rig_settles() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_end_of_output_is_the_end_of_input(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        terminal.leave()
        assert await client.read_to_end() == b""
        await until(lambda: rig.endpoint._input_fd is None)
        with pytest.raises(BrokenPipeError):
            await client.send(b"late")


async def test_a_client_that_leaves_is_eof(terminal: Terminal) -> None:
    async with endpoint(terminal) as rig:
        client = await rig.connect()
        await client.send(b"last\n")
        client.close()
        assert [await terminal.read(), await terminal.read()] == [b"last\n", b""]


async def test_hold_is_no_eof_and_the_next_client_goes_on(terminal: Terminal) -> None:
    async with endpoint(terminal, "hold") as rig:
        client = await rig.connect()
        await client.send(b"first\n")
        client.close()
        assert await terminal.read() == b"first\n"
        await rig.vacant()
        terminal.write(b"waited")
        again = await rig.connect()
        assert await again.read() == b"waited"
        await again.send(b"second\n")
        assert await terminal.read() == b"second\n"


async def test_kill(terminal: Terminal) -> None:
    async with endpoint(terminal, "kill") as rig:
        (await rig.connect()).close()
        await until(lambda: rig.abandoned == 1)
