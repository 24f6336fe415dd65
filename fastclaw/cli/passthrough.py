"""This terminal's stdin, stdout and stderr, passed to and from a process with backpressure in every direction."""

import asyncio
from collections.abc import Awaitable, Callable

from fastclaw.client import RemoteProcess
from fastclaw.errors import IoError
from fastclaw.transport.stdio import ByteSink, ByteSource, OwnedDescriptor


async def feed_stdin(process: RemoteProcess) -> None:
    """Send our stdin to the process until its end, then end the process's. Cancel it when the process has ended."""
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    owned = OwnedDescriptor.input(0)
    source = ByteSource(owned.fd, lambda data: _take(source, chunks, data), lambda: chunks.put_nowait(b""))
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
        owned.release()


def _take(source: ByteSource, chunks: "asyncio.Queue[bytes]", data: bytes) -> None:
    source.pause()  # one chunk at a time: what the process does not take stays where it comes from
    chunks.put_nowait(data)


async def pass_on(read: Callable[[], Awaitable[bytes]], fd: int) -> None:
    """Write what `read` gives to one of our own descriptors until its end. A reader of ours that left is no error."""
    owned = OwnedDescriptor.output(fd)
    sink = ByteSink(owned.fd, lambda is_high: None, lambda: None)
    try:
        while chunk := await read():
            sink.write(bytes(chunk))
            await sink.drain()
    finally:
        sink.close()
        owned.release()
