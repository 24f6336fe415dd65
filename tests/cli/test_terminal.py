"""The user's terminal while a command has it: its size, raw mode, and that it is given back."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
from typing import TYPE_CHECKING

import pytest

from fastclaw.cli import terminal
from fastclaw.errors import InvalidState

if TYPE_CHECKING:
    from collections.abc import Iterator


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
