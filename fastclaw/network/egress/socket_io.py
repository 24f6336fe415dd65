"""Reading from clients' sockets in tasks, within time limits, and closing them without losing what was said last."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fastclaw import limits, network_limits
from fastclaw.linux.poller import ONCE_READABLE

if TYPE_CHECKING:
    from fastclaw.linux.poller import Poller


class SocketReader:
    """Lets tasks wait until sockets can be read: one system call for a wait, none for what is there already. A handle
    of the loop's own takes six."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._streak = 0

    async def receive(self, sock: socket.socket) -> bytes:
        """What can be read at once, or the first that comes; empty at the end.

        Raises:
            OSError: it was reset.
        """
        while True:
            try:
                data = sock.recv(limits.HTTP_READ_BYTES)
            except BlockingIOError:
                await self.first(sock)
                continue
            self._streak += 1
            if self._streak > limits.TUNNEL_BURST:  # tasks that always find something leave the loop to others as well
                self._streak = 0
                await asyncio.sleep(0)
            return data

    async def first(self, *socks: socket.socket) -> socket.socket:
        """The first of these that can be read, or has ended. One task at a time waits for a socket.

        Raises:
            OSError: the kernel has no memory for one more.
        """
        waiter: asyncio.Future[socket.socket] = self._poller.loop.create_future()
        try:
            for sock in socks:
                self._poller.watch(sock.fileno(), ONCE_READABLE, partial(_answer, waiter, sock))
            found = await waiter
        finally:
            for sock in socks:
                self._poller.forget(sock.fileno())
        self._streak = 0
        return found


def _answer(waiter: asyncio.Future[socket.socket], sock: socket.socket, _: int) -> None:
    if not waiter.done():
        waiter.set_result(sock)


class IdleTimeout:
    """Ends the task that serves a connection when nothing has moved for too long.

    Parameters:
        timeout: around that task.
        idle_s: how long nothing may move.
    """

    __slots__ = ("_idle_s", "_loop", "_timeout")

    def __init__(self, timeout: asyncio.Timeout, idle_s: float) -> None:
        self._timeout = timeout
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()

    def moved(self) -> None:
        """Something moved: begin anew."""
        self.within(self._idle_s)

    def off(self) -> None:
        """No limit for now: what comes next has a deadline of its own."""
        if not self._timeout.expired():
            self._timeout.reschedule(None)

    def within(self, seconds: float) -> None:
        """What comes next may take so long in all."""
        if not self._timeout.expired():
            self._timeout.reschedule(self._loop.time() + seconds)


async def close_gently(sock: socket.socket, reader: SocketReader) -> None:
    """Close after the peer had time to read the last words: closing with something unread would be a reset, which takes
    the answer away from it (RFC 9112, 9.6)."""
    try:
        with suppress(OSError, TimeoutError):
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(network_limits.EGRESS_PART_MS / 1000):
                while await reader.receive(sock):
                    pass
    finally:
        sock.close()
