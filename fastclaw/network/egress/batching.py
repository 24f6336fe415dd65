"""Streams come in batches: this process is woken for a quarter of a megabyte, and not for each segment.

Each wake-up costs the sender, whom the kernel has do it, as much as this process. But of less than a batch the kernel
says nothing then (SO_RCVLOWAT, socket(7)), so a timer looks at every stream; where nothing has moved since it looked
before, what came is told at once, and so is every byte until it has proved to be a stream again.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Protocol

from fastclaw import limits

if TYPE_CHECKING:
    import asyncio


class Stream(Protocol):
    """What has moved much without a pause.

    Attributes:
        socket: where it comes from.
        streak: bytes since its last pause; halved when nothing moves for a moment.
    """

    socket: socket.socket
    streak: int


class Batching:
    """Parameters:
    loop: of the timer, which only runs while there are streams.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streaks: dict[Stream, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, stream: Stream) -> None:
        """Have a stream's bytes come in batches, until it pauses. Idempotent."""
        if stream not in self._streaks:
            self._streaks[stream] = stream.streak = min(stream.streak, limits.TUNNEL_STREAM_BYTES)
            _wake_for(stream, limits.TUNNEL_BATCH_BYTES)
            if self._timer is None:
                self._set_timer()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(limits.TUNNEL_BATCH_MS / 1000, self._look)

    def _look(self) -> None:
        self._timer = None
        for stream, before in list(self._streaks.items()):
            if stream.streak == before:
                del self._streaks[stream]
                stream.streak //= 2
                _wake_for(stream, 1)
            else:
                self._streaks[stream] = stream.streak
        if self._streaks:
            self._set_timer()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._streaks.clear()


def _wake_for(stream: Stream, count: int) -> None:
    with contextlib.suppress(OSError):  # it is closed
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
