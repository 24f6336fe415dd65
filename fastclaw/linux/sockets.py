"""Sockets and other descriptors: what is ready now, who the peer is, a private listener, a reset.

Sources: poll(2), unix(7), socket(7). Owns no descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
import struct
from contextlib import suppress

_UCRED = struct.Struct("3i")
_LINGER_RESET = struct.pack("ii", 1, 0)
"""struct linger: on, 0 s (socket(7))."""


def ready_events(fd: int, asked: int) -> int:
    """The events of poll(2) that a descriptor has now: of those asked for, and POLLHUP and POLLERR in any case."""
    poll = select.poll()
    poll.register(fd, asked)
    return sum(events for _, events in poll.poll(0))


def is_readable(fd: int) -> bool:
    """Whether a read would not wait; for a pidfd: whether the process has ended."""
    return ready_events(fd, select.POLLIN) != 0


def has_hung_up(fd: int) -> bool:
    """Whether a socket's peer has closed, both ways."""
    return ready_events(fd, 0) & select.POLLHUP != 0


async def wait_readable(fd: int, timeout_ms: float | None) -> bool:
    """Whether a descriptor becomes readable in time, None: at any time; for a pidfd: whether the process ends."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
            await ready.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and user id of who connected to a Unix socket (SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def listen_privately(path: str, kind: int, backlog: int, owner: int = 0) -> int:
    """A listening Unix socket of mode 0600, non-blocking: its descriptor.

    Parameters:
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        backlog: connections that may wait for an accept.
        owner: user id that the path is given to; 0: it stays ours.

    Raises:
        OSError: no descriptor is to be had, or nothing can be bound there.
    """
    # The C type itself: Python's own class costs as much again, and every exec makes two.
    listening = socket.SocketType(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listening.fileno(), 0o600)  # before bind: the path is born with this mode
        listening.bind(path)
        if owner:
            os.chown(path, owner, -1)
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening.detach()


def listen_anew(path: str, backlog: int) -> socket.socket:
    """A listening stream socket as of `listen_privately`, where one may be whose maker was killed.

    Raises:
        OSError: as there; EADDRINUSE: somebody listens there, or it is no socket.
    """
    remove_dead(path)
    return socket.socket(fileno=listen_privately(path, socket.SOCK_STREAM, backlog))


def remove_dead(path: str) -> None:
    """Take away a Unix socket at which nobody listens any more, as its maker was killed. All else stays."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # A file refuses as well; a backlog that is full does not, and is somebody's.
        if stat.S_ISSOCK(os.lstat(path).st_mode) and probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)


def reset_on_close(connection: socket.socket) -> None:
    """Have a TCP connection reset when it is closed, so that what was sent is not taken for all there was."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
