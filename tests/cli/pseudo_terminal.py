"""A program on a pseudo-terminal, and what a terminal of that size shows of it (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

import pyte

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DEADLINE_S = 30


class OnTerminal:
    """A child whose stdin, stdout and stderr are one terminal."""

    def __init__(
        self, command: Sequence[str], columns: int, rows: int, env: Mapping[str, str], term: str = "linux"
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._fd, theirs = pty.openpty()
        self._set_size(theirs, columns, rows)
        self.child = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={**env, "TERM": term}
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait(DEADLINE_S)
        os.close(self._fd)

    @staticmethod
    def _set_size(fd: int, columns: int, rows: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Another size, which the child hears of by SIGWINCH."""
        self._screen.resize(rows, columns)
        self._set_size(self._fd, columns, rows)
        self.child.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Type these."""
        os.write(self._fd, keys.encode())

    def disturb(self, text: str) -> None:
        """Show this, which another program has written on the same terminal."""
        self._stream.feed(text.encode())

    @property
    def lines(self) -> list[str]:
        """What is shown now, without blanks at the ends."""
        return [line.rstrip() for line in self._screen.display]

    def until(self, condition: Callable[[list[str]], object], what: str = "") -> list[str]:
        """What is shown once this holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self.lines):
            readable, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"{what or 'what was waited for'} does not come:\n" + "\n".join(self.lines)
            self._stream.feed(os.read(self._fd, 1 << 16))
        return self.lines

    def watch(self, seconds: float) -> None:
        """Show what comes in this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                self._stream.feed(os.read(self._fd, 1 << 16))

    def until_end(self) -> int:
        """Its exit code, once it has left."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                self._stream.feed(os.read(self._fd, 1 << 16))
            except OSError:  # EIO: nobody has the terminal any more
                break
        return self.child.wait(DEADLINE_S)
