"""A process in the served runtime, as a supervisor holds it.

Owns the connections to its two sockets, made when first used. Knows the calls of the runtime, not their wire.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

from fastclaw import limits
from fastclaw.client.channel import Channel
from fastclaw.client.exit_words import Ending
from fastclaw.errors import IoError
from fastclaw.runtime import ExecResult, ExitRecord


class _Owner(Protocol):
    """What a process needs of its runtime's client."""

    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord: ...

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None: ...

    async def signal(self, process_id: str, signal: int | str, *, group: bool = False) -> None: ...

    async def resize(self, process_id: str, rows: int, columns: int) -> None: ...


class RemoteProcess:
    """One process: iterate over it for its stdout, write to it for its stdin.

    One task may read a stream at a time, and one may write.

    Attributes:
        id: the runtime's name for it.
        stdio_addr, stderr_addr: paths of its two sockets.
    """

    def __init__(self, owner: _Owner, started: ExecResult) -> None:
        self.id = started.process_id
        self.stdio_addr = started.stdio_addr
        self.stderr_addr = started.stderr_addr
        self._owner = owner
        self._stdio: Channel | None = None
        self._stderr: Channel | None = None

    def __repr__(self) -> str:
        return f"<RemoteProcess {self.id}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def connect(self) -> None:
        """Connect both sockets; done by the first read or write where it was not done before. After `aclose`, again.

        Raises:
            IoError: a socket is gone.
        """
        if self._stdio is None:
            self._stdio = await Channel.connect(self.stdio_addr)
        if self._stderr is None:
            self._stderr = await Channel.connect(self.stderr_addr)

    async def _connected(self) -> tuple[Channel, Channel]:
        if self._stdio is None or self._stderr is None:
            await self.connect()
        assert self._stdio is not None
        assert self._stderr is not None
        return self._stdio, self._stderr

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data` to its stdin, waiting while the process does not read.

        Raises:
            IoError: it no longer reads.
        """
        stdio, _ = await self._connected()
        await stdio.write(data)

    async def write_eof(self) -> None:
        """End its stdin; its output flows on.

        Raises:
            IoError: the connection is closed.
        """
        stdio, _ = await self._connected()
        stdio.write_eof()

    async def stdout_read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes of stdout as soon as there are any; empty at its end.

        Raises:
            IoError: the connection is closed, or the runtime is gone: what came is not all, then.
        """
        stdio, _ = await self._connected()
        return await self._read(stdio, size)

    async def stderr_read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes of stderr as soon as there are any; empty at its end.

        Raises:
            IoError: as `stdout_read`.
        """
        _, stderr = await self._connected()
        return await self._read(stderr, size)

    async def _read(self, channel: Channel, size: int) -> bytes:
        data = await channel.read(size)
        if not data and size:
            await Ending(self.wait).confirm()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks of stdout until its end. Raises as `stdout_read`."""
        while chunk := await self.stdout_read():
            yield chunk

    async def communicate(self, input: bytes | None = None, drain_ms: int = limits.DRAIN_MS) -> tuple[bytes, bytes]:
        """Send `input`, end its stdin, and read both outputs to their ends, all at the same time.

        A process that does not read all of its input is no error. Where the command has ended and something that it
        left behind holds a stream, that is read for `drain_ms` more.

        Raises:
            IoError: a socket is gone, or the runtime is: what came is not all, then.
        """
        stdio, stderr = await self._connected()
        ending = Ending(self.wait, drain_ms)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(ending.watch())
                pouring = group.create_task(_pour(stdio, input or b""))
                errors = group.create_task(_drain(ending.of(stderr.read)))
                output = await _drain(ending.of(stdio.read))
                await errors
                await ending.confirm()
                await ending.first(pouring, watching)
                watching.cancel()
                pouring.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one failure cancels the rest
        return output, errors.result()

    async def wait(self, timeout_ms: int | None = None) -> ExitRecord:
        """How it ended; with `state` "running" where it has not within `timeout_ms` milliseconds.

        Raises:
            InvalidState: the runtime no longer knows it.
            MethodNotFound: the runtime does not offer `wait`.
        """
        return await self._owner.wait(self.id, timeout_ms)

    async def kill(self, grace_ms: int | None = None) -> None:
        """End its whole tree; back when nothing is left.

        Parameters:
            grace_ms: milliseconds from TERM to KILL; None is the runtime's default, 0 KILL at once.
        """
        await self._owner.kill(self.id, grace_ms)

    async def signal(self, signal: int | str, *, group: bool = False) -> None:
        """Send it a signal, by number or name.

        Parameters:
            group: to its whole process group, so also to what it runs: what Ctrl-C does.
        """
        await self._owner.signal(self.id, signal, group=group)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size; it must have been started with `tty`."""
        await self._owner.resize(self.id, rows, columns)

    async def aclose(self) -> None:
        """Leave its sockets. What that means for the process is its `on_disconnect`."""
        for channel in (self._stdio, self._stderr):
            if channel is not None:
                channel.close()
        self._stdio = self._stderr = None


async def _drain(read: Callable[[], Awaitable[bytes]]) -> bytes:
    chunks: list[Any] = []
    while chunk := await read():
        chunks.append(chunk)
    return b"".join(chunks)


async def _pour(channel: Channel, data: bytes) -> None:
    with contextlib.suppress(IoError):
        await channel.write(data)
    with contextlib.suppress(IoError):
        channel.write_eof()
