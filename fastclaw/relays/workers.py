"""Fastclaw's side of its relay workers: where a process's streams go, and what the workers say of them.

This process holds streams itself as long as its descriptors last; then workers do, each started ahead of need. Where
somebody's streams go is `decisions.placement`'s rule.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.decisions.placement import HERE, Placement
from fastclaw.errors import ExecFailed
from fastclaw.protocol import relays as frames
from fastclaw.relays.streams import LocalStreams, Owner, Pipes, Streams
from fastclaw.transport.child import Child
from fastclaw.transport.outbox import Outbox, close_all

if TYPE_CHECKING:
    from fastclaw.runtime import OnDisconnect
    from fastclaw.transport.listener import ProcessSockets
    from fastclaw.transport.watcher import Watcher

logger = logging.getLogger(__name__)


class RemoteStreams:
    """Held by a worker."""

    __slots__ = ("_has_asked", "_id", "_is_open", "_may_have_output", "_owner", "_worker", "drained")

    def __init__(self, owner: Owner, worker: Worker, id: int) -> None:
        self._owner, self._worker, self._id = owner, worker, id
        self._is_open = True
        self._has_asked = False
        self.drained = False
        self._may_have_output = True

    def on_event(self, kind: int, value: int) -> None:
        """What the worker says."""
        if kind == frames.DRAINED:
            self.drained = True
            self._owner.on_drained()
        elif kind == frames.GAP:
            self._owner.on_gap()
        elif kind == frames.ABANDONED:
            self._owner.on_abandoned()
        elif kind == frames.PENDING:
            self._may_have_output = bool(value)

    def on_lost(self) -> None:
        """The worker is gone, and what it held with it: the process is ended, as when a client abandons it."""
        self._is_open = False
        self._owner.on_gap()
        self._owner.on_abandoned()

    def has_pending_output(self) -> bool:
        """As far as the worker has said. It is asked once, and until it has answered there may be some."""
        if not self._has_asked and self._is_open:
            self._has_asked = True
            self._worker.order(frames.ASK, self._id)
        return self._may_have_output

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._worker.forget(self._id)


class Worker:
    """One relay worker.

    Attributes:
        ready: resolves once it takes orders; fails with `ExecFailed` where it ended before.
    """

    def __init__(self, number: int, place: Relays) -> None:
        self.number = number
        self._place = place
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.held: dict[int, RemoteStreams] = {}
        self._last_id = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "fastclaw.relays.worker", str(theirs.fileno())]
        with theirs:
            try:
                self._child = Child(argv, theirs.fileno(), quiet=True)
            except OSError:
                self._socket.close()
                raise
        self._socket.setblocking(False)
        self._orders = Outbox(self._socket, self._loop)
        self._loop.add_reader(self._socket.fileno(), self._on_event)

    def open(self, owner: Owner, sockets: ProcessSockets, pipes: Pipes, on_disconnect: OnDisconnect) -> RemoteStreams:
        """Hand streams over; the descriptors are closed here in any case.

        Raises:
            ExecFailed: `overloaded`: the worker does not keep up.
        """
        self._last_id += 1
        id = self._last_id
        fds = [sockets.stdio.fd, sockets.stderr.fd, pipes.stdout, pipes.stderr]
        if pipes.stdin is not None:
            fds.append(pipes.stdin)
        opened = frames.Opened(id, on_disconnect, sockets.stdio.path, sockets.stderr.path)
        try:
            self._orders.send(frames.opening(opened), fds)
        except ExecFailed:
            self._place.freed(self.number)
            sockets.unlink()
            raise
        streams = self.held[id] = RemoteStreams(owner, self, id)
        return streams

    def order(self, kind: int, id: int) -> None:
        """An order about streams that it holds. One that has no room is dropped only where it is a question."""
        with suppress(ExecFailed):
            self._orders.send(frames.order(kind, id), [])

    def forget(self, id: int) -> None:
        """Have streams closed."""
        if self.held.pop(id, None) is not None:
            self.order(frames.CLOSE, id)
            self._place.freed(self.number)

    def _on_event(self) -> None:
        try:
            frame = self._socket.recv(frames.EVENT.size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            frame = b""
        if len(frame) != frames.EVENT.size:
            self._lost()
            return
        kind, id, value = frames.EVENT.unpack(frame)
        if kind == frames.READY:
            self.ready.set_result(None)
        elif (streams := self.held.get(id)) is not None:
            streams.on_event(kind, value)

    def _lost(self) -> None:
        logger.error("a relay worker ended; the %d processes whose streams it held are killed", len(self.held))
        self._close()
        if not self.ready.done():
            self.ready.set_exception(ExecFailed("a relay worker ended at once", "overloaded"))
        held, self.held = self.held, {}
        self._place.lost(self)
        for streams in held.values():
            streams.on_lost()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._orders.close()
            self._socket.close()

    async def aclose(self) -> None:
        """Close it: it closes what it holds and ends; one that does not is killed."""
        self._close()
        await self._child.wait_ended(limits.RELAY_EXIT_MS / 1000)


class Relays:
    """Parameters:
    watcher: for the streams held here.
    placement: how many go where.
    """

    def __init__(self, watcher: Watcher, placement: Placement) -> None:
        self._watcher = watcher
        self._placement = placement
        self._workers: dict[int, Worker] = {}
        self._gone: list[Worker] = []

    @property
    def has_room(self) -> bool:
        """Whether the next streams have a place that is ready. A worker is started before it is needed."""
        if self._placement.wants_worker:
            self._add_worker()
        place = self._placement.next_place()
        return place == HERE or (place is not None and self._workers[place].ready.done())

    async def make_room(self) -> None:
        """Wait for a worker that is on its way.

        Raises:
            ExecFailed: `overloaded`: there are as many as there may be, or none can be started.
        """
        while not self.has_room:
            place = self._placement.next_place()
            if place is None:
                raise ExecFailed("no descriptors for one more process; try again later", "overloaded")
            await asyncio.shield(self._workers[place].ready)

    def place(self, owner: Owner, sockets: ProcessSockets, pipes: Pipes, on_disconnect: OnDisconnect) -> Streams:
        """Find a place for the streams of a process; what is given is taken over.

        Raises:
            ExecFailed: `overloaded`.
        """
        place = self._placement.next_place()
        if place is None:
            sockets.close()
            close_all(fd for fd in pipes if fd is not None)
            raise ExecFailed("no descriptors for one more process; try again later", "overloaded")
        self._placement.take(place)
        if place != HERE:
            return self._workers[place].open(owner, sockets, pipes, on_disconnect)
        return _Here(self, owner, sockets, pipes, self._watcher, on_disconnect)

    def _add_worker(self) -> None:
        number = self._placement.add_worker()
        try:
            self._workers[number] = Worker(number, self)
        except OSError as error:
            self._placement.remove_worker(number)
            logger.warning("no relay worker can be started: %s", error)

    def freed(self, place: int) -> None:
        """Streams were closed."""
        self._placement.give_back(place)

    def lost(self, worker: Worker) -> None:
        """A worker is gone."""
        self._placement.remove_worker(worker.number)
        self._gone.append(self._workers.pop(worker.number))

    def health(self) -> dict[str, object]:
        """How many streams are held where."""
        return self._placement.counts()

    async def aclose(self) -> None:
        """End the workers. Everything that they hold has been closed before, or is closed now."""
        workers, self._workers = [*self._workers.values(), *self._gone], {}
        await asyncio.gather(*(worker.aclose() for worker in workers))


class _Here(LocalStreams):
    """Held here, and counted."""

    __slots__ = ("_is_open", "_relays")

    def __init__(
        self,
        relays: Relays,
        owner: Owner,
        sockets: ProcessSockets,
        pipes: Pipes,
        watcher: Watcher,
        on_disconnect: OnDisconnect,
    ) -> None:
        super().__init__(owner, sockets, pipes, watcher, on_disconnect)
        self._relays = relays
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            super().close()
            self._relays.freed(HERE)
