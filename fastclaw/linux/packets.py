"""Frames on their way out through one packet socket: sent at once, or in order as soon as there is room.

Owns the descriptors that go along from the moment a frame is handed over: they are closed when it has left or never
will. A frame that cannot be sent now waits; one that never can (too long for the socket, a descriptor that is none) is
dropped alone, holds up no other, and whoever sent it is told. Knows nothing of what is in a frame.
"""

from __future__ import annotations

import errno
import logging
import os
from array import array
from collections import deque
from contextlib import suppress
from socket import SCM_RIGHTS, SOL_SOCKET
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterable

    OnDropped = Callable[[ExecFailed], None]

logger = logging.getLogger(__name__)

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
_PASSING = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""Too many descriptors on their way (unix(7)), or no memory: there is no event for when that is over."""


class _Waiting(NamedTuple):
    """A frame for which there was no room."""

    frame: bytes
    fds: list[int]
    on_dropped: OnDropped


class Outbox:
    """Parameters:
    packets: non-blocking; stays the caller's.
    """

    __slots__ = ("_loop", "_packets", "_retry", "_waiting")

    def __init__(self, packets: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._packets = packets
        self._loop = loop
        self._retry: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiting] = deque()

    def send(self, frame: bytes, fds: list[int], *, bounded: bool = True, on_dropped: OnDropped | None = None) -> None:
        """Send a frame with these descriptors, which are closed afterwards. A dead other end is silently told nothing.

        Parameters:
            bounded: refuse where too much waits already; else the caller keeps to a bound.
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
                return  # whoever reads the other direction learns of it
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
    logger.warning("a frame was dropped: %s", error)


def _drop_all(fds: Iterable[int]) -> None:
    """Close descriptors, one of which may be none: that may be why they did not leave."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that are open."""
    for fd in fds:
        os.close(fd)
