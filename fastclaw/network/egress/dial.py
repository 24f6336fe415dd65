"""A connection to one of several addresses, each of which has been checked. Nothing is resolved here.

As in RFC 8305 (happy eyeballs): the next address is tried when the one before has failed, or has been silent for a
while; the first that answers wins.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.network.egress.policy import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.network.egress.addresses import Address

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


class Dialled(NamedTuple):
    """A connection.

    Parameters:
        address: where it leads: a peer that has reset it already has no name any more (getpeername(2)). None: where a
            proxy outside takes it.
        is_proxy: that proxy has not been asked for anything yet.
    """

    socket: socket.socket
    address: Address | None
    is_proxy: bool = False


async def dial(addresses: Sequence[Address], port: int, timeout_s: float) -> Dialled:
    """The first connection that comes about: non-blocking, with TCP_NODELAY. The caller closes it.

    Parameters:
        addresses: best first.
        timeout_s: for all of it.

    Raises:
        Refused: `unreachable` or `connect_timeout`.
    """
    race = _Race(addresses, port, timeout_s)
    try:
        race.start()
        await race.ended
        return race.take()
    finally:
        race.close()


class _Race:
    """Owns every socket until one is taken, and its timers."""

    __slots__ = ("_deadline", "_failure", "_loop", "_next", "_port", "_running", "_timeout_s", "_waiting", "ended")

    def __init__(self, addresses: Sequence[Address], port: int, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[socket.socket] = self._loop.create_future()
        self._waiting = list(reversed(addresses))
        self._port, self._timeout_s = port, timeout_s
        self._running: dict[socket.socket, Address] = {}
        self._failure = "there is no address to connect to"
        self._next: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._try_next()
        if not self.ended.done():
            self._deadline = self._loop.call_later(self._timeout_s, self._on_deadline)

    def take(self) -> Dialled:
        """The winner, which is the caller's from now on."""
        winner = self.ended.result()
        return Dialled(winner, self._running.pop(winner))

    def close(self) -> None:
        for timer in (self._next, self._deadline):
            if timer is not None:
                timer.cancel()
        for loser in self._running:
            self._loop.remove_writer(loser.fileno())
            loser.close()
        self._running.clear()

    def _try_next(self) -> None:
        """Begin with one address; with the one after it too where it fails at once."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._waiting and not self._begin(self._waiting.pop()):
            pass
        if self.ended.done():
            return
        if self._waiting:
            self._next = self._loop.call_later(network_limits.EGRESS_NEXT_ADDRESS_MS / 1000, self._try_next)
        elif not self._running:
            self.ended.set_exception(Refused("unreachable", self._failure))

    def _begin(self, address: Address) -> bool:
        """Connect to an address. False: it failed at once."""
        try:
            sock = socket.socket(_FAMILY[address.version], _TYPE)
        except OSError as error:
            return self._fail(address, error.errno)
        self._running[sock] = address
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = (str(address), self._port)
        result = sock.connect_ex(target)
        if result == errno.EINPROGRESS:
            result = sock.connect_ex(target)  # to a near peer it has come about by now: that spares a turn of the loop
        if result in _UNDER_WAY:
            self._loop.add_writer(sock.fileno(), self._on_answer, sock)
            return True
        return self._settle(sock, result)

    def _on_answer(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock.fileno())
        if not self._settle(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._try_next()

    def _settle(self, sock: socket.socket, error: int) -> bool:
        """How an attempt ended. False: badly."""
        if error:
            address = self._running.pop(sock)
            sock.close()
            return self._fail(address, error)
        if not self.ended.done():
            self.ended.set_result(sock)
        return True

    def _fail(self, address: Address, error: int | None) -> bool:
        self._failure = f"{address} port {self._port}: {os.strerror(error or errno.EIO)}"
        return False

    def _on_deadline(self) -> None:
        if not self.ended.done():
            names = ", ".join(map(str, self._running.values()))
            text = f"{names} port {self._port}: no answer within {self._timeout_s:g} s"
            self.ended.set_exception(Refused("connect_timeout", text))
