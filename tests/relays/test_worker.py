"""A relay worker by itself, with a test at the other end of its socket."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.protocol import relays as frames
from fastclaw.relays.worker import RelayWorker, receive
from fastclaw.transport.listener import SocketDirectory
from tests.balance import balanced
from tests.relays.rig import Owned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Other:
    """Fastclaw's end."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self._loop = asyncio.get_running_loop()

    async def hears(self) -> tuple[int, int, int]:
        """The next event."""
        async with asyncio.timeout(20):
            frame = await self._loop.sock_recv(self.socket, frames.EVENT.size)
        kind, id, value = frames.EVENT.unpack(frame)
        return kind, id, value

    def opens(self, id: int, owned: Owned, directory: SocketDirectory) -> None:
        """Hand over streams, as fastclaw does."""
        pipes = owned.set_up(directory, f"p-{id}")
        assert pipes.stdin is not None
        fds = [owned.sockets.stdio.fd, owned.sockets.stderr.fd, pipes.stdout, pipes.stderr, pipes.stdin]
        opened = frames.Opened(id, "eof", owned.sockets.stdio.path, owned.sockets.stderr.path)
        socket.send_fds(self.socket, [frames.opening(opened)], fds)
        for fd in fds:
            os.close(fd)


@asynccontextmanager
async def a_worker() -> AsyncIterator[tuple[Other, SocketDirectory]]:
    """In this very process; ended by the end of its socket, as always."""
    directory = SocketDirectory()
    async with balanced():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            task = asyncio.create_task(RelayWorker(theirs).run())
            yield Other(ours), directory
            ours.close()
            await asyncio.wait_for(task, 20)
        assert list(directory.path.iterdir()) == []
    directory.remove()


async def test_it_says_who_it_is_and_what_becomes_of_streams() -> None:
    async with a_worker() as (other, directory):
        assert await other.hears() == (frames.READY, 0, os.getpid())
        owned = Owned()
        other.opens(5, owned, directory)
        await owned.stdout.write(b"x")
        other.socket.send(frames.order(frames.ASK, 5))
        assert await other.hears() == (frames.PENDING, 5, 1)
        clients = [owned.connect(listener.path) for listener in owned.sockets]
        owned.end()
        for client in clients:
            await client.read_to_end()
        assert await other.hears() == (frames.DRAINED, 5, 0)
        other.socket.send(frames.order(frames.CLOSE, 5))
        other.socket.send(frames.order(frames.ASK, 5))  # of nobody any more
        for client in clients:
            client.close()


async def test_it_closes_all_it_holds_at_the_end() -> None:
    async with a_worker() as (other, directory):
        await other.hears()
        owned = Owned()
        other.opens(1, owned, directory)
        client = owned.connect(owned.sockets.stdio.path)
        await owned.stdout.write(b"x")
        assert await client.read() == b"x"
        client.close()
        owned.end()


@pytest.mark.parametrize("frame", [b"", b"x"])
async def test_what_was_received(frame: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        if frame:
            ours.send(frame)
        ours.close()
        assert receive(theirs) == (frame, [])
