"""The directory and the listening Unix sockets through which clients reach a process.

Owns paths and permissions: a directory of mode 0700 that only this user enters, sockets of mode 0600 in it, and a check
of each peer's credentials (SO_PEERCRED, unix(7)).
"""

import contextlib
import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from fastclaw import limits
from fastclaw.errors import IoError
from fastclaw.transport import procfs

_PREFIX = "fastclaw-"
_UCRED = struct.Struct("3i")
_LISTENER_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_LONGEST_NAME = len("/") + len("0123456789abcdef-1000000000.err")


def runtime_parent() -> Path:
    """Where short-lived private directories go: $XDG_RUNTIME_DIR, else /run, else /tmp.

    Making a socket's path takes 10 µs in memory and 70 to 500 µs on a disk (ext4, measured), twice for each exec. So
    where nobody has chosen and /run is on a disk, as in many VMs and containers, /dev/shm goes before them.
    """
    chosen = os.environ.get("XDG_RUNTIME_DIR")
    defaults = sorted(("/run", "/dev/shm", tempfile.gettempdir()), key=lambda path: not procfs.is_in_memory(path))
    for candidate in (chosen, *defaults):
        if candidate and os.path.isabs(candidate) and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise IoError("no writable directory for sockets; set XDG_RUNTIME_DIR")


class SocketDirectory:
    """A private directory for the sockets of one runtime. Making one removes those of runtimes that were killed.

    Raises:
        IoError: none can be made, or its path leaves no room for a socket's name.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or runtime_parent()
        _remove_abandoned(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_owner(os.getpid())}-", dir=parent))
        except OSError as error:
            raise IoError(f"cannot make a directory for sockets in {parent}: {error.strerror}") from error
        if len(os.fsencode(self.path)) + _LONGEST_NAME > limits.SOCKET_PATH_BYTES:
            self.remove()
            raise IoError(f"{parent} is too long for socket paths; set XDG_RUNTIME_DIR to a shorter one")

    def open(self, process_id: str) -> "ProcessSockets":
        """Both sockets of a process, listening.

        Raises:
            OSError: no descriptor is to be had, or the directory is gone.
        """
        stdio = _listen(f"{self.path}/{process_id}.io")
        try:
            return ProcessSockets(stdio, _listen(f"{self.path}/{process_id}.err"))
        except OSError:
            stdio.close()
            raise

    def remove(self) -> None:
        """Remove the directory with all that is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)


def _owner(pid: int) -> str:
    """A process in a directory's name: a pid alone may have been given out anew."""
    stat = procfs.read_stat(pid)
    return f"{pid}-{0 if stat is None else stat.starttime}"


def _remove_abandoned(parent: Path) -> None:
    """Remove directories of ours whose owner is gone."""
    for path in parent.glob(f"{_PREFIX}*-*-*"):
        pid, starttime, _ = path.name.removeprefix(_PREFIX).split("-", 2)
        if not (pid.isdecimal() and starttime.isdecimal()) or procfs.is_running(int(pid), int(starttime)):
            continue
        with contextlib.suppress(OSError):  # somebody else was quicker
            if path.lstat().st_uid == os.geteuid():
                shutil.rmtree(path)


class Listener(NamedTuple):
    """A listening socket: its descriptor, and the path that is unlinked with it. Whoever holds it closes it, once."""

    fd: int
    path: str

    def accept(self) -> socket.socket:
        """The next connection, non-blocking.

        Raises:
            BlockingIOError: nobody waits any more.
            OSError: no descriptor is to be had.
        """
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.fd)
        try:
            connection, _ = listening.accept()
        finally:
            listening.detach()
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """Unlink and close."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self.fd)


class ProcessSockets(NamedTuple):
    """The two listening sockets of a process."""

    stdio: Listener
    stderr: Listener

    def unlink(self) -> None:
        """Unlink both, where somebody else has closed them."""
        for listener in self:
            with contextlib.suppress(OSError):
                os.unlink(listener.path)

    def close(self) -> None:
        """Close and unlink both."""
        self.stdio.close()
        self.stderr.close()


def turn_away(connection: socket.socket) -> None:
    """Have a client read an end; closed here."""
    with contextlib.suppress(OSError), connection:
        connection.shutdown(socket.SHUT_RDWR)
        drop_input(connection)


def drop_input(connection: socket.socket) -> None:
    """Read what came before a shutdown, and nothing can come after it: unread input would turn a close into a reset."""
    while connection.recv(limits.COPY_CHUNK_BYTES):
        pass


def _listen(path: str) -> Listener:
    # The C type itself: Python's own class costs as much again, and every exec makes two.
    listening = socket.SocketType(socket.AF_UNIX, _LISTENER_TYPE)
    try:
        os.fchmod(listening.fileno(), 0o600)  # before bind: the path is born with this mode
        listening.bind(path)
        listening.listen(limits.LISTEN_BACKLOG)
    except OSError:
        listening.close()
        raise
    return Listener(listening.detach(), path)


def is_trusted_peer(connection: socket.socket) -> bool:
    """Whether the peer is this user or root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return uid in (0, os.geteuid())
