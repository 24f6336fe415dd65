"""Messages to the kernel about links, addresses and routes, and its answers. Values in, bytes out, and back.

Layouts and numbers as of rtnetlink(7), netlink(7) and the kernel's include/uapi/linux/{netlink,rtnetlink,if_link}.h;
integers are in the host's byte order. Each message that changes something asks for an acknowledgement.
"""

import errno
import struct
from ipaddress import IPv4Address, IPv6Address

from fastclaw.errors import ProtocolError

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, both prefixes, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ERRNO = struct.Struct("=i")

_ERROR = 2
_NEW_LINK, _DEL_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE, _GET_ROUTE = 16, 17, 18, 20, 24, 26
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400

_UP = 1
_NAME, _MASTER, _HARDWARE_ADDRESS, _OPERATIONAL_STATE, _LINK_INFO, _NETNS_FD = 3, 10, 1, 16, 18, 28
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER = 1
_BRIDGE_SNOOPING = 23
_PORT_ISOLATED = 33

_OPERATIONAL = 6  # IF_OPER_UP (RFC 2863, ifOperStatus)

_AF_UNSPEC, _AF_INET = 0, 2
_FAMILY = {4: _AF_INET, 6: 10}
_LOCAL, _IFA_ADDRESS, _BROADCAST = 2, 1, 4
_DESTINATION, _GATEWAY = 1, 5
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)
"""No route; and an unreachable, a blackhole and a prohibit route (ip-route(8))."""
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST = 254, 4, 0, 1


def new_bridge(name: str, hardware_address: bytes) -> bytes:
    """Make a bridge that is down, has this address, and sends no multicast queries.

    The kernel says EEXIST where there is an interface of this name.
    """
    info = _attribute(_KIND, b"bridge") + _attribute(_DATA, _attribute(_BRIDGE_SNOOPING, b"\0"))
    named = _attribute(_NAME, name.encode()) + _attribute(_HARDWARE_ADDRESS, hardware_address)
    return _message(_NEW_LINK, _CREATE | _EXCLUSIVE, _link() + named + _attribute(_LINK_INFO, info))


def new_veth(name: str, bridge: int, peer: str, peer_netns: int) -> bytes:
    """Make a pair of devices: one here, up and a port of a bridge, one somewhere else.

    Parameters:
        bridge: index of the interface.
        peer: name of the other end.
        peer_netns: descriptor of the network namespace that the other end goes to.

    The kernel says EEXIST where there is an interface of one of these names.
    """
    other = _link() + _attribute(_NAME, peer.encode()) + _attribute(_NETNS_FD, _number(peer_netns))
    info = _attribute(_KIND, b"veth") + _attribute(_DATA, _attribute(_VETH_PEER, other))
    here = _attribute(_NAME, name.encode()) + _attribute(_MASTER, _number(bridge)) + _attribute(_LINK_INFO, info)
    return _message(_NEW_LINK, _CREATE | _EXCLUSIVE, _link(flags=_UP) + here)


def isolate(port: str) -> bytes:
    """Let a port of a bridge reach the bridge only, and no other port that is isolated too."""
    data = _attribute(_SLAVE_KIND, b"bridge") + _attribute(_SLAVE_DATA, _attribute(_PORT_ISOLATED, b"\1"))
    return _message(_NEW_LINK, 0, _link() + _attribute(_NAME, port.encode()) + _attribute(_LINK_INFO, data))


def up(name: str) -> bytes:
    """Let an interface work."""
    return _message(_NEW_LINK, 0, _link(flags=_UP) + _attribute(_NAME, name.encode()))


def get_link(name: str) -> bytes:
    """Ask how an interface is; `is_operational` reads the answer."""
    return _message(_GET_LINK, 0, _link() + _attribute(_NAME, name.encode()), acknowledge=False)


def del_link(index: int) -> bytes:
    """Remove an interface. The kernel says ENODEV where there is none."""
    return _message(_DEL_LINK, 0, _link(index))


