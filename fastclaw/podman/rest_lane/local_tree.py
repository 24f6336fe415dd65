"""Ends whole process trees and proves it: TERM, then KILL, until scans of /proc find nothing more.

Owns the pidfds of the processes it signals, and the scans, which trees that are ended at the same time share. Every
signal goes through a pidfd that was opened before the process was looked at again, so a process number that
is given out anew cannot be hit (pidfd_open(2)). Knows nothing of lanes, engines or namespaces: processes of a
container are ended the same way by their numbers on the host.

What it cannot find: a process that has lost its parent, its session *and* its environment before the first look.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from fastclaw import limits
from fastclaw.errors import ExecFailed, IoError
from fastclaw.linux import proc
from fastclaw.linux.tree import ProcessTable, Row
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Grace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
"""Linux 6.9, include/uapi/linux/pidfd.h: the group that the process leads, all at once."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


async def end_tree(
    marker: str,
    root_pid: int | None,
    grace: Grace,
    *,
    deadline_s: float = limits.TREE_DEADLINE_MS / 1000,
    protected: Iterable[int] = (),
    led: Mapping[int, int] | None = None,
    more_roots: Iterable[int] = (),
    variable: str = PROCESS_ID_VARIABLE,
) -> frozenset[int]:
    """End everything that belongs to one exec, and return once nothing of it is left.

    Processes that are found while others are dying are ended too. A zombie counts as gone, whoever has to reap it.

    Parameters:
        marker: what its members carry in their environment under `variable`: the process id.
        root_pid: the command's own pid as long as the caller knows that it has not been reaped, else None.
        grace: TERM goes out at once and KILL when it is over; read again while it runs. Over already: KILL only.
        deadline_s: seconds after the end of the grace by which all must be gone.
        protected: pids never touched; this process, its ancestors and pid 1 never are.
        led: as in `ProcessTable.members`; for a command that is reaped, its pid and the tick of its end.
        more_roots: further pids under the same condition as `root_pid`.

    Returns:
        Every pid that was found to belong to the tree.

    Raises:
        ExecFailed: `engine_timeout`, where something is still there at the deadline (it sits in an uninterruptible
            call, or belongs to another user).
        IoError: /proc cannot be read.
    """
    roots = {*more_roots} if root_pid is None else {root_pid, *more_roots}
    hunt = _Hunt(variable, marker, roots, frozenset(protected), dict(led or {}))
    try:
        await hunt.run(grace, deadline_s)
    finally:
        hunt.release()
    return frozenset(hunt.seen)


class Snapshot(NamedTuple):
    """One scan. `doubt`: processes were born meanwhile, of which one that is alive may not be in it."""

    table: ProcessTable
    doubt: bool


class Scanner:
    """Scans the process table in a thread; who asks while a scan runs shares the next one."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self._running: asyncio.Future[Snapshot] | None = None

    async def fresh(self) -> Snapshot:
        """A table whose scan began after this call."""
        stale = self._running
        if stale is not None:
            await asyncio.wait([stale])
        if self._running is stale or self._running is None:
            self._begin()
        assert self._running is not None
        return await asyncio.shield(self._running)

    def _begin(self) -> None:
        self._running = asyncio.get_running_loop().run_in_executor(None, self._table)
        self._running.add_done_callback(self._ended)

    def _ended(self, scan: asyncio.Future[Snapshot]) -> None:
        if self._running is scan:
            self._running = None

    def _table(self) -> Snapshot:
        rows, doubt = proc.scan_with_doubt(self._variable)
        return Snapshot(ProcessTable(rows), doubt)


def chase(variable: str, marker: str) -> None:
    """Kill everything that carries the marker at the moment it is seen: for a chain of processes each of which has
    forked and left before a whole scan is through. Its next link dies if KILL comes before its own fork is done.
    """
    name = os.fsencode(variable)
    for pid in proc.pids():
        if proc.read_marker(pid, name) == marker:
            with suppress(OSError):
                _kill_marked(pid, name, marker)


def _kill_marked(pid: int, name: bytes, marker: str) -> None:
    """Look again with the pidfd in hand: the number may have been given out anew in between."""
    pidfd = os.pidfd_open(pid)
    try:
        if proc.read_marker(pid, name) == marker:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


_scanners: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Scanner]] = WeakKeyDictionary()


def _scanner(variable: str) -> Scanner:
    """The one scanner of this loop for this variable."""
    of_this_loop = _scanners.setdefault(asyncio.get_running_loop(), {})
    return of_this_loop.setdefault(variable, Scanner(variable))


class _Held:
    """A member that has not ended, with its pidfd."""

    __slots__ = ("fd", "leads", "row")

    def __init__(self, row: Row, fd: int, leads: bool) -> None:
        self.row, self.fd, self.leads = row, fd, leads

    def send(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.fd, signum)

    def kill(self) -> None:
        if self.leads:
            self._kill_group()
        self.send(signal.SIGKILL)

    def _kill_group(self) -> None:
        """In one go, so that nobody in it forks away; a kernel that cannot do it leaves it to the rounds."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)


