"""Which addresses are this host's own: asked of the kernel, for it is the kernel that would deliver to them.

A request for a route (RTM_GETROUTE, rtnetlink(7)) is a lookup in memory and sends nothing. Binding a socket as a probe
would answer yes to everything where `net.ipv4.ip_nonlocal_bind` is set, as it is on hosts with a floating address.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.linux import netlink
from fastclaw.network.egress.addresses import embedded_v4

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address


class LocalAddresses:
    """This host's own addresses, as its kernel routes. Owns one netlink socket.

    Raises:
        OSError: the kernel gives no such socket.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._sequence = 0

    def has(self, address: Address) -> bool:
        """Whether packets to `address`, or to the IPv4 address in it, would go to this host or to a broadcast.

        Where the kernel does not say, the answer is yes: what cannot be told apart from us is treated as us.
        """
        inner = embedded_v4(address)
        return self._is_local(address) or (inner is not None and self._is_local(inner))

    def close(self) -> None:
        """Close the socket. Idempotent; every address is local then."""
        self._socket.close()

    def _is_local(self, address: Address) -> bool:
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        try:
            self._socket.send(netlink.get_route(address, self._sequence))
            return not netlink.is_routed_away(self._answer())
        except (OSError, ProtocolError):
            return True

    def _answer(self) -> bytes:
        """The answer to the last request, which is there when `send` returns; earlier ones are passed over."""
        while True:
            answer = self._socket.recv(network_limits.EGRESS_ROUTE_BYTES)
            if netlink.sequence_of(answer) == self._sequence:
                return answer
