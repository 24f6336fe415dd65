"""A file or an archive that goes by a socket: what comes of it is known at its end."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from msgspec import UNSET

from fastclaw import environment_limits
from fastclaw.client.remote_process import RemoteProcess
from fastclaw.errors import REASONS, IoError
from fastclaw.processes.file_helper import Outcome, read_outcome
from fastclaw.runtime import ExecResult

if TYPE_CHECKING:
    from fastclaw.client.runtime_client import RuntimeClient


_NONE = Outcome(-1, 0, 0, "", "")
"""Of one that did not get to say it."""


class FileStream:
    """Bytes of a file or an archive on their way; a context manager.

        async with await box.file_reader("big") as stream:
            async for chunk in stream: ...

        async with await box.file_writer("big", size=5) as stream:
            await stream.write(b"12345")

    Left without an exception, a writer is ended in order and its outcome waited for; else what is half written is taken
    back, as far as the contract says so.
    """

    def __init__(self, client: "RuntimeClient", started: ExecResult, path: str, *, writes: bool) -> None:
        self._process = RemoteProcess(client, started)
        self._path = path
        self._writes = writes
        self._outcome: Outcome | None = None

    def __repr__(self) -> str:
        return f"<FileStream {'to' if self._writes else 'from'} {self._path}>"

    async def __aenter__(self) -> Self:
        try:
            await self._process.connect()
        except BaseException:  # who does not get in is not led out either
            await self.aclose()
            raise
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._writes:
                await self.finish()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Leave it. What is not at its end then is ended: of a writer, what is half written is taken back."""
        try:
            if self._outcome is None:
                await self._process.kill()
                self._outcome = _NONE
        finally:
            await self._process.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its bytes, to the end.

        Raises:
            IoError: it could not be read to its end; what came is not all.
        """
        while chunk := await self._process.stdout_read(environment_limits.CLIENT_FILE_BYTES):
            yield chunk
        await self._end()

    async def read(self, size: int = environment_limits.CLIENT_FILE_BYTES) -> bytes:
        """All of it; raises as iterating does. `size`: how many bytes that will be, if that is known."""
        data = await self._process.stdout_read_all(max(size, 1))
        await self._end()
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send more. What comes of it is said by `finish`: a writer that has failed takes no more, and that is no error
        here."""
        try:
            if len(data) > environment_limits.CLIENT_FILE_BYTES:
                await self._process.write_all(data)
            else:
                await self._process.write(data)
        except IoError:
            if self._outcome is None:
                await self._end()

    async def finish(self) -> Outcome:
        """End it, and wait until everything is written: how much, and of an archive in how many members.

        Raises:
            IoError: with `reason`, `errno` and `path`.
        """
        if self._outcome is None:
            with contextlib.suppress(IoError):  # it has ended already, and says why
                await self._process.write_eof()
            await self._end()
        assert self._outcome is not None
        return self._outcome

    async def _end(self) -> None:
        said = b"".join([chunk async for chunk in self._stderr()])
        record = await self._process.wait()
        self._outcome = outcome = read_outcome(said) or _NONE
        if record.exit_code == 0:
            return
        told = {} if record.error is UNSET else record.error
        reason = str(told.get("reason"))
        about = f"{self._path}: {outcome.name}" if outcome.name else self._path
        why = reason if reason in REASONS else f"the helper did not get to its end ({record.reason})"
        more = {"name": outcome.name} if outcome.name else {}
        data = {
            "errno": told.get("errno"),
            "path": self._path,
            "written": outcome.size,
            "members": outcome.told,
            **more,
        }
        raise IoError(f"{about}: {why}", reason if reason in REASONS else None, **data)

    async def _stderr(self) -> AsyncIterator[bytes]:
        while chunk := await self._process.stderr_read():
            yield chunk


async def all_of(stream: FileStream, size: int = environment_limits.CLIENT_FILE_BYTES) -> bytes:
    """What a reader brings. `size`: how many bytes are expected."""
    async with stream:
        return await stream.read(size)


async def put_all(stream: FileStream, data: bytes) -> Outcome:
    """Write all of it, by a writer."""
    async with stream:
        await stream.write(data)
        return await stream.finish()
