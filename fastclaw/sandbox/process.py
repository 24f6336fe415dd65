"""A process that goes on in a sandbox, with its streams, much as asyncio's own (`asyncio.subprocess.Process`)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Self

from fastclaw import limits
from fastclaw.client import RemoteProcess
from fastclaw.errors import InvalidState, IoError
from fastclaw.sandbox.done import Done, SandboxGone, done_of
from fastclaw.sandbox.presence import Presence
from fastclaw.sandbox.raised import raised
from fastclaw.sandbox.units import milliseconds

_LINE_BYTES = 64 * limits.KIB
"""The longest line that `readline` waits for, as asyncio's StreamReader has it: a longer one comes in pieces."""


class Input:
    """Stdin of a process."""

    def __init__(self, remote: RemoteProcess) -> None:
        self._remote = remote

    async def write(self, data: bytes | str) -> None:
        """Send all of it; waits while the process does not read.

        Raises:
            BrokenPipeError: the process reads no more.
        """
        try:
            await self._remote.write(data.encode() if isinstance(data, str) else data)
        except IoError as error:
            raise BrokenPipeError(str(error)) from error

    async def close(self) -> None:
        """End it: the process reads EOF. Its output flows on."""
        try:
            await self._remote.write_eof()
        except IoError as error:
            raise BrokenPipeError(str(error)) from error


class Output:
    """Stdout or stderr of a process: iterate over it for its lines, or read what there is."""

    def __init__(self, read: Callable[[int], Awaitable[bytes]], presence: Presence) -> None:
        self._take = read
        self._presence = presence
        self._ahead = b""

    async def _read(self, size: int) -> bytes:
        async with self._presence.watched():
            return await self._take(size)

    async def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes as soon as there are any, none at the end; or with -1 all, to the end."""
        if size < 0:
            pieces = [piece async for piece in self._pieces()]
            return b"".join(pieces)
        ahead, self._ahead = self._ahead[:size], self._ahead[size:]
        return ahead or await self._read(min(size, limits.CLIENT_READ_BYTES))

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self.read(limits.CLIENT_READ_BYTES):
            yield piece

    async def readline(self) -> bytes:
        """One line with its newline, or less at the end, or where a line is longer than 64 KiB; none at the end."""
        while b"\n" not in self._ahead and len(self._ahead) < _LINE_BYTES:
            piece = await self._read(limits.CLIENT_READ_BYTES)
            if not piece:
                break
            self._ahead += piece
        end = self._ahead.find(b"\n", 0, _LINE_BYTES) + 1 or min(len(self._ahead), _LINE_BYTES)
        line, self._ahead = self._ahead[:end], self._ahead[end:]
        return line

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its lines."""
        while line := await self.readline():
            yield line


class Process:
    """A process that runs in a sandbox. As a context manager it is killed with its tree where it is left.

    Attributes:
        id: its name at the host.
        cmd: what was asked for.
        stdin, stdout, stderr: its streams; with a terminal, stdout has everything.
    """

    def __init__(self, remote: RemoteProcess, cmd: list[str], presence: Presence) -> None:
        self._remote = remote
        self._presence = presence
        self.id = remote.id
        self.cmd = cmd
        self.stdin = Input(remote)
        self.stdout = Output(remote.stdout_read, presence)
        self.stderr = Output(remote.stderr_read, presence)
        self._done: Done | None = None

    def __repr__(self) -> str:
        ended = "" if self._done is None else f" {self._done.ending}"
        return f"<Process {self.id} {' '.join(self.cmd)[:60]!r}{ended}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait(self, timeout: float | None = None) -> Done:
        """How it ended: without output, which is what its streams give.

        Parameters:
            timeout: seconds to wait; the process goes on.

        Raises:
            TimeoutError: it runs still.
            SandboxGone: it has ended with its sandbox.
        """
        async with self._presence.watched():
            record = await self._remote.wait(None if timeout is None else milliseconds(timeout))
        if record.state == "running":
            raise TimeoutError(f"{self!r} runs still after {timeout} s")
        self._done = done_of(record)
        return await self._presence.check(self._done)

    async def kill(self, grace: float | None = None) -> None:
        """End it with its whole tree; back when nothing is left of it.

        Parameters:
            grace: seconds from TERM to KILL; None is the host's default, 0 is KILL at once.
        """
        async with self._presence.watched():
            await self._remote.kill(None if grace is None else milliseconds(grace))

    async def signal(self, signal: int | str, *, group: bool = False) -> None:
        """Send it a signal by number or name. `group`: to all of its process group, as Ctrl-C does."""
        async with self._presence.watched():
            await self._remote.signal(signal, group=group)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size."""
        async with self._presence.watched():
            await self._remote.resize(rows, columns)

    async def leave(self) -> None:
        """Leave its streams, and the process, or what it left running, as it is (`on_disconnect`). Idempotent."""
        await self._remote.aclose()

    async def close(self) -> None:
        """Kill it with its tree, unless nothing of it is left, and leave its streams. Idempotent."""
        try:
            with suppress(SandboxGone, InvalidState), raised():  # nothing of it is left
                await self._remote.kill()
        finally:
            await self._remote.aclose()
