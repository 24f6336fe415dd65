"""A socket before the real engine that notes what is asked, and can change how it is answered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

METHODS = (b"GET ", b"POST ", b"DELETE ", b"PUT ")


class Recorder:
    """Hands on all bytes, and notes each request.

    Attributes:
        url: of the socket.
        asked: `METHOD /path` of each request, without version and query.
    """

    def __init__(self, upstream: str, path: Path) -> None:
        self.url = f"unix://{path}"
        self.asked: list[str] = []
        self._upstream = upstream.removeprefix("unix://")

    def count(self, words: str) -> int:
        """Requests so far that contain these words."""
        return sum(words in one for one in self.asked)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        async with asyncio.TaskGroup() as both:
            requests = both.create_task(self._requests(reader, up_writer))
            answers = both.create_task(_copy(up_reader, writer))
            await asyncio.wait((requests, answers), return_when=asyncio.FIRST_COMPLETED)
            for one in (up_writer, writer):
                one.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(limits.READ_CHUNK_BYTES):
                if data.startswith(METHODS):  # podman-py sends a request's head by itself, or with its body
                    method, target, _ = data.split(b" ", 2)
                    path = target.partition(b"?")[0].decode().partition("/libpod")[2]
                    self.asked.append(f"{method.decode()} {path}")
                up_writer.write(data)
                await up_writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(limits.READ_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def recording(upstream: str, path: Path) -> AsyncIterator[Recorder]:
    """A recorder on a socket at this path. What asks through it has been closed by the end."""
    recorder = Recorder(upstream, path)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(recorder.connection(reader, writer))
        connections.add(task)

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield recorder
        await asyncio.gather(*connections)
    finally:
        server.close()
