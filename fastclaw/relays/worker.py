"""A relay worker: holds streams of processes for fastclaw, in a process with descriptors of its own.

Started by `workers.py` as `python -m fastclaw.relays.worker FD`; FD is its end of a SOCK_SEQPACKET pair. When the other
end closes, however fastclaw ended, it closes everything and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from array import array
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.protocol import relays as frames
from fastclaw.relays.streams import LocalStreams, Pipes
from fastclaw.transport import loop
from fastclaw.transport.host import raise_file_limit
from fastclaw.transport.listener import Listener, ProcessSockets
from fastclaw.transport.outbox import Outbox
from fastclaw.transport.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

_FDS = socket.CMSG_SPACE(5 * array("i").itemsize)


class _Held:
    """The streams of one process, and who is told of them."""

    __slots__ = ("_has_gap", "_id", "_tell", "streams")

    def __init__(
        self,
        opened: frames.Opened,
        fds: list[int],
        watcher: Watcher,
        tell: Callable[[int, int, int], None],
    ) -> None:
        self._id, self._tell = opened.id, tell
        self._has_gap = False
        stdio, stderr, output, errors, *stdin = fds
        sockets = ProcessSockets(Listener(stdio, opened.stdio_path), Listener(stderr, opened.stderr_path))
        pipes = Pipes(stdin[0] if stdin else None, output, errors)
        self.streams = LocalStreams(self, sockets, pipes, watcher, opened.on_disconnect)

    def on_abandoned(self) -> None:
        self._tell(frames.ABANDONED, self._id, 0)

    def on_gap(self) -> None:
        if not self._has_gap:
            self._has_gap = True
            self._tell(frames.GAP, self._id, 0)

    def on_drained(self) -> None:
        self._tell(frames.DRAINED, self._id, 0)


class RelayWorker:
    """Parameters:
    orders: connected to fastclaw.
    """

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._watcher = Watcher()
        self._events = Outbox(orders, self._watcher.loop)
        self._held: dict[int, _Held] = {}
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until the other end closes."""
        reader = self._watcher.loop
        reader.add_reader(self._orders.fileno(), self._on_order)
        self._tell(frames.READY, 0, os.getpid())
        await self._ended.wait()
        reader.remove_reader(self._orders.fileno())
        self._events.close()
        for held in self._held.values():
            held.streams.close()
        self._watcher.close()

    def _tell(self, kind: int, id: int, value: int) -> None:
        try:
            self._events.send(frames.event(kind, id, value), [])
        except ExecFailed:  # fastclaw has not read thousands of them: it hangs, and an event that is lost lies
            self._ended.set()

    def _on_order(self) -> None:
        frame, fds = receive(self._orders)
        if not frame:
            self._ended.set()
            return
        order = frames.parse(frame, len(fds))
        if isinstance(order, frames.Opened):
            self._held[order.id] = _Held(order, fds, self._watcher, self._tell)
        elif order[1] in self._held:
            self._obey(*order)

    def _obey(self, kind: int, id: int) -> None:
        if kind == frames.CLOSE:
            self._held.pop(id).streams.close()
        else:
            self._tell(frames.PENDING, id, self._held[id].streams.has_pending_output())


def receive(orders: socket.socket) -> tuple[bytes, list[int]]:
    """One order with its descriptors; empty at the end."""
    try:
        frame, extras, _, _ = orders.recvmsg(limits.RELAY_FRAME_BYTES, _FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    fds = array("i")
    for _, _, data in extras:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return frame, list(fds)


async def _main(fd: int) -> None:
    with socket.socket(fileno=fd) as orders:
        await RelayWorker(orders).run()


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with fastclaw and not before
    raise_file_limit()
    loop.run(_main(int(sys.argv[1])))
