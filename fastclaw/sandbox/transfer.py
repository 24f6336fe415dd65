"""Files and directories on their way between this host and a sandbox.

The archive of a directory is made, or unpacked, in a thread while its bytes go over the loop: a piece at a time, each
waiting for the one before, so that neither side holds more than a piece.
"""

import asyncio
import io
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiofiles

from fastclaw.client import FileStream
from fastclaw.environment_limits import CLIENT_FILE_BYTES
from fastclaw.sandbox.host_trees import pack, unpack

if TYPE_CHECKING:
    from concurrent.futures import Future

    from aiofiles.threadpool.binary import AsyncBufferedReader

T = TypeVar("T")


async def send_file(file: "AsyncBufferedReader", stream: FileStream, size: int | None) -> None:
    """Send the content of a file of this host by a writer: `size` bytes, whatever is added meanwhile; None is all."""
    left = CLIENT_FILE_BYTES if size is None else size
    while piece := await file.read(min(left, CLIENT_FILE_BYTES)):
        await stream.write(piece)
        left -= 0 if size is None else len(piece)


async def receive_file(stream: FileStream, path: Path, mode: int) -> None:
    """Have a file of this host be what a reader brings: whole, or as it was."""
    part = path.with_name(f".fastclaw-{secrets.token_hex(8)}.part")
    try:
        async with aiofiles.open(part, "wb", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, mode)) as file:
            async for piece in stream:
                await file.write(piece)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):  # the name of the part says nothing to who asked
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


async def send_directory(directory: Path, stream: FileStream, exclude: Iterable[str]) -> None:
    """Send what is in a directory of this host as an archive, by a writer."""
    bridge = _Bridge()
    sink = _Sink(lambda data: bridge.call(stream.write(data)))

    def work() -> None:
        with io.BufferedWriter(sink, CLIENT_FILE_BYTES) as into:
            pack(directory, into, exclude)

    await bridge.run(work)


async def receive_directory(stream: FileStream, directory: Path) -> None:
    """Unpack what a reader brings into a directory of this host."""
    bridge, pieces = _Bridge(), aiter(stream)

    async def receive() -> bytes:
        return await anext(pieces, b"")

    def work() -> None:
        source = io.BufferedReader(_Source(lambda: bridge.call(receive())), CLIENT_FILE_BYTES)
        unpack(source, directory)
        while source.read(CLIENT_FILE_BYTES):  # what the archive has behind its end
            pass

    await bridge.run(work)


class _Bridge:
    """A thread that has the loop do things for it, one at a time, and is ended with the task that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: Future[Any] | None = None
        self._is_ended = False

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """In the thread: what it brings."""
        asked = self._asked = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if self._is_ended:
            asked.cancel()
        brought: T = asked.result()
        return brought

    async def run(self, work: Callable[[], None]) -> None:
        """Until the thread is through; raises what it raises."""
        thread = self._loop.run_in_executor(None, work)
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._is_ended = True
            if self._asked is not None:
                self._asked.cancel()
            await asyncio.wait((thread,))
            thread.exception()  # which is that it was ended
            raise


class _Sink(io.RawIOBase):
    """What a thread writes."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        for start in range(0, len(data), CLIENT_FILE_BYTES):
            self._send(bytes(data[start : start + CLIENT_FILE_BYTES]))
        return len(data)


class _Source(io.RawIOBase):
    """What a thread reads."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ahead:
            self._ahead = self._receive()
        count = min(len(buffer), len(self._ahead))
        buffer[:count], self._ahead = self._ahead[:count], self._ahead[count:]
        return count
