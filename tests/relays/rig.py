"""Streams of a pretend process, held wherever a test wants them: we hold its ends of the pipes and are its clients."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastclaw.decisions.placement import Placement
from fastclaw.relays.streams import Pipes
from fastclaw.relays.workers import Relays
from fastclaw.transport.listener import SocketDirectory
from fastclaw.transport.watcher import Watcher
from tests.transport.rig import Client, PipeEnd, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.relays.streams import Streams
    from fastclaw.runtime import OnDisconnect


class Owned:
    """One process's streams, and what was said of them.

    Attributes:
        stdin, stdout, stderr: the process's ends.
        said: `drained`, `abandoned`, `gap`, in order.
    """

    streams: Streams

    def __init__(self) -> None:
        self.said: list[str] = []
        self.clients: list[Client] = []

    def on_drained(self) -> None:
        self.said.append("drained")

    def on_abandoned(self) -> None:
        self.said.append("abandoned")

    def on_gap(self) -> None:
        self.said.append("gap")

    def set_up(self, directory: SocketDirectory, name: str) -> Pipes:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        stdin, ours_in = os.pipe2(flags)
        ours_out, stdout = os.pipe2(flags)
        ours_err, stderr = os.pipe2(flags)
        self.stdin, self.stdout, self.stderr = PipeEnd(stdin), PipeEnd(stdout), PipeEnd(stderr)
        self.sockets = directory.open(name)
        return Pipes(ours_in, ours_out, ours_err)

    def connect(self, path: str) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        self.clients.append(Client(sock))
        return self.clients[-1]

    async def hears(self, word: str) -> None:
        await until(lambda: word in self.said)

    def end(self) -> None:
        """As a process does that ends."""
        for end in (self.stdin, self.stdout, self.stderr):
            end.close()


class Yard:
    """A place for streams."""

    def __init__(self, placement: Placement) -> None:
        self._watcher = Watcher()
        self.directory = SocketDirectory()
        self.relays = Relays(self._watcher, placement)
        self._owned: list[Owned] = []

    async def place(self, on_disconnect: OnDisconnect = "eof") -> Owned:
        if not self.relays.has_room:
            await self.relays.make_room()
        owned = Owned()
        pipes = owned.set_up(self.directory, f"p-{len(self._owned)}")
        self._owned.append(owned)
        owned.streams = self.relays.place(owned, owned.sockets, pipes, on_disconnect)
        return owned

    async def close(self) -> None:
        for owned in self._owned:
            if hasattr(owned, "streams"):
                owned.streams.close()
            owned.end()
            for client in owned.clients:
                client.close()
        await self.relays.aclose()
        self._watcher.close()
        self.directory.remove()


@asynccontextmanager
async def a_yard(here: int, each: int = 100, workers: int = 1) -> AsyncIterator[Yard]:
    """With room for so many here, and in each of so many workers."""
    yard = Yard(Placement(here, each, workers))
    try:
        async with asyncio.timeout(60):
            yield yard
    finally:
        await yard.close()
