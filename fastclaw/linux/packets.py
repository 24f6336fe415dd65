"""Packets with descriptors: what arrives, and frames on their way out, at once or in order as soon as there is room.

The outbox owns the descriptors that go along from the moment a frame is handed over: they are closed when it has left
or never will. A frame that cannot be sent now waits; one that never can (too long for the socket, a descriptor that is
none) is dropped alone, holds up no other, and its sender is told. Knows nothing of what is in a frame.
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections import deque
from contextlib import suppress
from socket import SCM_RIGHTS, SOL_SOCKET
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    OnDropped = Callable[[ExecFailed], None]

_SPACES = [socket.CMSG_SPACE((count + 1) * array("i").itemsize) for count in range(3)]
"""What so many descriptors, and one too many, take beside a packet (cmsg(3))."""
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_TRUNC)
"""Plain numbers: as members of an enum they cost a microsecond each time."""

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
_PASSING = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""Too many descriptors on their way (unix(7)), or no memory: there is no event for when that is over."""


def receive(packets: socket.socket, into: memoryview, most_fds: int = 1) -> tuple[int, Sequence[int]]:
    """One packet: its size, and the descriptors that came along, close-on-exec and now the caller's.

    Parameters:
        into: gets its bytes.
        most_fds: 0 to 2. One that finds no free number here is lost without a word (recvmsg(2), MSG_CTRUNC).

    Returns:
        Size 0 for the end, and for a packet that is longer or has more descriptors, which are closed.

    Raises:
        BlockingIOError: there is none now.
    """
    try:
        size, extras, flags, _ = packets.recvmsg_into([into], _SPACES[most_fds], _CLOEXEC)
    except ConnectionResetError:
        return 0, ()
    if not extras:
        return (0 if flags & _TRUNCATED else size), ()
    fds = array("i")
    for level, kind, data in extras:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & _TRUNCATED or len(fds) > most_fds:
        close_all(fds)
        return 0, ()
    return size, fds


class _Waiting(NamedTuple):
    """A frame for which there was no room."""

    frame: bytes
    fds: list[int]
    on_dropped: OnDropped


class Outbox:
    """Frames on their way out through one packet socket, in order.

    Parameters:
        packets: non-blocking; the caller closes it.
    """

    __slots__ = ("_loop", "_packets", "_retry", "_waiting")

    def __init__(self, packets: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._packets = packets
        self._loop = loop
        self._retry: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiting] = deque()

    def send(self, frame: bytes, fds: list[int], *, bounded: bool = True, on_dropped: OnDropped | None = None) -> None:
        """Send a frame with these descriptors, which are closed afterwards; no error where the other end is gone.

        Parameters:
            bounded: refuse where `limits.OUTBOX_FRAMES` wait already; without it the caller keeps to a bound.
            on_dropped: called later, with the reason, where the frame had to wait and turned out to be one that cannot
                be sent; without it, that is logged.

        Raises:
            ExecFailed: `overloaded`: too much waits already, or no descriptor can be passed now. `io_error`: it can
                never be sent.
        """
        waiting = _Waiting(frame, fds, on_dropped or _log)
        if self._waiting:
            self._queue(waiting, bounded)
            return
        try:
            self._send(frame, fds)
        except BlockingIOError:
            self._queue(waiting, bounded)
            self._loop.add_writer(self._packets.fileno(), self._flush)
            return
        except BaseException:
            _drop_all(fds)
            raise
        close_all(fds)

    def _send(self, frame: bytes, fds: list[int]) -> None:
        try:
            if fds:
                self._packets.sendmsg([frame], [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))])
            else:
                self._packets.send(frame)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _GONE:
                return  # the reader of the other direction learns of it
            reason = "overloaded" if error.errno in _PASSING else "io_error"
            raise ExecFailed(f"a helper process cannot be told: {os.strerror(error.errno or 0)}", reason) from error

    def _queue(self, waiting: _Waiting, bounded: bool) -> None:
        if bounded and len(self._waiting) >= limits.OUTBOX_FRAMES:
            close_all(waiting.fds)
            raise ExecFailed("a helper process does not keep up; try again later", "overloaded")
        self._waiting.append(waiting)

    def _flush(self) -> None:
        while self._waiting:
            waiting = self._waiting[0]
            try:
                self._send(waiting.frame, waiting.fds)
            except BlockingIOError:
                return
            except ExecFailed as error:
                if error.reason == "overloaded":
                    self._loop.remove_writer(self._packets.fileno())
                    self._retry = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, self._flush_again)
                    return
                self._loop.call_soon(waiting.on_dropped, error)  # it may close all this
            self._waiting.popleft()
            _drop_all(waiting.fds)
        self._loop.remove_writer(self._packets.fileno())

    def _flush_again(self) -> None:
        self._retry = None
        self._loop.add_writer(self._packets.fileno(), self._flush)

    def close(self) -> None:
        """Drop what waits. Call it before the socket is closed; idempotent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._waiting:
            self._loop.remove_writer(self._packets.fileno())
        while self._waiting:
            close_all(self._waiting.popleft().fds)


def _log(error: ExecFailed) -> None:
    import logging  # here: the process that makes stdin helpers has to be up soon and small, and needs none

    logging.getLogger(__name__).warning("a frame was dropped: %s", error)


def _drop_all(fds: Iterable[int]) -> None:
    """Close descriptors, one of which may be none: that may be why they did not leave."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def with_files(fds: Sequence[int], contents: Sequence[bytes]) -> list[int]:
    """The descriptors and, after them, files in memory with these contents.

    Raises:
        OSError: one cannot be had, and all are closed.
    """
    opened = list(fds)
    try:
        for data in contents:
            opened.append(file := os.memfd_create("fastclaw-start", os.MFD_CLOEXEC))
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.lseek(file, 0, os.SEEK_SET)
    except OSError:
        close_all(opened)
        raise
    return opened


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that are open."""
    for fd in fds:
        os.close(fd)
