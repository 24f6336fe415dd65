"""A client, a tunnel and an origin, and what they do to each other."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Literal

from fastclaw import limits, network_limits
from fastclaw.network.egress.tunnel import PipePool, PipeShare, Tunnel

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from fastclaw.linux.poller import Poller
    from fastclaw.network.egress.tunnel import Pipe

Kind = Literal["tcp", "unix"]
MIB = limits.MIB
DEADLINE_S = 20


def connected(kind: Kind) -> tuple[socket.socket, socket.socket]:
    """Both ends of one connection, non-blocking."""
    if kind == "unix":
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    for end in ends:
        end.setblocking(False)
    return ends


class LonePipes(PipeShare):
    """The pipes of an environment that is alone.

    Parameters:
        most: that it gets: half of all.
    """

    def __init__(self, poller: Poller, most: int = network_limits.TUNNEL_PIPES // 2) -> None:
        self.all = PipePool(2 * most)
        super().__init__(self.all, poller)

    def close(self) -> None:
        self.all.close()


class CountingMeter:
    """Counts; has enough after `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.forth = self.back = 0
        self.budget = budget
        self.on_count: Callable[[], None] = lambda: None

    def sent(self, count: int) -> bool:
        self.forth += count
        self.on_count()
        return self.forth + self.back < self.budget

    def received(self, count: int) -> bool:
        self.back += count
        return self.forth + self.back < self.budget


class Rig:
    """A client, a tunnel and an origin."""

    def __init__(self, kind: Kind, pool: LonePipes, budget: int = 1 << 60) -> None:
        self.pool = pool
        self.client, self.near = connected(kind)
        self.far, self.origin = connected(kind)
        self.meter = CountingMeter(budget)
        self.ends = 0
        self.ended = asyncio.Event()
        self.tunnel = Tunnel(self.near, self.far, pool, self.meter, self.on_end)

    def on_end(self, tunnel: Tunnel) -> None:
        assert tunnel is self.tunnel
        self.ends += 1
        self.ended.set()

    async def has_ended(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.ended.wait()
        assert self.ends == 1
        assert self.far.fileno() == -1
        assert self.pool.lent == 0

    def close(self) -> None:
        self.tunnel.close()
        self.client.close()
        self.origin.close()


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, count: int, size: Callable[[], int] = lambda: MIB) -> bytes:
    """So many bytes, or fewer when it ends before."""
    received = bytearray()
    async with asyncio.timeout(DEADLINE_S):
        while len(received) < count:
            data = await asyncio.get_running_loop().sock_recv(sock, min(size(), count - len(received)))
            if not data:
                break
            received += data
    return bytes(received)


async def at_end(sock: socket.socket) -> bytes:
    """What comes after everything that was expected: b"" when it ends well."""
    return await receive(sock, 1)


async def fill(sock: socket.socket) -> int:
    """Send until nobody takes anything any more; how much that was."""
    taken = quiet = 0
    while quiet < 50:
        try:
            taken += sock.send(bytes(MIB))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            await asyncio.sleep(0.001)
    return taken


async def pour(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    """Send in pieces of any size, with pauses, then half-close."""
    view = memoryview(data)
    while view:
        size = rng.choice((1, 100, 4096, network_limits.TUNNEL_BUFFER_BYTES, 300_000))
        await send(sock, bytes(view[:size]))
        view = view[size:]
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


def count_borrowing(pool: LonePipes) -> list[Pipe | None]:
    """What is lent from now on."""
    lent: list[Pipe | None] = []
    borrow = pool.borrow

    def noted() -> Pipe | None:
        lent.append(borrow())
        return lent[-1]

    pool.borrow = noted  # type: ignore[method-assign]
    return lent


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