def new_address(index: int, address: IPv4Address, prefix: int, broadcast: IPv4Address) -> bytes:
    """Give an interface an address, and with it a route to the network of that prefix."""
    body = _ADDRESS.pack(_AF_INET, prefix, 0, _SCOPE_UNIVERSE, index)
    for kind, value in ((_LOCAL, address), (_IFA_ADDRESS, address), (_BROADCAST, broadcast)):
        body += _attribute(kind, value.packed)
    return _message(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body)


def default_route(gateway: IPv4Address) -> bytes:
    """Set the default route to this neighbour, replacing an earlier one."""
    route = _ROUTE.pack(_AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, 0)
    return _message(_NEW_ROUTE, _CREATE | _REPLACE, route + _attribute(_GATEWAY, gateway.packed))


def get_route(address: IPv4Address | IPv6Address, sequence: int) -> bytes:
    """Ask which way packets to an address would go; `is_routed_away` reads the answer. It sends nothing.

    Parameters:
        sequence: 32 bits that the answer has too (`sequence_of`).
    """
    route = _ROUTE.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return _message(_GET_ROUTE, 0, route + _attribute(_DESTINATION, address.packed), acknowledge=False, number=sequence)


def sequence_of(frame: bytes) -> int:
    """Which message an answer is for.

    Raises:
        ProtocolError: it is no answer.
    """
    _parse(frame)
    return int(_HEADER.unpack_from(frame)[3])


def is_routed_away(frame: bytes) -> bool:
    """Whether packets would leave this host for one other, or have no way: what the answer to `get_route` says. False:
    they would be delivered here, or to several (a broadcast), or it says neither.

    Raises:
        ProtocolError: it is no answer.
    """
    kind, body = _parse(frame)
    if kind == _ERROR and len(body) >= _ERRNO.size:  # connecting would fail just so
        return -_ERRNO.unpack_from(body)[0] in _NO_WAY
    return kind == _NEW_ROUTE and len(body) >= _ROUTE.size and _ROUTE.unpack_from(body)[7] == _UNICAST


def parse_ack(frame: bytes) -> int:
    """What the kernel made of a message: 0, or an errno.

    Raises:
        ProtocolError: it is no acknowledgement.
    """
    kind, body = _parse(frame)
    if kind == _ERROR and len(body) >= _ERRNO.size:
        (negative,) = _ERRNO.unpack_from(body)
        if negative <= 0:
            return -int(negative)
    raise ProtocolError(_SENSELESS)


def is_operational(frame: bytes) -> bool:
    """Whether the interface that was asked about passes packets. One that was just set up does so a moment later.

    Raises:
        ProtocolError: the answer is something else: there is no such interface, for example.
    """
    kind, body = _parse(frame)
    if kind != _NEW_LINK:
        raise ProtocolError(_SENSELESS)
    at = _LINK.size
    while at + _ATTRIBUTE.size <= len(body):
        length, number = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if number == _OPERATIONAL_STATE:
            return body[at + _ATTRIBUTE.size : at + length] == bytes([_OPERATIONAL])
        at += -(-length // 4) * 4
    return False


_SENSELESS = "the kernel's answer about a network interface or route makes no sense"


def _parse(frame: bytes) -> tuple[int, bytes]:
    """Kind and body of the first message in a frame."""
    if len(frame) < _HEADER.size:
        raise ProtocolError(_SENSELESS)
    length, kind, _, _, _ = _HEADER.unpack_from(frame)
    return kind, frame[_HEADER.size : length]


def _message(kind: int, flags: int, body: bytes, *, acknowledge: bool = True, number: int = 0) -> bytes:
    flags |= _REQUEST | (_ACK if acknowledge else 0)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def _link(index: int = 0, *, flags: int = 0) -> bytes:
    return _LINK.pack(_AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _number(value: int) -> bytes:
    return struct.pack("=I", value)
