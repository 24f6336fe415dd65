"""The generator's connections to the sockets of processes: as little between two bytes and a clock as there can be."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from fastclaw import limits
from fastclaw.bench.recorder import Failed

if TYPE_CHECKING:
    from collections.abc import Callable


class Stream(asyncio.Protocol):
    """A connection, and the one thing that is waited for on it.

    Parameters:
        deadline_ms: of each wait.
    """

    def __init__(self, deadline_ms: int) -> None:
        self._deadline_s = deadline_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._got = bytearray()
        self._came_ns = 0
        self._ended = False
        self._holds: Callable[[], bool] = bool
        self._waiter: asyncio.Future[str | None] | None = None

    @classmethod
    async def connect(cls, address: str, deadline_ms: int) -> Stream:
        """Connect to a process's socket.

        Raises:
            Failed: nobody listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.CLIENT_CONNECT_MS / 1000):
                _, stream = await loop.create_unix_connection(lambda: cls(deadline_ms), address)
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: a name that none can have
            raise Failed("cannot_connect") from error
        return stream

    def write(self, data: bytes) -> None:
        """Send bytes."""
        assert self._transport is not None
        self._transport.write(data)

    def write_eof(self) -> None:
        """End our side."""
        assert self._transport is not None
        if self._transport.can_write_eof() and not self._ended:
            self._transport.write_eof()

    async def echo(self, data: bytes) -> int:
        """Send bytes and await the same: when the last of them came.

        Raises:
            Failed: others came, or the end, or nothing in time.
        """
        self._got.clear()
        self.write(data)
        await self._until(lambda: len(self._got) >= len(data))
        if self._got != data:
            raise Failed("wrong_bytes" if len(self._got) >= len(data) else "stream_ended")
        return self._came_ns

    async def first_byte(self) -> int:
        """When it came.

        Raises:
            Failed: the end came first, or nothing in time.
        """
        await self._until(lambda: len(self._got) > 0)
        if not self._got:
            raise Failed("stream_ended")
        return self._came_ns

    async def end(self) -> int:
        """When it came.

        Raises:
            Failed: not in time.
        """
        await self._until(lambda: self._ended)
        return self._came_ns

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Until it holds, or the end."""
        if holds() or self._ended:
            return
        self._holds = holds
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(self._deadline_s, self._wake, "no_answer")
        try:
            reason = await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        if reason is not None:
            raise Failed(reason)

    def _wake(self, reason: str | None = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reason)

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.abort()

    # --- What the loop tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        self._came_ns = time.monotonic_ns()
        if len(self._got) <= limits.CLIENT_READ_BYTES:  # what is more than is waited for need not be kept
            self._got += data
        if self._waiter is not None and self._holds():
            self._wake()

    def eof_received(self) -> bool:
        self._note_end()
        return True  # it is our side's own affair when that ends

    def connection_lost(self, exc: Exception | None) -> None:
        self._note_end()

    def _note_end(self) -> None:
        if not self._ended:
            self._ended, self._came_ns = True, time.monotonic_ns()
            self._wake()
