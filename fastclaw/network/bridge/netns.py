"""Network interfaces of this host and of network namespaces, asked of the kernel over netlink; no other program needed.

A namespace is entered by a thread of its own, which then ends: one of a pool would stay in it (setns(2)). A socket
belongs to the namespace that its thread was in when it was made, wherever the thread goes.
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
from fastclaw.linux import netlink as rtnetlink

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
    """Put this thread into a network namespace that nobody else is in, and that goes with it.

    Raises:
        OSError: not allowed.
    """
    _checked(_LIBC.unshare(_CLONE_NEWNET))


async def in_own_thread(call: Callable[[], T]) -> T:
    """The result of a blocking call in a thread that does nothing else and then ends.

    Cancelled, the call goes on to its end, which is why it must be bounded.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # from here on nobody can cancel it
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
