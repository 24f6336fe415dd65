"""DNS messages as a stub resolver writes and reads them, by other code than the one that is tested; and a server: real
sockets, the real policy, and a zone of our own behind it. Addresses are answered here and never sent to.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import network_limits
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.sandbox_server import Commons, Server
from tests.network.egress.rig import HERE, config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.enforcement import PolicyEnforcer


A, AAAA, HTTPS, TXT, ANY, AXFR, OPT = 1, 28, 65, 16, 255, 252, 41
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
TRUNCATED = 0x0200


class Told(NamedTuple):
    """What an answer says."""

    flags: int
    code: int
    addresses: list[str]
    has_opt: bool

    @property
    def is_cut(self) -> bool:
        """Whether there is more, over TCP."""
        return bool(self.flags & TRUNCATED)


def wire_name(name: str) -> bytes:
    """Labels, without compression."""
    return b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".")) + b"\0"


def opt(size: int = 4_096, *, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    """An OPT record."""
    return b"\0" + struct.pack(">2H2BHH", OPT, size, 0, version, flags, len(options)) + options


def query(
    name: bytes = wire_name("a.example"),
    type: int = A,
    *,
    klass: int = 1,
    flags: int = 0x0100,
    counts: tuple[int, int, int] = (1, 0, 0),
    additional: tuple[bytes, ...] = (),
    id: int = 77,
) -> bytes:
    """One question; by default a plain and proper one."""
    head = struct.pack(">6H", id, flags, *counts, len(additional))
    return head + name + struct.pack(">2H", type, klass) + b"".join(additional)


def read(message: bytes) -> Told:
    """An answer, to its last byte."""
    _, flags, questions, answers, authorities, additional = struct.unpack_from(">6H", message)
    assert (authorities, additional in (0, 1)) == (0, True)
    at, found = 12, []
    for _ in range(questions):
        while message[at]:
            at += 1 + message[at]
        at += 5
    for _ in range(answers):
        pointer, type, klass, ttl, length = struct.unpack_from(">3HIH", message, at)
        assert (pointer, klass, ttl) == (0xC00C, 1, network_limits.DNS_TTL_S)
        assert length == {A: 4, AAAA: 16}[type]
        found.append(str(ip_address(message[at + 12 : at + 12 + length])))
        at += 12 + length
    upper = 0
    if additional:
        assert message[at : at + 3] == b"\0" + OPT.to_bytes(2)
        upper = message[at + 5] << 4
        at += 11
    assert at == len(message)
    return Told(flags, flags & 0xF | upper, found, bool(additional))


WAIT_S = 20
UDP, TCP = 1, 2
"""Numbers of the two listeners."""

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
        self.commons = Commons(1_000)
        self.udp = bound(socket.SOCK_DGRAM)
        self.tcp = bound(socket.SOCK_STREAM)
        self.udp_at, self.tcp_at = self.udp.getsockname(), self.tcp.getsockname()
        self.server: Server

    @property
    def enforcer(self) -> PolicyEnforcer:
        return self.server.enforcer

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
    **options: Any,
) -> AsyncIterator[Served]:
    served = Served()
    settings = config(allow, deny=list(deny), **options)
    served.server = Server(settings, served.counters, served.trouble.append, served.commons, served.lookup)
    served.server.add(UDP, "dns_udp", served.udp)
    served.server.add(TCP, "dns_tcp", served.tcp)
    try:
        yield served
    finally:
        await served.server.aclose()
        served.commons.close()
        assert served.counters.snapshot()["open"] == 0
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
