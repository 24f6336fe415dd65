"""This terminal's stdin, stdout and stderr, passed to and from a process with backpressure in every direction."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

from fastclaw.client import RemoteProcess
from fastclaw.errors import IoError
from fastclaw.server.stdio import ByteSink, ByteSource, OwnedDescriptor


def leave_stdin_alone() -> None:
    """Have fd 0 stand for nothing, as under ssh -n: nobody here reads what was there, nor changes a flag of it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


@contextmanager
def own_streams() -> Iterator[tuple[int, int, int]]:
    """Non-blocking descriptors for our stdin, stdout and stderr."""
    with ExitStack() as release:  # in reverse: where all are one socket, only the first saw its flag untouched
        streams = OwnedDescriptor.input(0), OwnedDescriptor.output(1), OwnedDescriptor.output(2)
        for owned in streams:
            release.callback(owned.release)
        yield streams[0].fd, streams[1].fd, streams[2].fd


async def feed_stdin(process: RemoteProcess, fd: int) -> None:
    """Send what `fd` gives to the process until its end, then end the process's stdin. Cancel it when the process has
    ended."""
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    source = ByteSource(fd, lambda data: _take(source, chunks, data), lambda: chunks.put_nowait(b""))
    try:
        source.resume()
        while chunk := await chunks.get():
            await process.write(chunk)
            source.resume()
        await process.write_eof()
    except IoError:
        pass  # the process reads no more: nothing to pass on
    finally:
        source.close()


def _take(source: ByteSource, chunks: "asyncio.Queue[bytes]", data: bytes) -> None:
    source.pause()  # one chunk at a time: what the process does not take stays where it comes from
    chunks.put_nowait(data)


async def pass_on(read: Callable[[], Awaitable[bytes]], fd: int, on_left: Callable[[OSError], None]) -> None:
    """Write what `read` gives to `fd` until its end.

    Parameters:
        on_left: called once when nothing can be written to `fd` any more, with why; what still comes is dropped.
    """
    sink = ByteSink(fd, lambda is_high: None, on_left)
    try:
        while chunk := await read():
            sink.write(bytes(chunk))
            await sink.drain()
    finally:
        sink.close()
