"""A responder to questions for addresses: real sockets, the real gate, and a zone of our own behind it.

Addresses are answered here and never sent to.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from fastclaw import network_limits
from fastclaw.network.egress.counters import Counters
from fastclaw.network.egress.dns_server import Names
from fastclaw.network.egress.enforcement import Gate
from fastclaw.network.egress.proxy_frames import EgressConfig
from tests.network.egress.dns_rig import A, Told, query, read, wire_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from fastclaw.network.egress.addresses import Address

WAIT_S = 20
HERE = "127.0.0.1"
MANY = 100
ZONE = {
    "a.example": ["5.5.5.1", "5.5.5.2", "2a00:1450::1"],
    "four.example": ["5.5.5.3"],
    "rebound.example": ["127.0.0.1", "5.5.5.4", "169.254.169.254", "::1", "::ffff:10.0.0.1", "10.0.0.1"],
    "inside.example": ["10.0.0.1", "fd00::1", "127.0.0.1"],
    "many.example": [f"5.5.{n}.5" for n in range(MANY)],
}


class Served:
    """A responder on loopback.

    Attributes:
        asked: what went on to the host's resolver.
        stuck: names whose lookup does not come back.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stuck = asyncio.Event()
        self.trouble: list[str] = []
        self.counters = Counters.create()
        self.udp = bound(socket.SOCK_DGRAM)
        self.tcp = bound(socket.SOCK_STREAM)
        self.udp_at, self.tcp_at = self.udp.getsockname(), self.tcp.getsockname()
        self.gate: Gate
        self.names: Names

    async def lookup(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name.startswith("stuck"):
            self.stuck.set()
            await asyncio.Event().wait()
        if name.startswith("dead"):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name not in ZONE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [ip_address(text) for text in ZONE[name]]

    def denied(self) -> dict[str, int]:
        return dict(self.counters.snapshot()["denied"])

    async def ask(self, name: str | bytes, type: int = A, *extra: bytes) -> Told:
        wire = name if isinstance(name, bytes) else wire_name(name)
        return read(await self.exchange(query(wire, type, additional=extra)))

    async def exchange(self, message: bytes) -> bytes:
        """One datagram and its answer."""
        with a_client(self.udp_at) as client:
            client.send(message)
            async with asyncio.timeout(WAIT_S):
                return await asyncio.get_running_loop().sock_recv(client, 65_535)


def bound(type: int, address: tuple[str, int] = (HERE, 0)) -> socket.socket:
    sock = socket.socket(socket.AF_INET, type)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    if type == socket.SOCK_STREAM:
        sock.listen()
    return sock


@contextmanager
def a_client(address: tuple[str, int], type: int = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, type) as sock:
        sock.connect(address)
        sock.setblocking(False)
        yield sock


@asynccontextmanager
async def serving(
    allow: Sequence[str] = ("*.example",),
    deny: Sequence[str] = (),
    *,
    is_inside: Callable[[str], bool] = HERE.__eq__,
    **changes: Any,
) -> AsyncIterator[Served]:
    config = EgressConfig(
        allow=list(allow),
        deny=list(deny),
        inject=[],
        log=changes.get("log"),
        log_max_bytes=network_limits.EGRESS_LOG_BYTES,
        max_connections=changes.get("max_connections", 100),
        max_connections_per_s=1_000,
        max_bytes=changes.get("max_bytes"),
        idle_timeout_ms=network_limits.EGRESS_IDLE_MS,
        connect_timeout_ms=changes.get("connect_timeout_ms", network_limits.EGRESS_CONNECT_MS),
    )
    served = Served()
    served.gate = Gate(config, served.counters, served.trouble.append, served.lookup)
    served.names = Names(served.gate, is_inside)
    served.names.serve_udp(1, served.udp)
    served.names.serve_tcp(2, served.tcp)
    try:
        yield served
    finally:
        await served.names.aclose()
        assert served.counters.snapshot()["open"] == 0
        await served.gate.aclose()
        served.counters.close()


async def say(client: socket.socket, message: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, len(message).to_bytes(2) + message)


async def hear(client: socket.socket) -> bytes:
    """The next answer over TCP; empty at the end."""
    async with asyncio.timeout(WAIT_S):
        length = int.from_bytes(await _read(client, 2))
        return await _read(client, length)


async def _read(client: socket.socket, size: int) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while len(data) < size and (more := await asyncio.get_running_loop().sock_recv(client, size - len(data))):
            data += more
    assert len(data) in (0, size)
    return data
