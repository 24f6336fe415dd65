"""The socket of a process on a terminal: an endpoint whose pipe, both ways, is the master of a pseudo-terminal.

Three things are different from pipes (pty(7), ioctl_tty(2)). splice(2) does not take a terminal, so bytes are copied.
Its end, when nobody has it open any more, is told as EIO and POLLHUP. And it has no end of input: what a program takes
for one is a character, VEOF, which the terminal understands while its program reads lines (canonical mode).
"""

from __future__ import annotations

import errno
import os
import select
import termios
from typing import TYPE_CHECKING

from fastclaw.transport.endpoint import Endpoint
from fastclaw.transport.splice import Copy, is_holding

if TYPE_CHECKING:
    from fastclaw.runtime import OnDisconnect
    from fastclaw.transport.endpoint import Owner
    from fastclaw.transport.listener import Listener
    from fastclaw.transport.watcher import Watcher

_LOCAL_FLAGS, _CHARACTERS = 3, 6
"""Places in what tcgetattr gives."""

_DISABLED = b"\0"
"""_POSIX_VDISABLE: a terminal without this character."""


class FromTerminal(Copy):
    """Copies from a terminal until its end."""

    __slots__ = ()

    def __call__(self, source: int, target: int) -> int:
        """Its end is EIO (read(2)), and comes after all of its output."""
        try:
            return super().__call__(source, target)
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise


class ToTerminal(Copy):
    """Copies to a terminal, which never says EPIPE: without anybody at its other side it only fills up."""

    __slots__ = ()

    def __call__(self, source: int, target: int) -> int:
        """Raises BrokenPipeError once nobody has the terminal open."""
        try:
            return super().__call__(source, target)
        except BlockingIOError:
            if self.is_holding and is_over(target):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise


def is_over(master: int) -> bool:
    """Whether nobody has the terminal open."""
    return bool(_state(master) & select.POLLHUP)


def _state(master: int) -> int:
    poll = select.poll()
    poll.register(master, select.POLLIN)
    return sum(event for _, event in poll.poll(0))


def end_of_input(master: int) -> bytes:
    """What its reader takes for EOF, or nothing where there is no such thing: in raw mode every byte is input.

    Twice: in the middle of a line the first one only hands the line over.
    """
    attributes = termios.tcgetattr(master)
    character: bytes = attributes[_CHARACTERS][termios.VEOF]
    is_canonical = attributes[_LOCAL_FLAGS] & termios.ICANON
    return 2 * character if is_canonical and character != _DISABLED else b""


class TerminalEndpoint(Endpoint):
    """Parameters are those of `Endpoint`; `output_fd` and `input_fd` are two descriptors of one master."""

    __slots__ = ("_eof", "_eof_fd")

    def __init__(
        self,
        owner: Owner,
        listener: Listener,
        output_fd: int,
        input_fd: int | None,
        watcher: Watcher,
        on_disconnect: OnDisconnect,
    ) -> None:
        super().__init__(owner, listener, output_fd, input_fd, watcher, on_disconnect)
        self._eof, self._eof_fd = b"", -1

    def has_pending_output(self) -> bool:
        """Asked of poll(2), which waits for what is on its way through the terminal; FIONREAD does not."""
        return is_holding(self._move_output) or bool(_state(self._output_fd) & select.POLLIN)

    def _output_mover(self) -> FromTerminal:
        return FromTerminal()

    def _input_mover(self) -> ToTerminal:
        return ToTerminal()

    def _output_ended(self, error: OSError | None) -> None:
        super()._output_ended(error)
        if error is None:
            self.close_input()  # nobody is there to read any more

    def _end_input(self, fd: int) -> None:
        self._eof_fd = fd
        if self._is_open and not self.drained:
            self._eof = end_of_input(fd)
        self._send_eof()

    def _send_eof(self) -> None:
        """As soon as there is room for it."""
        while self._eof:
            try:
                self._eof = self._eof[os.write(self._eof_fd, self._eof) :]
            except BlockingIOError:
                if not is_over(self._eof_fd):
                    self._loop.add_writer(self._eof_fd, self._send_eof)
                    return
                self._eof = b""
            except OSError:
                self._eof = b""
        self._forget_eof()

    def _forget_eof(self) -> None:
        if self._eof_fd >= 0:
            self._loop.remove_writer(self._eof_fd)
            os.close(self._eof_fd)
            self._eof_fd = -1

    def close(self) -> None:
        super().close()
        self._forget_eof()
