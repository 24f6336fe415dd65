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
_LONGEST_NAME = len("/") + len("0123456789abcdef-1000000000.err")


def runtime_parent() -> Path:
    """Where short-lived private directories go: $XDG_RUNTIME_DIR, else /run, else /tmp."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), "/run", tempfile.gettempdir())
    for candidate in candidates:
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
            close_listener(stdio)
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


class ProcessSockets(NamedTuple):
    """The two listening sockets of a process. Whoever holds them closes them with `close_listener`."""

    stdio: socket.socket
    stderr: socket.socket

    def close(self) -> None:
        """Close and unlink both."""
        for listener in self:
            close_listener(listener)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the path is born with this mode
        listener.bind(path)
        listener.listen(limits.LISTEN_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def close_listener(listener: socket.socket) -> None:
    """Close a listening socket and unlink its path. Idempotent."""
    if listener.fileno() >= 0:
        with contextlib.suppress(OSError):
            os.unlink(listener.getsockname())
        listener.close()


def is_trusted_peer(connection: socket.socket) -> bool:
    """Whether the peer is this user or root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return uid in (0, os.geteuid())
