"""A client that knows of no proxy: the firewall has turned its connection to us (DNAT).

The kernel says where it was going. Whom it wants it says itself, in the clear: in the name of its TLS greeting, or in
the Host field of its request. The gate sees that this agrees with the address, and the connection goes to that address.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from fastclaw.network.egress.addresses import Address, BadHost, parse_host
from fastclaw.network.egress.enforcement import Asked
from fastclaw.network.egress.forward import Forwarder, Joined
from fastclaw.network.egress.http_peer import Client
from fastclaw.network.egress.proxy_session import Session
from fastclaw.network.egress.targets import Rejected, origin_target

if TYPE_CHECKING:
    import h11

    from fastclaw.network.egress import tls

_SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h, and for IPv6 netfilter_ipv6/ip6_tables.h
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def original_destination(connection: socket.socket) -> tuple[Address, int] | None:
    """Where a redirected connection was going to; None: to us."""
    try:
        if connection.family == socket.AF_INET6:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(raw)
            address: Address = IPv6Address(packed)
        else:
            raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, packed = _SOCKADDR_IN.unpack(raw)
            address = IPv4Address(packed)
    except OSError:  # the kernel has tracked no such connection
        return None
    ours = connection.getsockname()
    return None if (str(address), port) == (ours[0], ours[1]) else (address, port)


class Transparent(Session):
    """Of a `transparent` listener."""

    _address: Address
    _port: int

    async def _serve(self) -> Joined | None:
        words = await self._reader.receive(self._near)
        if not words:
            return None
        destination = original_destination(self._near)
        if destination is None:
            self._client = Client(self._near, self._idle, self._reader)
            raise Rejected("bad_target", "this port is for connections that the firewall turns to it")
        self._address, self._port = destination
        is_listed = self._gate.policy.lists(*destination)
        hello, words = await self._hello(words, is_listed=is_listed)
        if hello is not None:
            return await self._join(hello, words)
        if is_listed:
            is_request, words = await self._is_request(words)
            if not is_request:  # neither: an address that a rule lists needs no name
                self.asked = Asked("transparent", self._address, self._port, None, self._address)
                self._idle.off()
                return Joined((await self._gate.connect(self.asked)).socket, words)
        return await self._converse(words)

    async def _join(self, hello: tls.Hello, words: bytes) -> Joined:
        try:
            host = self._address if hello.name is None else parse_host(hello.name)
        except BadHost as error:
            raise Rejected("name_mismatch", f"the TLS server name is none: {error}") from error
        self.asked = Asked("transparent", host, self._port, None, self._address)
        self._idle.off()
        far = (await self._gate.connect(self.asked)).socket
        try:
            return await self._join_tls(far, hello, words)
        except BaseException:
            far.close()
            raise

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        target = origin_target(request, self._address, self._port)
        method = request.method.decode("ascii")
        self.asked = Asked("transparent", target.host, self._port, method, self._address)
        return await forwarder.forward(request, self.asked, target)