class _Hunt:
    """One tree being ended."""

    def __init__(
        self, variable: str, marker: str, roots: set[int], protected: frozenset[int], led: dict[int, int]
    ) -> None:
        self.seen: set[int] = set()
        self._marker, self._protected, self._led = marker, protected, led
        self._variable, self._roots = variable, roots
        self._held: dict[int, _Held] = {}
        self._starved = False
        self._escaped = self._doubt = False
        self._deadline: float | None = None
        self._calm = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._scanner = _scanner(variable)

    async def run(self, grace: Grace, deadline_s: float) -> None:
        """Rounds until it is quiet. A scan in doubt is no proof, but on a busy host there may be no other."""
        quiet = doubts = 0
        while quiet < limits.TREE_QUIET_SCANS:
            if await self._look():
                quiet = doubts = 0
                await self._round(grace, deadline_s)
            elif self._doubt and doubts < limits.TREE_DOUBTFUL_SCANS:
                doubts += 1
            else:
                quiet += 1

    async def _look(self) -> bool:
        """Scan once; take hold of every member that is new. True where there was any."""
        self._starved = False
        try:
            table, self._doubt = await self._scanner.fresh()
        except OSError as refused:
            return self._out_of_descriptors(refused)
        found = table.members(
            self._marker,
            [*self._roots, *self._alive(table)],
            led=self._led,
            protected=self._protected | table.ancestors(os.getpid()),
        )
        self._roots.clear()
        self._calm.clear()
        new = [table.by_pid[pid] for pid in found - self._held.keys()]
        for row in sorted(new, key=_age):  # parents first, lest a shell goes on to its next command
            self._hold(table, row, found)
        self._escaped = bool(found) and not self._held
        self.seen |= found
        return bool(found)

    def _out_of_descriptors(self, refused: OSError) -> bool:
        """No descriptor left to look or to hold with: that is no proof of an end, so a later round looks again."""
        if refused.errno not in _NO_DESCRIPTORS:
            raise IoError(f"cannot look at the process table: {refused}") from refused
        self._starved = True
        return True

    def _alive(self, table: ProcessTable) -> list[int]:
        """Members of earlier rounds that are still there: theirs stay members when a parent between has died."""
        return [
            pid
            for pid, held in self._held.items()
            if pid in table.by_pid and table.by_pid[pid].starttime == held.row.starttime
        ]

    def _hold(self, table: ProcessTable, row: Row, found: set[int]) -> None:
        try:
            fd = os.pidfd_open(row.pid)
        except ProcessLookupError:
            return
        except OSError as refused:
            self._out_of_descriptors(refused)
            return
        if not proc.is_running(row.pid, row.starttime):
            os.close(fd)
            return
        leads = row.pid == row.pgrp and found.issuperset(table.groups[row.pid])
        self._held[row.pid] = _Held(row, fd, leads)
        self._loop.add_reader(fd, self._ended, row.pid)

    def _ended(self, pid: int) -> None:
        self._drop(pid)
        self._led[pid] = proc.ticks_now()
        if not self._held:
            self._calm.set()

    def _drop(self, pid: int) -> None:
        fd = self._held.pop(pid).fd
        self._loop.remove_reader(fd)
        os.close(fd)

    def release(self) -> None:
        for pid in list(self._held):
            self._drop(pid)

    async def _round(self, grace: Grace, deadline_s: float) -> None:
        """Signal what is held and wait until it is gone, or until it is time to look again."""
        if self._loop.time() < grace.ends_at:
            self._terminate()
            while self._held and self._loop.time() < grace.ends_at:
                await self._settle(min(limits.GRACE_LOOK_MS / 1000, grace.ends_at - self._loop.time()))
        if self._held:
            await self._kill()
        elif self._starved:
            await asyncio.sleep(limits.TREE_SCAN_MS / 1000)
        elif self._escaped:
            await asyncio.to_thread(chase, self._variable, self._marker)
        if self._loop.time() >= grace.ends_at:
            self._check(deadline_s)

    def _terminate(self) -> None:
        """TERM, and CONT so that a stopped process gets to see it."""
        for signum in (signal.SIGTERM, signal.SIGCONT):
            for held in self._held.values():
                held.send(signum)

    async def _kill(self) -> None:
        for held in self._held.values():
            held.kill()
        await self._settle(limits.TREE_SCAN_MS / 1000)

    async def _settle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()

    def _check(self, deadline_s: float) -> None:
        """The deadline counts from when the grace was first seen to be over: its `ends_at` may be set to any past."""
        now = self._loop.time()
        if self._deadline is None:
            self._deadline = now + deadline_s
        if now < self._deadline:
            return
        left = ", ".join(str(pid) for pid in sorted(self._held)[:8]) or "processes that start anew"
        raise ExecFailed(f"the process tree did not end, left: {left}", "engine_timeout")


def _age(row: Row) -> tuple[int, int]:
    return row.starttime, row.pid
