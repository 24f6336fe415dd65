"""Outlives fastclaw and leaves nothing behind: run as a script, `python -I -S -E …/warden.py TOKEN TABLE_FD`.

Started by `guard.py`, which holds the only write end of the pipe that is stdin here. What comes through it is a
series of NUL-terminated records: `+PATH` is a directory to remove, `-PATH` one that is not to be removed after all,
`q` means that fastclaw ends in good order. EOF without `q` means that it was killed: then every process that carries
the token in its environment, every command in the table on TABLE_FD and everything they started is killed, and the
directories are removed.

Its own process in its own session, that ignores the signals people send and needs no third-party package; it is
idle, blocked in a read, until the end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from fastclaw import limits
from fastclaw.decisions.tree import ProcessTable
from fastclaw.transport import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE = "FASTCLAW_OWNER"
"""Marks every process that fastclaw starts, in its environment, with the token of its warden."""

SLOT_BYTES = 4
"""The table: one pid in native byte order per slot, 0 where it is free."""

_READ_BYTES = 65536
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


class Orders:
    """What has come through the pipe so far."""

    def __init__(self) -> None:
        self.directories: set[str] = set()
        self.quiet = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *records, self._rest = (self._rest + data).split(b"\0")
        for record in records:
            self._obey(record[:1], os.fsdecode(record[1:]))

    def _obey(self, word: bytes, path: str) -> None:
        if word == b"+":
            self.directories.add(path)
        elif word == b"-":
            self.directories.discard(path)
        elif word == b"q":
            self.quiet = True


def receive(fd: int) -> Orders:
    """Read until `q` or EOF."""
    orders = Orders()
    while not orders.quiet and (data := os.read(fd, _READ_BYTES)):
        orders.feed(data)
    return orders


def tracked(table: bytes) -> list[int]:
    """The pids in the table of live commands."""
    return [pid for pid in memoryview(table).cast("i") if pid > 0]


def end_owned(token: str, commands: Iterable[int]) -> None:
    """Kill in rounds until two looks in a row find nothing, or the bound on such a hunt is over.

    The commands were alive when fastclaw ended, a moment ago, so their numbers and sessions are still theirs.
    """
    deadline = time.monotonic() + limits.TREE_DEADLINE_MS / 1000
    now = procfs.ticks_now()
    led = dict.fromkeys(commands, now)
    roots = {pid for pid in led if (stat := procfs.read_stat(pid)) and stat.starttime <= now}
    quiet = 0
    while quiet < limits.TREE_QUIET_SCANS and time.monotonic() < deadline:
        table = ProcessTable(procfs.scan(VARIABLE))
        found = table.members(token, roots, led=led, protected=table.ancestors(os.getpid()))
        quiet = 0 if found else quiet + 1
        roots = found
        led |= dict.fromkeys(found, procfs.ticks_now())
        end_all(table, found)


def end_all(table: ProcessTable, found: set[int]) -> None:
    """One round: a pidfd for each, looked at again, KILL through it, and a pause for as long as they take to die."""
    for pid in found:
        with suppress(OSError):
            _end(pid, table.by_pid[pid].starttime)
    if found:
        time.sleep(limits.TREE_SCAN_MS / 1000)


def _end(pid: int, starttime: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if procfs.is_running(pid, starttime):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def remove(directories: Iterable[str]) -> None:
    """Remove directories with all that is in them; one that is gone or refuses does not stop the others."""
    import shutil  # only here: it takes as long to import as all the rest, and most wardens never need it

    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


def main(token: str, table_fd: int) -> None:
    for signum in _IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    orders = receive(0)
    if orders.quiet:
        return
    end_owned(token, tracked(os.pread(table_fd, os.fstat(table_fd).st_size, 0)))
    remove(orders.directories)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
