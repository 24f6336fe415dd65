"""Which addresses are this host's own: asked of the kernel, for it is the kernel that would deliver to them.

A request for a route (RTM_GETROUTE, rtnetlink(7)) is a lookup in memory and sends nothing. Binding a socket as a probe
would answer yes to everything where `net.ipv4.ip_nonlocal_bind` is set, as it is on hosts with a floating address.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.network.egress.addresses import embedded_v4

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, destination's and source's bits, …, [7] type, flags
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR = struct.Struct("=i")  # nlmsgerr

# include/uapi/linux/netlink.h and rtnetlink.h
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST = 1
_RTN_UNICAST = 1

_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)
"""No route; and an unreachable, a blackhole and a prohibit route (ip-route(8))."""

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class OwnAddresses:
    """Owns one netlink socket.

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
        """Idempotent."""
        self._socket.close()

    def _is_local(self, address: Address) -> bool:
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        try:
            self._socket.send(_request(address, self._sequence))
            return _is_local(self._answer())
        except OSError:
            return True

    def _answer(self) -> bytes:
        """The answer to the last request, which is there when `send` returns; earlier ones are passed over."""
        while True:
            answer = self._socket.recv(network_limits.EGRESS_ROUTE_BYTES)
            if _HEADER.unpack_from(answer)[3] == self._sequence:
                return answer


def _request(address: Address, sequence: int) -> bytes:
    packed = address.packed
    route = _ROUTE.pack(_FAMILY[address.version], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    destination = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    length = _HEADER.size + len(route) + len(destination)
    return _HEADER.pack(length, _RTM_GETROUTE, _NLM_F_REQUEST, sequence, 0) + route + destination


def _is_local(answer: bytes) -> bool:
    kind: int = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:  # connecting would fail just so
        return -_ERROR.unpack_from(answer, _HEADER.size)[0] not in _NO_WAY
    target: int = _ROUTE.unpack_from(answer, _HEADER.size)[7]
    return kind != _RTM_NEWROUTE or target != _RTN_UNICAST
