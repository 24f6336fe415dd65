"""A pipe's end as a coroutine sees it: `asyncio.StreamReader` over a read end, a bounded writer over a write end.

Owns the descriptor it is given. Knows nothing of programs. The loop's own pipe transports are not used because they
are connected asynchronously: a process that is ended before it runs would leave one half made.
"""

from __future__ import annotations

import asyncio
import os

from fastclaw import limits


class PipeSource(asyncio.ReadTransport):
    """Feeds a `StreamReader`, which stops it while it holds enough. Takes `fd` over; it must not block."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(self)
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self.resume_reading()

    def pause_reading(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, limits.PIPE_BYTES)
        except BlockingIOError:
            return
        if data:
            self.reader.feed_data(data)
        else:
            self.reader.feed_eof()
            self.pause_reading()

    def is_closing(self) -> bool:
        return self._fd is None

    def close(self) -> None:
        self.pause_reading()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class PipeWriter:
    """Writes to a pipe with backpressure: `programs.Writer`. Takes `fd` over; it must not block."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._moved = asyncio.Event()
        self._broken = False
        self._watching = False

    def write(self, data: bytes) -> None:
        self._check()
        if len(self._buffer) > limits.MEMORY_WRITER_BYTES:
            raise BufferError("the writer is full: await drain() first")
        self._buffer += data
        if not self._watching:
            self._push()

    async def drain(self) -> None:
        await self._until(limits.MEMORY_WRITER_BYTES)

    async def flush(self) -> None:
        """Wait until everything is in the pipe. Raises BrokenPipeError when the reader goes."""
        await self._until(0)

    async def _until(self, most: int) -> None:
        while len(self._buffer) > most:
            self._moved.clear()
            await self._moved.wait()
        self._check()

    def _check(self) -> None:
        if self._broken or self._fd is None:
            raise BrokenPipeError("nobody reads any more")

    def _push(self) -> None:
        assert self._fd is not None
        try:
            while self._buffer:
                del self._buffer[: os.write(self._fd, self._buffer[: limits.PIPE_BYTES])]
        except BlockingIOError:
            self._watch(True)
        except BrokenPipeError:
            self._broken = True
            self._buffer.clear()
        if not self._buffer:
            self._watch(False)
        self._moved.set()

    def _watch(self, wanted: bool) -> None:
        if wanted is self._watching or self._fd is None:
            return
        self._watching = wanted
        if wanted:
            self._loop.add_writer(self._fd, self._push)
        else:
            self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Close the pipe; what it did not take is dropped."""
        self._watch(False)
        self._buffer.clear()
        self._moved.set()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
