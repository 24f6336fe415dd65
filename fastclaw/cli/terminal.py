"""The terminal that a command of ours is used from: its size, and raw mode for as long as another program has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty
from typing import TYPE_CHECKING

from fastclaw.errors import FastclawError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.client import RemoteProcess

Size = tuple[int, int]
"""Rows and columns."""


def own_size() -> Size | None:
    """Of whichever of stdin, stdout and stderr is a terminal that knows its size."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return rows, columns
    return None


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Have every byte passed on as it is typed, signals' too, until the block is left, however. Nothing where `fd` is
    no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error):  # it was hung up
            termios.tcsetattr(fd, termios.TCSANOW, before)


async def follow_size(process: RemoteProcess, told: Size | None) -> None:
    """Have a process's terminal take the size of ours, again and again. Cancel it when the process has ended.

    Parameters:
        told: the size that it was started with.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while True:
            size = own_size()
            if size is not None and size != told:
                await process.resize(*size)
                told = size
            await changed.wait()
            changed.clear()
    except FastclawError:
        pass  # it ended, or the runtime did, which others notice
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
