"""Reaps what the commands of this host leave behind, and nobody else's children.

fastclaw is a subreaper (prctl(2)), so a process whose parent ended becomes our child, and a zombie once it ends.
`waitpid(-1)` and a SIGCHLD handler are both out: they would take exits from uvloop, from `subprocess` or from whoever
else starts processes here (and uvloop keeps SIGCHLD to itself). So only a zombie that surely is an orphan is reaped:

- one that was seen in the tree of a command of ours (`reap`), or
- one that is no registered command, was not declared as somebody's (`leave_alone`), is outside our own session (an
  orphan of a command always is: `setsid` cannot be undone), and that nobody has reaped for `ORPHAN_PATIENCE_MS`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.transport import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable

_PR_SET_CHILD_SUBREAPER = 36
"""include/uapi/linux/prctl.h"""


def become_subreaper() -> None:
    """Orphans of our descendants become our children. Holds for the life of this process; doing it twice is harmless.

    Raises:
        StartFailed: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise StartFailed(f"cannot become a subreaper: {os.strerror(ctypes.get_errno())}")


class Orphanage:
    """Our children: which are commands, which are somebody else's, and which are orphans."""

    def __init__(self) -> None:
        self._commands: set[int] = set()
        self._foreign: set[int] = set()
        self._suspects: dict[tuple[int, int], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def register(self, pid: int) -> None:
        """A command was started; whoever registered it reaps it and then calls `forget`."""
        self._commands.add(pid)
        if self._timer is None:
            self._arm()

    def forget(self, pid: int) -> None:
        """The command was reaped."""
        self._commands.discard(pid)

    def leave_alone(self, pid: int) -> None:
        """This child of ours has an owner that reaps it, however late (a service, a warden)."""
        self._foreign.add(pid)

    def reap(self, pids: Iterable[int]) -> None:
        """Reap those of these members of an ended tree that are zombies of ours."""
        for pid in set(pids) - self._commands - self._foreign:
            _reap(pid)

    def close(self) -> None:
        """Reap every orphan that has ended, without patience, and stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.reap(pid for pid, stat in self._orphans() if stat.gone)
        self._suspects.clear()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(limits.ORPHAN_SWEEP_MS / 1000, self._sweep)

    def _sweep(self) -> None:
        """Look, unless there are commands and no zombies; go on while there is anything to wait for."""
        self._timer = None
        orphans = self._orphans() if _somebody_waits() or not self._commands else []
        self._judge([(pid, stat.starttime) for pid, stat in orphans if stat.gone])
        if self._commands or orphans:
            self._arm()

    def _orphans(self) -> list[tuple[int, procfs.Stat]]:
        """Children that nobody has claimed, outside our own session."""
        ours, known = os.getsid(0), self._commands | self._foreign
        children = procfs.children(os.getpid())
        return [(pid, stat) for pid, stat in children if stat.session != ours and pid not in known]

    def _judge(self, zombies: list[tuple[int, int]]) -> None:
        now = asyncio.get_running_loop().time()
        self._suspects = {zombie: self._suspects.get(zombie, now) for zombie in zombies}
        for (pid, _), since in self._suspects.items():
            if now - since >= limits.ORPHAN_PATIENCE_MS / 1000:
                _reap(pid)


def _somebody_waits() -> bool:
    """Whether any child at all is a zombie: one system call instead of a scan, and nothing is reaped by it."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(pid: int) -> None:
    """Only a direct child can be reaped, and a living one is not touched."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
