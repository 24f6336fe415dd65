"""One Unix socket of a process, both directions apart from each other.

Owns a non-blocking socket and its waiters. A loop's transport gives up reading once a write fails, and what is still
unread is lost; here a failed write leaves reading alone. Knows nothing of processes.
"""

import asyncio
import socket
from collections.abc import Callable

from fastclaw import limits
from fastclaw.errors import InvalidState, IoError


class Channel:
    """A connected stream socket."""

    __slots__ = ("_closed", "_loop", "_reader", "_socket", "_writer")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._closed = False

    @classmethod
    async def connect(cls, path: str) -> "Channel":
        """Connect to a listening Unix socket.

        Raises:
            IoError: nobody listens there, or not within `limits.CLIENT_CONNECT_MS`.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(limits.CLIENT_CONNECT_MS / 1000):
                await _connect(connected, path)
        except (OSError, TimeoutError) as error:
            connected.close()
            raise IoError(f"cannot connect to the process's socket {path}: {error}") from error
        except BaseException:
            connected.close()
            raise
        return cls(connected)

    async def read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes as soon as there are any; empty at the end of the stream.

        Raises:
            IoError: the channel is closed, also while this waits.
        """
        while True:
            self._check()
            try:
                return self._socket.recv(size)
            except BlockingIOError:
                await self._readable()
            except ConnectionResetError:
                # The kernel reports this after the last byte: the other side left input unread. The next read is EOF.
                continue
            except OSError as error:
                raise IoError(f"reading from the process failed: {error}") from error

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, waiting while the process does not read.

        Raises:
            IoError: the process no longer reads (`data["errno"]` says how that showed), or the channel is closed.
        """
        rest = memoryview(data)
        while rest:
            self._check()
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise IoError(f"the process no longer reads its stdin: {error}", errno=error.errno) from error

    def write_eof(self) -> None:
        """Half-close: the process reads EOF, its output flows on.

        Raises:
            IoError: the channel is closed.
        """
        self._check()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise IoError(f"the process's stdin cannot be closed: {error}") from error

    def close(self) -> None:
        """Leave. Whoever waits in `read` or `write` gets an `IoError`."""
        if self._closed:
            return
        self._closed = True
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def _check(self) -> None:
        if self._closed:
            raise IoError("the connection to the process is closed")

    async def _readable(self) -> None:
        if self._reader is not None:
            raise InvalidState("another task reads this stream already", "unsupported")
        self._reader = self._loop.create_future()
        self._loop.add_reader(self._socket.fileno(), _wake, self._reader)
        try:
            await self._reader
        finally:
            self._reader = None
            self._forget(self._loop.remove_reader)

    async def _writable(self) -> None:
        if self._writer is not None:
            raise InvalidState("another task writes to this stream already", "unsupported")
        self._writer = self._loop.create_future()
        self._loop.add_writer(self._socket.fileno(), _wake, self._writer)
        try:
            await self._writer
        finally:
            self._writer = None
            self._forget(self._loop.remove_writer)

    def _forget(self, remove: Callable[[int], bool]) -> None:
        if not self._closed:
            remove(self._socket.fileno())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _connect(unconnected: socket.socket, path: str) -> None:
    while True:
        try:
            unconnected.connect(path)
            return
        except BlockingIOError:
            # A Unix socket connects at once or says EAGAIN for a full backlog (connect(2)); it is never "in progress".
            await asyncio.sleep(limits.CLIENT_CONNECT_RETRY_MS / 1000)
