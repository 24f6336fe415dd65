"""Sockets of clients: taken in, read in tasks within time limits, and closed without losing what was said last."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastclaw import limits, network_limits
from fastclaw.linux.poller import ONCE_READABLE

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Coroutine, Iterator

    from fastclaw.linux.poller import Poller

Done = TypeVar("Done")

logger = logging.getLogger(__name__)


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
            if (
                self._streak > network_limits.TUNNEL_BURST
            ):  # tasks that always find something leave the loop to others as well
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


class Listener:
    """A listening socket, and the tasks that serve its clients: they are cancelled when it is closed.

    Parameters:
        sock: listening (a bound one for datagrams); taken over.
        on_ready: called while clients, or datagrams, wait.
        tasks: gets those of this listener, until they have ended.
    """

    def __init__(self, sock: socket.socket, on_ready: Callable[[Listener], None], tasks: set[Task[Any]]) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.is_closed = False
        self._all_tasks = tasks
        self._tasks: set[Task[Any]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._watch: Callable[[], None] = partial(self._loop.add_reader, sock, on_ready, self)
        self._watch()

    def accept(self, most: int) -> Iterator[tuple[socket.socket, str]]:
        """The clients that wait, `most` at a time, non-blocking, and their addresses; the caller closes them.

        Where no descriptor is left they wait in the backlog, and are asked for again after `limits.ACCEPT_RETRY_MS`.
        """
        for _ in range(most):
            try:
                client, peer = self.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, no memory: the backlog stays ready meanwhile
                logger.warning("no connection can be accepted at the moment: %s", error)
                self._loop.remove_reader(self.socket)
                self._retry = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, self._watch)
                return
            client.setblocking(False)
            yield client, peer[0]

    def spawn(self, work: Coroutine[Any, Any, Done], on_done: Callable[[Done | None], None]) -> None:
        """Run a task.

        Parameters:
            on_done: called with its result; with None where it failed, which is logged, or was cancelled, be it before
                it began.
        """
        task = self._loop.create_task(work)
        self._tasks.add(task)
        self._all_tasks.add(task)
        task.add_done_callback(partial(self._on_end, on_done))

    def _on_end(self, on_done: Callable[[Done | None], None], task: Task[Done]) -> None:
        self._tasks.discard(task)
        self._all_tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a client of the egress proxy could not be served", exc_info=error)
        on_done(None if task.cancelled() or error is not None else task.result())

    def close(self) -> None:
        """Close the socket and cancel the tasks. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self.socket)
        self.socket.close()
        for task in self._tasks:
            task.cancel()


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
