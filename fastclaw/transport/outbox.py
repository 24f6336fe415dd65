"""Frames on their way out through one packet socket: sent at once, or in order as soon as there is room.

Owns the descriptors that go along from the moment a frame is handed over: they are closed when it has left or never
will. Knows nothing of what is in a frame.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from socket import SCM_RIGHTS, SOL_SOCKET
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterable


class Outbox:
    """Parameters:
    packets: non-blocking; stays the caller's.
    """

    __slots__ = ("_loop", "_packets", "_retry", "_waiting")

    def __init__(self, packets: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._packets = packets
        self._loop = loop
        self._retry: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    def send(self, frame: bytes, fds: list[int], *, bounded: bool = True) -> None:
        """Send a frame with these descriptors, which are closed afterwards. A dead other end is silently told nothing.

        Parameters:
            bounded: refuse where too much waits already; else the caller keeps to a bound.

        Raises:
            ExecFailed: `overloaded`: too much waits already, or no descriptor can be passed.
        """
        if self._waiting:
            self._queue(frame, fds, bounded)
            return
        try:
            self._send(frame, fds)
        except BlockingIOError:
            self._queue(frame, fds, bounded)
            self._loop.add_writer(self._packets.fileno(), self._flush)
            return
        except BaseException:
            close_all(fds)
            raise
        close_all(fds)

    def _send(self, frame: bytes, fds: list[int]) -> None:
        try:
            if fds:
                self._packets.sendmsg([frame], [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))])
            else:
                self._packets.send(frame)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever reads the other direction learns of it
        except BlockingIOError:
            raise
        except OSError as error:  # ETOOMANYREFS: too many descriptors are on their way (unix(7))
            raise ExecFailed(
                f"a helper process cannot be told: {os.strerror(error.errno or 0)}", "overloaded"
            ) from error

    def _queue(self, frame: bytes, fds: list[int], bounded: bool) -> None:
        if bounded and len(self._waiting) >= limits.OUTBOX_FRAMES:
            close_all(fds)
            raise ExecFailed("a helper process does not keep up; try again later", "overloaded")
        self._waiting.append((frame, fds))

    def _flush(self) -> None:
        while self._waiting:
            frame, fds = self._waiting[0]
            try:
                self._send(frame, fds)
            except BlockingIOError:
                return
            except ExecFailed:  # too many descriptors on their way: there is no event for when they are fewer
                self._loop.remove_writer(self._packets.fileno())
                self._retry = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, self._flush_again)
                return
            self._waiting.popleft()
            close_all(fds)
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
            close_all(self._waiting.popleft()[1])


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that are open."""
    for fd in fds:
        os.close(fd)
