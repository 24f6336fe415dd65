"""Network namespaces, interfaces, a bridge, and containers connected to it: asked of the kernel over netlink.

Blocking, in threads that end afterwards: a namespace is entered by a thread of its own, since one of a pool would stay
in it (setns(2)). A socket belongs to the namespace that its thread was in when it was made, wherever the thread goes.
Knows what a container's network looks like from both sides; does not know the firewall or the listeners.
"""

import asyncio
import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fastclaw import network_limits
from fastclaw.errors import ProtocolError, StartFailed
from fastclaw.linux import netlink as rtnetlink
from fastclaw.linux.sockets import reset_on_close
from fastclaw.network.bridge import firewall
from fastclaw.network.bridge.firewall import Bridge

T = TypeVar("T")

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SYSCTL = Path("/proc/sys/net")
"""What is seen there are the settings of the reading thread's namespace."""


class Netlink:
    """A socket to the kernel's interfaces, routes and addresses in the namespace that this thread is in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(network_limits.NETLINK_MS / 1000)

    def request(self, message: bytes) -> None:
        """Have something done.

        Parameters:
            message: of `linux/netlink.py`.

        Raises:
            OSError: the kernel's refusal; TimeoutError: it says nothing.
        """
        _raise(rtnetlink.parse_ack(self._ask(message)))

    def await_operational(self, name: str, timeout_ms: int) -> None:
        """Return once an interface passes packets. What is sent before that is lost, a first ARP request for a second.

        Raises:
            TimeoutError: it does not.
            ProtocolError: there is no such interface.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        while not rtnetlink.is_operational(self._ask(rtnetlink.get_link(name))):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"interface {name} does not come up")
            time.sleep(network_limits.NETLINK_POLL_MS / 1000)

    def _ask(self, message: bytes) -> bytes:
        self._socket.send(message)
        return self._socket.recv(network_limits.NETLINK_BYTES)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interfaces(prefix: str) -> list[str]:
    """Names of the interfaces in this thread's namespace that begin so."""
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]


def remove_interfaces(prefix: str) -> None:
    """Remove every interface whose name begins so."""
    with Netlink() as netlink:
        for name in interfaces(prefix):
            with suppress(OSError):  # it went by itself: the other end of a pair was removed, or its namespace
                netlink.request(rtnetlink.del_link(socket.if_nametoindex(name)))


def configure(family: str, interface: str, setting: str, value: int) -> None:
    """Write a setting of one interface (ip-sysctl.rst). Nothing happens where this kernel has no such family.

    Raises:
        OSError: it has, and refuses.
    """
    with suppress(FileNotFoundError):
        (_SYSCTL / family / "conf" / interface / setting).write_text(str(value), encoding="ascii")


def open_netns(process: int | str) -> int:
    """A descriptor of the network namespace of a process, or of this `thread-self`.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    return os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def is_own_netns(fd: int) -> bool:
    """Whether a descriptor is of the namespace that this thread is in."""
    return os.path.samestat(os.fstat(fd), os.stat("/proc/thread-self/ns/net"))


def enter(fd: int) -> None:
    """Put this thread into a network namespace. Only for a thread that ends soon.

    Raises:
        OSError: not allowed.
    """
    _checked(_LIBC.setns(fd, _CLONE_NEWNET))


def enter_new() -> None:
    """Put this thread into a network namespace of its own, which ends with it.

    Raises:
        OSError: not allowed.
    """
    _checked(_LIBC.unshare(_CLONE_NEWNET))


async def in_own_thread(call: Callable[[], T]) -> T:
    """The result of a blocking call in a thread that does nothing else and then ends.

    Cancelled, the call goes on to its end, which is why it must be bounded.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # from here on it cannot be cancelled
    threading.Thread(target=_run, args=(call, outcome), name="fastclaw-netns").start()
    return await asyncio.wrap_future(outcome)


def _run(call: Callable[[], T], outcome: Future[T]) -> None:
    try:
        result = call()
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def _checked(result: int) -> None:
    if result != 0:
        _raise(ctypes.get_errno())


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


# --- a bridge and what is connected to it ---

DEVICE = "eth0"
"""The name inside that programs know from everywhere else."""

_PROC = Path("/proc")
_ROUTES = Path("/proc/thread-self/net/route")

_SETTINGS = (("ipv6", "disable_ipv6", 1), ("ipv4", "forwarding", 0), ("ipv4", "arp_ignore", 1))
"""No IPv6; closed also while the firewall is flushed; no word about the host's other addresses."""


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
            configure(family, name, setting, value)
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
        inside = open_netns(init)
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
        enter(inside)
        configure("ipv6", "default", "disable_ipv6", 1)
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
    if is_own_netns(inside):
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

    It sends nothing, so the listener does not accept it (TCP_DEFER_ACCEPT).
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(network_limits.BRIDGE_PROOF_MS / 1000)
            reset_on_close(probe)
            probe.connect((str(bridge.gateway), firewall.HTTP_PORTS[0]))
    except OSError as error:
        raise StartFailed(
            f"the container does not reach {bridge.gateway} ({error.strerror or error}); does a firewall of this host "
            f"drop what comes in on interfaces fc*? let it pass there: fastclaw has rules of its own for them",
            "network_failed",
        ) from error
