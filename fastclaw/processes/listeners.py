"""The directory and the listening Unix sockets through which clients reach a process.

Owns paths and permissions: a directory of mode 0700 that only this user enters, sockets of mode 0600 in it, and a check
of each peer's credentials (SO_PEERCRED, unix(7)).
"""

import contextlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from fastclaw import limits
from fastclaw.errors import IoError
from fastclaw.linux import proc
from fastclaw.linux.directories import HeldDirectory, from_environment, remove_abandoned, runtime_directory, why_unsafe
from fastclaw.linux.sockets import listen_privately, peer

_PREFIX = "fastclaw-"
_DIRECTORIES = f"{_PREFIX}[0-9]*-????????"
"""Their names, as for `Path.glob`."""
_LONGEST_NAME = len(f"/{_PREFIX}4194304-01234567/0123abcd-1000000000.err")
_LONGEST_PARENT = limits.SOCKET_PATH_BYTES - _LONGEST_NAME


def runtime_parent() -> Path:
    """Where short-lived private directories go: $XDG_RUNTIME_DIR, else /run, else /tmp.

    Making a socket's path takes 10 µs in memory and 70 to 500 µs on a disk (ext4, measured), twice for each exec. So
    without $XDG_RUNTIME_DIR, if /run is on a disk, as in many VMs and containers, /dev/shm goes before them.

    Raises:
        IoError: none of them can be used.
    """
    chosen = runtime_directory(_LONGEST_PARENT)
    if chosen is not None:
        return chosen
    for path in map(Path, sorted(_default_parents(), key=lambda path: not proc.is_in_memory(path))):
        fits = len(os.fsencode(path)) <= _LONGEST_PARENT
        if fits and os.access(path, os.W_OK | os.X_OK) and why_unsafe(path) is None:
            return path
    raise IoError(
        "no directory for sockets: set XDG_RUNTIME_DIR to one of yours that only you can write, "
        f"with a path of at most {_LONGEST_PARENT} bytes"
    )


def _default_parents() -> tuple[str, ...]:
    return ("/run", "/dev/shm", tempfile.gettempdir(), "/tmp")


def socket_directories() -> list[Path]:
    """Those of this user's runtimes, wherever each may have been told to have its own."""
    named = from_environment("XDG_RUNTIME_DIR")
    parents = dict.fromkeys([*([] if named is None else [named]), *map(Path, _default_parents())])
    return [path for parent in parents for path in sorted(parent.glob(_DIRECTORIES)) if _is_own_directory(path)]


def _is_own_directory(path: Path) -> bool:
    with contextlib.suppress(OSError):  # it has just been removed
        status = path.lstat()
        return status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)
    return False


class SocketDirectory:
    """A private directory for the sockets of one runtime. Making one removes those of runtimes that were killed.

    Raises:
        IoError: none can be made, or its path leaves no room for a socket's name.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or runtime_parent()
        if len(os.fsencode(parent)) > _LONGEST_PARENT:
            raise IoError(f"{parent} is too long for socket paths: it may have {_LONGEST_PARENT} bytes")
        remove_abandoned(parent, _DIRECTORIES)
        try:
            self._held = HeldDirectory(parent, f"{_PREFIX}{os.getpid()}-")
        except OSError as error:
            raise IoError(f"cannot make a directory for sockets in {parent}: {error.strerror}") from error
        self.path = self._held.path

    @property
    def trouble(self) -> str | None:
        """What is wrong with it now, in one line."""
        return None if self._held.is_there() else f"{self.path} with the sockets is gone: start fastclaw anew"

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

    def close(self) -> None:
        """Remove the directory with all that is in it. Idempotent."""
        self._held.remove()


class Listener(NamedTuple):
    """A listening socket: its descriptor, and the path that is unlinked with it. The holder closes it, once."""

    fd: int
    path: str

    def accept(self) -> socket.socket:
        """The next connection, non-blocking.

        Raises:
            BlockingIOError: no client waits any more.
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
        """Unlink both; they are closed elsewhere."""
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
    return Listener(listen_privately(path, socket.SOCK_STREAM, limits.LISTEN_BACKLOG), path)


def is_trusted_peer(connection: socket.socket) -> bool:
    """Whether the peer is this user or root."""
    _, uid = peer(connection)
    return uid in (0, os.geteuid())
