"""Makes the processes that pass input on, one for each command's stdin pipe. A program of its own.

A helper opens the write end of another process's stdin pipe through /proc, so that input needs no one in between. Why:
what conmon has not read when the command ends makes the kernel reset its socket, and Podman then drops output that was
still to come (measured on 4.3.1: up to all of it). Through this descriptor nothing ever waits in conmon. It also keeps
Podman from looking for detach keys in stdin, and saves a relay.

A process for each pipe, never fastclaw itself: splice(2) from an empty socket to a pipe, or from a pipe to a full
socket, waits with the pipe's lock held. A command that does that to its own stdin has every process that opens, writes
or closes that pipe next sleep where no signal is heard, for as long as it likes.

Started by `stdin.py` with its end of a SOCK_SEQPACKET pair as the only argument. It forks, so that a process more costs
a few pages and 1 ms, and reaps. The server itself touches no such pipe and waits for nothing. When the other end
closes, however fastclaw ended, it kills what it has made and ends.

    START id pid   with the read end of a pipe of fastclaw's, which is copied into the stdin of pid, and the write end
                   of another, on which `OPENED` is said once there is something to copy into. If that closes without a
                   word, there never will be
    END id         nothing more is written: what is not through after `limits.STDIN_END_MS` is killed
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from fastclaw import limits
from fastclaw.linux.packets import close_all, receive
from fastclaw.linux.proc import read_stat

if TYPE_CHECKING:
    from collections.abc import Sequence

START, END = 1, 2
ORDER = struct.Struct("=3I")
"""kind, id, pid"""

OPENED = b"!"
_START_FDS = 2


class StdinServer:
    """Makes helpers, kills them, reaps them.

    Parameters:
        orders: connected to fastclaw, non-blocking.
    """

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._pids: dict[int, int] = {}
        self._ids: dict[int, int] = {}
        self._ending: deque[tuple[float, int]] = deque()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)  # else no byte is written
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._news = select.poll()
        self._news.register(self._woken, select.POLLIN)

    def run(self) -> None:
        """Until the other end closes; then whatever still runs is killed."""
        self._news.register(self._orders, select.POLLIN)
        while self._obey():
            self._wait(self._next_kill())
            while self._ending and self._ending[0][0] <= time.monotonic():
                self._kill(self._ending.popleft()[1])
        self._news.unregister(self._orders)
        self._end_all()

    # --- orders ---

    def _obey(self) -> bool:
        """Everything that was ordered; False at the end."""
        frame = memoryview(bytearray(ORDER.size))
        with suppress(BlockingIOError):
            while True:
                size, fds = receive(self._orders, frame, _START_FDS)
                if not size:
                    return False
                try:
                    self._do(frame[:size], fds)
                finally:
                    close_all(fds)
        return True

    def _do(self, frame: memoryview, fds: Sequence[int]) -> None:
        kind, id, pid = ORDER.unpack(frame)
        if kind == END:
            self._ending.append((time.monotonic() + limits.STDIN_END_MS / 1000, id))
        elif len(fds) == _START_FDS:  # else there was no descriptor left for them
            self._start(id, pid, *fds)

    def _start(self, id: int, pid: int, source: int, tell: int) -> None:
        try:
            child = os.fork()
        except OSError:
            return  # no process to be had: `tell` closes
        if child == 0:
            self._become(pid, source, tell)
        self._pids[id], self._ids[child] = child, id

    # --- the forked one ---

    def _become(self, pid: int, source: int, tell: int) -> NoReturn:
        """Be a helper. Holds nothing that is the server's: others must see those ends close."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._orders.close()
            os.close(self._woken)
            os.close(self._wake)
            _help(pid, source, tell)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    # --- ends ---

    def _wait(self, timeout_ms: float | None) -> None:
        """For an order, the end of a helper, or so long."""
        self._news.poll(timeout_ms)
        with suppress(BlockingIOError):
            while os.read(self._woken, limits.READ_CHUNK_BYTES):
                pass
        self._reap()

    def _next_kill(self) -> float | None:
        return max(0.0, self._ending[0][0] - time.monotonic()) * 1000 if self._ending else None

    def _kill(self, id: int) -> None:
        """One that has ended and is reaped has no entry, and one that is not reaped keeps its number."""
        if (child := self._pids.get(id)) is not None:
            os.kill(child, signal.SIGKILL)

    def _reap(self) -> None:
        while self._ids and (child := os.waitpid(-1, os.WNOHANG)[0]):
            del self._pids[self._ids.pop(child)]

    def _end_all(self) -> None:
        """One that sleeps where no signal is heard ends as soon as it is let go; it is not waited for that long."""
        for id in self._pids:
            self._kill(id)
        deadline = time.monotonic() + limits.STDIN_KILLED_MS / 1000
        while self._ids and (left := deadline - time.monotonic()) > 0:
            self._wait(left * 1000)


def _help(pid: int, source: int, tell: int) -> None:
    target = open_stdin(pid)
    if target is None:
        return
    try:
        os.write(tell, OPENED)
    except BrokenPipeError:
        return  # it took too long: stdin goes another way
    os.close(tell)
    pass_on(source, target)


# --- a helper ---


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
    """Copy until the source has ended, or the target has no reader any more. Waits as long as it takes.

    Parameters:
        source: read end of a pipe. Not spliced: that would wait for the target with the source's lock held, and lock
            out its writer.
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


def _main(fd: int) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with its owner
    gc.disable()  # nothing here is cyclic, and a collection would copy the pages that all helpers share
    gc.freeze()
    with socket.socket(fileno=fd) as orders:
        orders.setblocking(False)
        StdinServer(orders).run()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
