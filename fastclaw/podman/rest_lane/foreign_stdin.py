"""The write end of another process's stdin pipe, taken from /proc, so that stdin needs no one in between.

Why: what conmon has not read when the command ends makes the kernel reset its socket, and Podman then drops output that
was still to come (measured on 4.3.1: up to all of it). Through this descriptor nothing ever waits in conmon. It also
keeps Podman from looking for detach keys in stdin, and saves a relay.

Owns the check that it is the right pipe: the one that the process's parent (conmon) writes to. A command that has
put another pipe in its place by now is left alone. It does not know of engines.

Runs in a process of its own for each pipe (stdin_server.py), never in fastclaw's: splice(2) from an empty socket to a
pipe, or from a pipe to a full socket, waits with the pipe's lock held. A command that does that to its own stdin has
whoever opens, writes or closes that pipe next sleep where no signal is heard, for as long as it likes.
"""

from __future__ import annotations

import os
import select
import stat

from fastclaw import limits
from fastclaw.linux.proc import read_stat


def open_stdin(pid: int) -> int | None:
    """A non-blocking, close-on-exec write end, the caller's to close. None where stdin is no such pipe, or where the
    process is gone or may not be looked at: then stdin has to go the long way. Waits as long as the pipe is locked.

    The parent keeps its own write end: EOF arrives once both are closed.
    """
    link = f"/proc/{pid}/fd/0"
    try:
        wanted = _identity(os.stat(link))
        if wanted is None or not _parent_writes(pid, wanted):
            return None
        fd = os.open(link, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if _identity(os.fstat(fd)) == wanted:
        return fd
    os.close(fd)
    return None


def pass_on(source: int, target: int) -> None:
    """Copy until the source has ended, or nobody reads the target any more. Waits as long as it takes.

    Parameters:
        source: read end of a pipe. Not spliced: that would wait for the target with the source's lock held, and lock
            out who writes to it.
        target: write end of a pipe, made blocking.
    """
    os.set_blocking(target, True)
    news = select.poll()
    news.register(source, select.POLLIN)
    news.register(target, 0)  # POLLERR comes unasked once no reader is left; asking takes no lock
    while not dict(news.poll()).get(target) and (data := os.read(source, limits.COPY_CHUNK_BYTES)):
        try:
            _write_all(target, data)
        except BrokenPipeError:
            return


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _identity(status: os.stat_result) -> tuple[int, int] | None:
    return (status.st_dev, status.st_ino) if stat.S_ISFIFO(status.st_mode) else None


def _parent_writes(pid: int, wanted: tuple[int, int]) -> bool:
    found = read_stat(pid)
    if found is None:
        return False
    base = f"/proc/{found.ppid}"
    return any(_writes(base, number, wanted) for number in os.listdir(f"{base}/fd"))


def _writes(base: str, number: str, wanted: tuple[int, int]) -> bool:
    try:
        if _identity(os.stat(f"{base}/fd/{number}")) != wanted:
            return False
        with open(f"{base}/fdinfo/{number}", "rb", buffering=0) as file:
            flags = int(file.read(4096).split(b"flags:")[1].split()[0], 8)
    except FileNotFoundError:
        return False
    return flags & os.O_ACCMODE == os.O_WRONLY
