"""A bridge, and containers connected to it: interfaces, addresses, routes. Blocking, in threads that end afterwards.

Knows what a container's network looks like from both sides; does not know the firewall, nor who listens.
"""

import os
import socket
import struct
from pathlib import Path

from fastclaw import network_limits
from fastclaw.errors import ProtocolError, StartFailed
from fastclaw.linux import netlink as rtnetlink
from fastclaw.network.bridge import firewall, netns
from fastclaw.network.bridge.firewall import Bridge
from fastclaw.network.bridge.netns import Netlink

DEVICE = "eth0"
"""The name inside that programs know from everywhere else."""

_PROC = Path("/proc")
_ROUTES = Path("/proc/thread-self/net/route")
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger, socket(7)

_SETTINGS = (("ipv6", "disable_ipv6", 1), ("ipv4", "forwarding", 0), ("ipv4", "arp_ignore", 1))
"""No IPv6; closed, too, while somebody has flushed the firewall; no word about the host's other addresses."""


def is_taken(bridge: Bridge) -> bool:
    """Whether the subnet belongs to another interface, as far as the main routing table says."""
    routes = firewall.parse_routes(_ROUTES.read_text(encoding="ascii"))
    return not firewall.is_free(
        bridge.subnet, (route for name, found in routes.items() if name != bridge.interface for route in found)
    )


def make_bridge(bridge: Bridge) -> None:
    """Make the bridge, with the gateway's address.

    Raises:
        OSError: EEXIST where its name is taken.
    """
    name, subnet = bridge.interface, bridge.subnet
    with Netlink() as netlink:
        netlink.request(rtnetlink.new_bridge(name, bridge.hardware_address))
        for family, setting, value in _SETTINGS:
            netns.configure(family, name, setting, value)
        index = socket.if_nametoindex(name)
        netlink.request(rtnetlink.new_address(index, bridge.gateway, subnet.prefixlen, subnet.broadcast_address))
        netlink.request(rtnetlink.up(name))


def connect(bridge: Bridge, container: str, init: int, first_host: int) -> None:
    """Connect a container, and prove that it reaches the gateway. This thread is in the container's namespace then.

    Parameters:
        container: its full id.
        init: pid of its init.
        first_host: which address to try first.

    Raises:
        StartFailed: `network_failed`.
    """
    try:
        inside = netns.open_netns(init)
        try:
            _check(inside, container, init)
            plug(bridge, inside, first_host)
        finally:
            os.close(inside)
    except (OSError, ProtocolError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartFailed(f"cannot connect the container to its network: {reason}", "network_failed") from error
    _prove(bridge)


def plug(bridge: Bridge, inside: int, first_host: int) -> None:
    """Give a network namespace a device that leads to the bridge. This thread is in it then.

    Parameters:
        inside: descriptor of the namespace.

    Raises:
        OSError: the kernel refuses.
        StartFailed: `network_failed`: no address is left.
    """
    index = socket.if_nametoindex(bridge.interface)
    with Netlink() as outside:
        netns.enter(inside)
        netns.configure("ipv6", "default", "disable_ipv6", 1)
        number = _make_veth(outside, bridge, index, inside, first_host)
        outside.request(rtnetlink.isolate(bridge.veth(number)))
        with Netlink() as netlink:
            own, subnet = socket.if_nametoindex(DEVICE), bridge.subnet
            netlink.request(rtnetlink.new_address(own, subnet[number], subnet.prefixlen, subnet.broadcast_address))
            netlink.request(rtnetlink.up(DEVICE))
            netlink.request(rtnetlink.default_route(bridge.gateway))
        for name in (bridge.veth(number), bridge.interface):
            outside.await_operational(name, network_limits.BRIDGE_PROOF_MS)


def _check(inside: int, container: str, init: int) -> None:
    """The namespace was opened before: if the number is the container's now, it was so then."""
    cgroups = (_PROC / str(init) / "cgroup").read_text(encoding="utf-8")
    if container not in cgroups:
        raise StartFailed("the container has ended, or is not on this host", "network_failed")
    if netns.is_own_netns(inside):
        raise StartFailed("the container has this host's network, and none of its own", "network_failed")


def _make_veth(outside: Netlink, bridge: Bridge, index: int, inside: int, first_host: int) -> int:
    """Which of the subnet's addresses it is for. One is in use for as long as the kernel has an interface for it."""
    number = first_host
    for _ in range(firewall.FIRST_HOST, firewall.LAST_HOST + 1):
        try:
            outside.request(rtnetlink.new_veth(bridge.veth(number), index, DEVICE, inside))
        except FileExistsError:
            number = firewall.next_host(number)
        else:
            return number
    raise StartFailed(f"all addresses of {bridge.subnet} are in use", "network_failed")


def _prove(bridge: Bridge) -> None:
    """Whether this thread's namespace gets through: only if the packets of a connection to port 80 come back.

    The listener that it is turned to is told of nobody who says nothing (TCP_DEFER_ACCEPT).
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(network_limits.BRIDGE_PROOF_MS / 1000)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            probe.connect((str(bridge.gateway), firewall.HTTP_PORTS[0]))
    except OSError as error:
        raise StartFailed(
            f"the container does not reach {bridge.gateway} ({error.strerror or error}); does a firewall of this host "
            f"drop what comes in on interfaces fc*? let it pass there: fastclaw has rules of its own for them",
            "network_failed",
        ) from error
