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
from fastclaw.cli.run import feed_stdin, pass_on
from fastclaw.errors import InvalidParams, InvalidState

if TYPE_CHECKING:
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
    """A process that never reads its stdin."""

    async def write(self, data: bytes) -> None:
        await asyncio.Event().wait()


async def test_what_the_process_does_not_take_stays_in_the_pipe() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        feeding = asyncio.create_task(feed_stdin(cast("RemoteProcess", Reader()), theirs.fileno()))
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


async def test_a_reader_that_left_is_told_once_and_the_rest_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    left: list[int] = []
    chunks = [b"one", b"two", b"three", b""]

    async def read() -> bytes:
        return chunks.pop(0)

    await pass_on(read, writing, lambda _: left.append(1))
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


# --- Our own terminal ---


def test_a_terminal_that_was_hung_up_meanwhile_is_no_error() -> None:
    master, slave = os.openpty()
    with terminal.raw(slave):
        os.close(master)
    os.close(slave)


def test_the_size_is_that_of_the_first_terminal_that_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    size_of = os.get_terminal_size

    def of(fd: int) -> os.terminal_size:
        if fd == 0:
            raise OSError(25, "no terminal")
        return size_of(slave)

    monkeypatch.setattr(os, "get_terminal_size", of)
    assert terminal.own_size() is None  # a fresh one is 0 by 0
    termios.tcsetwinsize(slave, (50, 132))
    assert terminal.own_size() == (50, 132)
    os.close(master)
    os.close(slave)


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
