"""Reading from sockets in tasks, with one epoll for all that wait, and for no longer than there is patience.

A handle of the loop's own for each wait costs six system calls; an entry here costs one (EPOLLONESHOT, epoll(7)), and
what is there already costs none.
"""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import suppress

from fastclaw import limits, network_limits

_ONCE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class Waiting:
    """Raises:
    OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiters: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._on_events)
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
        waiter = self._loop.create_future()
        fds = {sock.fileno(): sock for sock in socks}
        try:
            for fd in fds:
                self._waiters[fd] = waiter
                self._arm(fd)
            return fds[await waiter]
        finally:
            for fd in fds:
                self._waiters.pop(fd, None)

    def _arm(self, fd: int) -> None:
        """The kernel forgets an entry when its socket is closed, and only then."""
        try:
            self._epoll.register(fd, _ONCE)
        except FileExistsError:
            self._epoll.modify(fd, _ONCE)

    def _on_events(self) -> None:
        self._streak = 0
        for fd, _ in self._epoll.poll(0, limits.TUNNEL_EVENTS):
            waiter = self._waiters.get(fd)
            if waiter is not None and not waiter.done():
                waiter.set_result(fd)

    def close(self) -> None:
        """Nobody waits any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()


class Patience:
    """When a connection is given up, if nothing happens before.

    Parameters:
        alarm: around the task that serves it.
        idle_s: how long nothing may move.
    """

    __slots__ = ("_alarm", "_idle_s", "_loop")

    def __init__(self, alarm: asyncio.Timeout, idle_s: float) -> None:
        self._alarm = alarm
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()

    def moved(self) -> None:
        """Something moved."""
        self.only(self._idle_s)

    def off(self) -> None:
        """What comes now has a deadline of its own."""
        if not self._alarm.expired():
            self._alarm.reschedule(None)

    def only(self, seconds: float) -> None:
        """What comes now has so long in all."""
        if not self._alarm.expired():
            self._alarm.reschedule(self._loop.time() + seconds)


async def part(sock: socket.socket, waiting: Waiting) -> None:
    """Close, but give the other side the time to read what it was told: closing while something of it is unread would
    be a reset, which takes the answer away from it (RFC 9112, 9.6)."""
    try:
        with suppress(OSError, TimeoutError):
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(network_limits.EGRESS_PART_MS / 1000):
                while await waiting.receive(sock):
                    pass
    finally:
        sock.close()
