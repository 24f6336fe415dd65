"""Reading on after a command's exit: for a while, where something that it left behind holds the stream open.

Knows how long and how much; nothing of sockets or of processes.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fastclaw import limits
from fastclaw.errors import InvalidState, MethodNotFound

Read = Callable[[], Awaitable[bytes]]


class Drained:
    """One stream, which is at its end too when its time is over.

    From the exit on, waiting for output counts, and may take the drain's time in all. What its reader does with what it
    has does not count: what a command wrote before its end reaches a slow reader too. And whatever comes, no more is
    read than a pipe and two sockets hold.

    Parameters:
        read: brings the next bytes, none at the end. May be cancelled, and loses nothing by it.
        drain_s: seconds.
    """

    def __init__(self, read: Read, drain_s: float) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._left_s = drain_s
        self._left_bytes = limits.CLIENT_DRAIN_BYTES
        self._has_exited = False
        self._waiting: asyncio.Timeout | None = None
        self._since = 0.0

    def on_exit(self) -> None:
        """The command has ended."""
        self._has_exited = True
        self._since = self._loop.time()
        if self._waiting is not None:
            self._waiting.reschedule(self._since + self._left_s)

    async def read(self) -> bytes:
        """The next bytes; empty at the end, or when nothing more is waited for."""
        if self._left_bytes <= 0:
            return b""
        self._since = self._loop.time()
        try:
            async with asyncio.timeout(self._left_s if self._has_exited else None) as self._waiting:
                data = await self._read()
        except TimeoutError:
            self._left_bytes = 0
            return b""
        finally:
            self._waiting = None
        if self._has_exited:
            self._left_s = max(0.0, self._left_s - (self._loop.time() - self._since))
            self._left_bytes -= len(data)
        return data


class Ending:
    """When reading a process's streams is over: at their ends, or a while after the exit.

    Parameters:
        wait: asks the runtime for the exit; with 0, whether it has come.
        drain_ms: milliseconds.
    """

    def __init__(self, wait: Callable[[int | None], Awaitable[object]], drain_ms: int = limits.DRAIN_MS) -> None:
        self._wait = wait
        self._drain_s = drain_ms / 1000
        self._streams: list[Drained] = []
        self._is_known = False

    def of(self, read: Read) -> Read:
        """The same stream, which is at its end too when its time is over."""
        stream = Drained(read, self._drain_s)
        self._streams.append(stream)
        return stream.read

    async def watch(self) -> None:
        """Wait for the exit. To be cancelled when the streams have ended; a runtime that cannot tell never says so.

        Raises:
            IoError: the runtime is gone.
        """
        with contextlib.suppress(MethodNotFound, InvalidState):
            await self._wait(None)
            self._is_known = True
            for stream in self._streams:
                stream.on_exit()

    async def first(self, pouring: asyncio.Task[None], watching: asyncio.Task[None]) -> None:
        """Return when all input is through or the command has ended, which reads no more then."""
        await asyncio.wait((pouring, watching), return_when=asyncio.FIRST_COMPLETED)
        if not self._is_known:
            await asyncio.wait((pouring,))

    async def confirm(self) -> None:
        """To be awaited when the streams have ended: an answer that comes now says that the runtime has lived as long,
        and that its end is not what has ended them.

        Raises:
            IoError: the runtime is gone: there may have been more output.
        """
        if not self._is_known:
            with contextlib.suppress(MethodNotFound, InvalidState):
                await self._wait(0)
