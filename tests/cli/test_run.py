"""`fastclaw run` in this process: options that become those of `initialize`, our own streams, and our own terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest

from fastclaw.cli import run as terminal
from fastclaw.cli.run import _options as options_of
from fastclaw.cli.run import feed_stdin, own_streams, pass_on
from fastclaw.errors import InvalidParams, InvalidState, IoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastclaw.client import RemoteProcess


def test_every_option_gets_its_place() -> None:
    assert options_of("auto", None, None, ()) == {"runtime": "auto"}
    given = {"runtime": "podman", "image": "i", "url": "unix:///x", "containers": 2}
    assert options_of("podman", "i", "unix:///x", ("containers=2",)) == given


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ("max_proceses=1", {"path": "options.max_proceses", "nearest": "max_processes"}),
        ("env=[1]", {"path": "options.env"}),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(entry: str, data: dict[str, str]) -> None:
    with pytest.raises(InvalidParams) as caught:
        options_of("auto", None, None, (entry,))
    assert caught.value.data == data


# --- Our own streams ---


BOUND = 8 << 20
"""More than the kernel holds for one socket."""


class Reader:
    """The process's side of its stdin.

    Attributes:
        gate: it takes nothing while this is cleared.
    """

    def __init__(self, takes: int | None = None) -> None:
        self.got: list[bytes] = []
        self.ended = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._takes = takes

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        if self._takes is not None and len(self.got) >= self._takes:
            raise IoError("it reads no more")
        self.got.append(data)

    async def write_eof(self) -> None:
        self.ended = True


def as_process(reader: Reader) -> RemoteProcess:
    return cast("RemoteProcess", reader)


async def test_all_of_a_pipe_and_then_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    reader = Reader()
    feeding = asyncio.create_task(feed_stdin(as_process(reader), reading))
    os.write(writing, b"one")
    os.close(writing)
    await asyncio.wait_for(feeding, 5)
    os.close(reading)
    assert (reader.got, reader.ended) == ([b"one"], True)


async def test_a_file_is_read_chunk_by_chunk(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "f").write_bytes(data)
    reader = Reader()
    with (tmp_path / "f").open("rb") as file:
        await asyncio.wait_for(feed_stdin(as_process(reader), file.fileno()), 5)
    assert (b"".join(reader.got), reader.ended) == (data, True)
    assert len(reader.got) > 1


async def test_what_the_process_does_not_take_stays_in_the_pipe() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        reader = Reader()
        reader.gate.clear()
        feeding = asyncio.create_task(feed_stdin(as_process(reader), theirs.fileno()))
        sent = 0
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while sent < BOUND:
                    await loop.sock_sendall(ours, bytes(4096))
                    sent += 4096
        assert sent < BOUND, "somebody buffers without bound"
        feeding.cancel()
        await asyncio.wait([feeding])


async def test_a_process_that_reads_no_more_is_no_error() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one")
    reader = Reader(takes=0)
    await asyncio.wait_for(feed_stdin(as_process(reader), reading), 5)
    assert not reader.ended
    os.close(reading)
    os.close(writing)


class Chunks:
    """The process's side of an output."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = [*chunks, b""]

    async def read(self) -> bytes:
        return self._chunks.pop(0)


async def test_all_output_and_then_no_more() -> None:
    reading, writing = os.pipe()
    left: list[int] = []
    await pass_on(Chunks(b"one ", b"two").read, writing, lambda _: left.append(1))
    os.close(writing)
    assert (os.read(reading, 100), os.read(reading, 100), left) == (b"one two", b"", [])
    os.close(reading)


async def test_a_reader_that_left_is_told_once_and_the_rest_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    left: list[int] = []
    await pass_on(Chunks(b"one", b"two", b"three").read, writing, lambda _: left.append(1))
    os.close(writing)
    assert left == [1]


async def test_a_reader_that_is_slow_holds_the_process() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    asked = 0

    async def read() -> bytes:
        nonlocal asked
        asked += 1
        return bytes(1 << 16) if asked < 20 else b""

    passing = asyncio.create_task(pass_on(read, writing, lambda _: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked <= 3
    total = 0
    async with asyncio.timeout(5):
        while total < 19 << 16:
            with suppress(BlockingIOError):
                total += len(os.read(reading, 1 << 20))
            await asyncio.sleep(0)
        await passing
    os.close(writing)
    assert (total, os.read(reading, 1)) == (19 << 16, b"")
    os.close(reading)


def test_our_streams_are_given_back_as_they_were() -> None:
    before = [os.get_blocking(fd) for fd in (0, 1, 2)]
    with own_streams() as streams:
        assert len(set(streams)) == 3
    assert [os.get_blocking(fd) for fd in (0, 1, 2)] == before


# --- Our own terminal ---


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """A terminal's master and slave."""
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_mode_ends_with_the_block_also_when_it_fails(pair: tuple[int, int]) -> None:
    _, slave = pair
    before = termios.tcgetattr(slave)
    with pytest.raises(ZeroDivisionError):
        fail_in_raw_mode(slave)
    assert termios.tcgetattr(slave) == before


def fail_in_raw_mode(slave: int) -> None:
    with terminal.raw(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        raise ZeroDivisionError


def test_what_is_no_terminal_is_left_alone() -> None:
    read_end, write_end = os.pipe()
    with terminal.raw(read_end):
        pass
    os.close(read_end)
    os.close(write_end)


def test_a_terminal_that_was_hung_up_meanwhile_is_no_error() -> None:
    master, slave = os.openpty()
    with terminal.raw(slave):
        os.close(master)
    os.close(slave)


def test_the_size_is_that_of_the_first_terminal_that_knows_it(
    pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, slave = pair
    size_of = os.get_terminal_size

    def of(fd: int) -> os.terminal_size:
        if fd == 0:
            raise OSError(25, "no terminal")
        return size_of(slave)

    monkeypatch.setattr(os, "get_terminal_size", of)
    assert terminal.own_size() is None  # a fresh one is 0 by 0
    termios.tcsetwinsize(slave, (50, 132))
    assert terminal.own_size() == (50, 132)


class Resized:
    """A process that is told sizes."""

    def __init__(self) -> None:
        self.sizes: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self.has_ended = False

    async def resize(self, rows: int, columns: int) -> None:
        if self.has_ended:
            raise InvalidState("gone", "unknown_process")
        self.sizes.put_nowait((rows, columns))


async def test_sizes_are_followed_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    process, size = Resized(), (24, 80)
    monkeypatch.setattr(terminal, "own_size", lambda: size)
    following = asyncio.create_task(terminal.follow_size(process, (10, 10)))  # type: ignore[arg-type]  # all it needs
    async with asyncio.timeout(10):
        assert await process.sizes.get() == (24, 80)  # it had changed before anybody looked
        os.kill(os.getpid(), signal.SIGWINCH)  # without a change: nothing is told
        size = (50, 132)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert await process.sizes.get() == (50, 132)
        process.has_ended = True
        size = (1, 1)
        os.kill(os.getpid(), signal.SIGWINCH)
        await following
    assert process.sizes.empty()
    assert signal.getsignal(signal.SIGWINCH) == signal.SIG_DFL


async def test_without_a_terminal_there_is_nothing_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Resized()
    monkeypatch.setattr(terminal, "own_size", lambda: None)
    following = asyncio.create_task(terminal.follow_size(process, None))  # type: ignore[arg-type]  # all it needs
    await asyncio.sleep(0)
    following.cancel()
    await asyncio.wait((following,))
    assert process.sizes.empty()
