"""An endpoint with a pretend process behind it: we hold the process's ends of the pipes, and connect as its clients."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastclaw.linux.poller import Poller
from fastclaw.processes.endpoint import Endpoint
from fastclaw.processes.lane import StreamsOwner
from fastclaw.processes.listeners import SocketDirectory
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastclaw.runtime import OnDisconnect

DEADLINE_S = 20


async def _ready(add: Callable[..., None], remove: Callable[[int], bool], fd: int) -> None:
    came = asyncio.Event()
    add(fd, came.set)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await came.wait()
    finally:
        remove(fd)


class PipeEnd:
    """The process's side of one pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._loop = asyncio.get_running_loop()

    async def read(self, size: int = 65536) -> bytes:
        """What is there, or b'' at the end."""
        while True:
            try:
                return os.read(self.fd, size)
            except BlockingIOError:
                await _ready(self._loop.add_reader, self._loop.remove_reader, self.fd)

    async def write(self, data: bytes) -> None:
        """All of it. Raises BrokenPipeError."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                await _ready(self._loop.add_writer, self._loop.remove_writer, self.fd)

    def fill(self) -> int:
        """Write until it is full; how much went in."""
        written = 0
        while True:
            try:
                written += os.write(self.fd, b"f" * 65536)
            except BlockingIOError:
                return written

    async def flood(self) -> None:
        """Write until nothing more is taken for twenty turns of the loop."""
        quiet = 0
        while quiet < 20:
            quiet = 0 if self.fill() else quiet + 1
            await asyncio.sleep(0)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Client:
    """A client of a process's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def read(self, size: int = 65536) -> bytes:
        """What is there, or b'' at the end."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._loop.sock_recv(self.socket, size)

    async def read_exactly(self, size: int) -> bytes:
        """So many bytes; fewer only at the end."""
        found = bytearray()
        while len(found) < size and (data := await self.read(size - len(found))):
            found += data
        return bytes(found)

    async def read_to_end(self) -> bytes:
        """Everything."""
        found = bytearray()
        while data := await self.read(1 << 20):
            found += data
        return bytes(found)

    async def send(self, data: bytes) -> None:
        """All of it."""
        async with asyncio.timeout(DEADLINE_S):
            await self._loop.sock_sendall(self.socket, data)

    def fill(self) -> int:
        """Send until it is full; how much went in."""
        sent = 0
        while True:
            try:
                sent += self.socket.send(b"c" * 65536)
            except BlockingIOError:
                return sent

    def end_input(self) -> None:
        """Half-close."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Full close."""
        self.socket.close()


class EndpointRig(StreamsOwner):
    """Owns an endpoint, and holds its clients and the process's ends of the pipes.

    Attributes:
        stdin, stdout: the process's ends.
        abandoned, gaps, drained, changes: how often the endpoint said so; the last: that a client came or left.
        then: called when it says that it is drained.
    """

    def __init__(self, directory: SocketDirectory, on_disconnect: OnDisconnect, has_stdin: bool) -> None:
        self.abandoned = 0
        self.gaps = 0
        self.changes = 0
        self.then: Callable[[], None] = lambda: None
        self.drained = 0
        self.poller = Poller()
        self._sockets = directory.open("p")
        self.path = self._sockets.stdio.path
        self._clients: list[Client] = []
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        output, stdout = os.pipe2(flags)
        stdin, input_fd = os.pipe2(flags) if has_stdin else (-1, None)
        self.stdin, self.stdout = PipeEnd(stdin), PipeEnd(stdout)
        self.endpoint = Endpoint(
            self, self._sockets.stdio, output, input_fd, self.poller, on_disconnect, self.on_change
        )

    def on_abandoned(self) -> None:
        self.abandoned += 1

    def on_gap(self) -> None:
        self.gaps += 1

    def on_change(self) -> None:
        """For the endpoint."""
        if self.endpoint.drained and not self.drained:
            self.drained = 1
            self.then()
        else:
            self.changes += 1

    def connect_blind(self) -> Client:
        """A client that is in the backlog, not served yet."""
        sock = socket.socket(socket.AF_UNIX)
        self._clients.append(Client(sock))
        sock.connect(self.path)
        sock.setblocking(False)
        return self._clients[-1]

    async def connect(self) -> Client:
        """A client that is being served."""
        client = self.connect_blind()
        await until(lambda: self.endpoint.connected)
        return client

    async def vacant(self) -> None:
        """Wait until nobody is being served."""
        await until(lambda: not self.endpoint.connected)

    def close(self) -> None:
        """Everything."""
        self.endpoint.close()
        self._sockets.stderr.close()
        self.poller.close()
        for client in self._clients:
            client.close()
        self.stdin.close()
        self.stdout.close()


@asynccontextmanager
async def endpoint(on_disconnect: OnDisconnect = "eof", *, has_stdin: bool = True) -> AsyncIterator[EndpointRig]:
    """An endpoint for one test."""
    directory = SocketDirectory()
    rig = EndpointRig(directory, on_disconnect, has_stdin)
    try:
        yield rig
    finally:
        rig.close()
        directory.close()
