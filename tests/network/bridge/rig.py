"""Network namespaces of the tests' own, connected to a bridge as containers are: there a test is root and may do more
than a container could. Networks that are started, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import socket
import struct
import subprocess
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from fastclaw.network.bridge import links
from fastclaw.network.bridge.bridge import FirewalledBridge, our_tables, why_no_bridge
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from fastclaw.network.bridge.firewall import Bridge
    from fastclaw.network.egress.proxy_frames import Role

T = TypeVar("T")

OUTSIDE = "203.0.113.77"
"""Of TEST-NET-3 (RFC 5737). Never gets a packet: `blackholed` sees to it."""

SOON_S = 0.3
"""What a wall holds back is waited for so long: without the wall it takes a fraction of a millisecond."""

PATIENCE_S = 10
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST, include/uapi/linux/netfilter_ipv4.h


def ip(*words: str) -> str:
    """What ip(8) prints."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def nft(text: str) -> None:
    """Have nft(8) do something."""
    subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=True)


@contextmanager
def blackholed() -> Iterator[None]:
    """Nothing leaves for `OUTSIDE`."""
    ip("route", "replace", "blackhole", f"{OUTSIDE}/32")
    try:
        yield
    finally:
        ip("route", "del", "blackhole", f"{OUTSIDE}/32")


def need_bridge() -> None:
    """Skip where a host cannot have one, and say why."""
    if (reason := _why_not()) is not None:
        unusable(reason)


@cache
def _why_not() -> str | None:
    missing = [f"no {program}" for program in ("ip", "nft") if shutil.which(program) is None]
    return missing[0] if missing else asyncio.run(why_no_bridge())


def left_of(interface: str) -> list[str]:
    """Interfaces, routes, rules and sockets of a network."""
    token = interface.removeprefix("fc")
    found = [*our_tables("nft"), *ip("-o", "link").splitlines(), *ip("route").splitlines()]
    return [line for line in found if token in line]


class Started:
    """A network that is up, with its listeners."""

    def __init__(self, network: FirewalledBridge) -> None:
        self.network = network
        self.gateway = network.gateway
        self.listeners: dict[Role, socket.socket] = dict(network.take_listeners())

    @property
    def bridge(self) -> Bridge:
        assert self.network._bridge is not None
        return self.network._bridge

    def port(self, role: Role) -> int:
        """Where what is turned to a listener ends up."""
        port: int = self.listeners[role].getsockname()[1]
        return port

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()

    def open_walls(self) -> None:
        """Take the firewall away: what comes through then is what it held back before."""
        [table] = [name for name in our_tables("nft") if name.endswith(self.bridge.token)]
        nft(f"delete table inet {table}")


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Started]:
    """A network. Afterwards nothing of it is left, or the test fails."""
    network = FirewalledBridge(directory)
    await network.start()
    one = Started(network)
    try:
        yield one
    finally:
        one.close()
        await network.aclose()
    assert left_of(network.interface) == []
    assert not any(name.endswith(".resolv") for name in os.listdir(directory))


class Room:
    """A network namespace with a device that leads to a bridge."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def run(self, call: Callable[[], T]) -> T:
        """The result of a blocking call inside."""
        return await links.in_own_thread(lambda: self._inside(call))

    def _inside(self, call: Callable[[], T]) -> T:
        links.enter(self._fd)
        return call()

    async def address(self) -> str:
        """Its own."""
        return (await self.run(lambda: ip("-4", "-o", "addr", "show", "dev", links.DEVICE))).split()[3].split("/")[0]

    async def reaches(self, *targets: tuple[str, int]) -> list[tuple[str, int]]:
        """To which of these a TCP connection comes about; a machine under load is waited for."""
        return await self.run(lambda: connected(targets, PATIENCE_S))

    async def gets_to(self, *targets: tuple[str, int]) -> list[tuple[str, int]]:
        """The same where none is expected to."""
        return await self.run(lambda: connected(targets, SOON_S))

    async def forget_neighbours(self) -> None:
        """Who did not answer is asked again only after a second."""
        await self.run(lambda: ip("neigh", "flush", "dev", links.DEVICE))

    async def sends(self, *targets: tuple[str, int], data: bytes = b"?") -> None:
        """A datagram to each of these, broadcast and multicast addresses too."""
        await self.run(lambda: _send(targets, data))


@asynccontextmanager
async def room(network: Started) -> AsyncIterator[Room]:
    """One more container, as far as the network can tell."""
    fd = await links.in_own_thread(_new_netns)
    try:
        await links.in_own_thread(lambda: links.plug(network.bridge, fd, 2))
        yield Room(fd)
    finally:
        os.close(fd)


def _new_netns() -> int:
    links.enter_new()
    ip("link", "set", "lo", "up")
    return links.open_netns("thread-self")


def connected(targets: Iterable[tuple[str, int]], seconds: float) -> list[tuple[str, int]]:
    """To which of these a TCP connection comes about, from this thread's namespace.

    Parameters:
        seconds: how long to wait when none of them is decided.
    """
    sockets = {}
    for target in targets:
        sock = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sockets[target] = sock
        sock.connect_ex(target if ":" not in target[0] else socket.getaddrinfo(*target)[0][4])
    waiting, made = dict(sockets), []
    while waiting and (ready := select.select([], list(waiting.values()), [], seconds)[1]):
        done = [target for target, sock in waiting.items() if sock in ready]
        made += [target for target in done if not waiting.pop(target).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    for sock in sockets.values():
        sock.close()
    return made


def _send(targets: Iterable[tuple[str, int]], data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for target in targets:
            sock.sendto(data, target)


def heard(sock: socket.socket, expected: int = 0) -> list[tuple[bytes, str]]:
    """Datagrams that have come, and whom from; waits for so many, and a moment for one too many."""
    found: list[tuple[bytes, str]] = []
    while select.select([sock], [], [], PATIENCE_S if len(found) < expected else SOON_S)[0]:
        data, address = sock.recvfrom(65_535)
        found.append((data, address[0]))
    return found


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection; waits for it."""
    assert select.select([listener], [], [], PATIENCE_S)[0]
    connection, _ = listener.accept()
    connection.setblocking(True)
    connection.settimeout(PATIENCE_S)
    return connection


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """Where a connection wanted to go before it was turned."""
    raw = connection.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
    port, address = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntoa(address), port


def datagram(source: str, target: str, port: int) -> bytes:
    """A whole IPv4 packet with a UDP datagram from port 9999; the kernel fills in checksum and length (raw(7))."""
    udp = struct.pack("!HHHH", 9_999, port, 9, 0) + b"!"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + udp


def send_raw(packet: bytes, target: str) -> None:
    """Send a packet as it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(packet, (target, 0))
