"""Ends whole process trees and proves it: on this host by scans of /proc, elsewhere by a second exec.

On this host TERM goes out, then KILL, until scans find nothing more. Every signal goes through a pidfd that was opened
before the process was looked at again, so a process number that is given out anew cannot be hit (pidfd_open(2)).
Processes of a container are ended by their numbers on the host. Trees that are ended at the same time share the scans.

Which processes belong to a tree is decided from a snapshot of the process table alone (`KernelTable`). A process that
wants to leave its tree can lose its parent (double fork), its group and session (setsid) or its environment (`env -i`),
but rarely all of them at once. So membership follows every one of these ties and is closed under descent. Not found is
a process that has lost its parent, its session *and* its environment before the first look.

In containers of an engine on another host a small shell script does it. It needs `sh`, `tr` and `grep` in the image. A
whole exec per tree is slow, but the API has no other way in: Podman got an endpoint for signals to execs only in 2026.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from fastclaw import limits
from fastclaw.engine.rest_lane.demux import STDOUT, Demultiplexer
from fastclaw.engine.rest_lane.exec_calls import ExecCalls, create_body
from fastclaw.errors import ExecFailed, IoError, ProtocolError
from fastclaw.linux import proc
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Grace, StartSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastclaw.engine.rest_lane.http_client import Upgraded

EndTree = Callable[[str, int | None, Grace, float], Awaitable[None]]
"""`end_tree`, or `end_remote_tree` with its first two arguments."""

PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
"""Linux 6.9, include/uapi/linux/pidfd.h: the group that the process leads, all at once."""

INIT_PID = 1
_VARIABLE = PROCESS_ID_VARIABLE.encode()
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


async def end_tree(
    marker: str, root_pid: int | None, grace: Grace, deadline_s: float = limits.TREE_DEADLINE_MS / 1000
) -> None:
    """End everything on this host that belongs to one exec, and return once nothing of it is left.

    Processes that are found while others are dying are ended too. A zombie counts as gone.
    This process, its ancestors and process 1 are never touched.

    Parameters:
        marker: what its members carry in their environment under `PROCESS_ID_VARIABLE`: the process id.
        root_pid: the command's own pid as long as the caller knows that it has not been reaped, else None.
        grace: TERM goes out at once and KILL when it is over; read again while it runs. Over already: KILL only.
        deadline_s: seconds after the end of the grace by which all must be gone.

    Raises:
        ExecFailed: `engine_timeout`, where something is still there at the deadline (it sits in an uninterruptible
            call, or belongs to another user).
        IoError: /proc cannot be read.
    """
    killer = _TreeKiller(marker, set() if root_pid is None else {root_pid})
    try:
        await killer.run(grace, deadline_s)
    finally:
        killer.close()


# --- which processes belong to a tree ---


class KernelTable:
    """A snapshot of the live processes, indexed so that one question costs as much as its answer is long."""

    __slots__ = ("by_pid", "children", "groups", "marked", "sessions")

    def __init__(self, rows: Iterable[proc.Row]) -> None:
        self.by_pid: dict[int, proc.Row] = {}
        self.children: defaultdict[int, list[int]] = defaultdict(list)
        self.groups: defaultdict[int, list[int]] = defaultdict(list)
        self.sessions: defaultdict[int, list[int]] = defaultdict(list)
        self.marked: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            self._add(row)

    def _add(self, row: proc.Row) -> None:
        self.by_pid[row.pid] = row
        self.children[row.ppid].append(row.pid)
        self.groups[row.pgrp].append(row.pid)
        self.sessions[row.session].append(row.pid)
        if row.marker is not None:
            self.marked[row.marker].append(row.pid)

    def ancestors(self, pid: int) -> set[int]:
        """`pid` and everything above it; ends at the first parent that is not in the snapshot."""
        found: set[int] = set()
        while pid in self.by_pid and pid not in found:
            found.add(pid)
            pid = self.by_pid[pid].ppid
        return found

    def members(
        self,
        marker: str,
        roots: Iterable[int] = (),
        *,
        led: Mapping[int, int] | None = None,
        protected: Iterable[int] = (),
    ) -> set[int]:
        """The members of one tree.

        Parameters:
            marker: value of the marker variable that every process of the tree was born with.
            roots: pids known to belong to it; those that are gone are ignored.
            led: members that are gone: pid to the last tick at which that number was surely theirs. Their sessions
                and groups still belong to the tree where a process in them is older than that: a number is not given
                out again while a session or group of that number has a process (free_pid in kernel/pid.c).
            protected: never members, and nothing is reached through them. Process 1 always is.
        """
        seeds = [*self.marked.get(marker, ()), *roots]
        for number, until in (led or {}).items():
            seeds += self._survivors(self.sessions, number, until)
            seeds += self._survivors(self.groups, number, until)
        return self._closure(seeds, {INIT_PID, *protected})

    def _survivors(self, peers_of: Mapping[int, list[int]], number: int, until: int) -> list[int]:
        peers = peers_of.get(number, [])
        ours = any(pid != number and self.by_pid[pid].starttime <= until for pid in peers)
        return peers if ours else []

    def _closure(self, todo: list[int], closed: set[int]) -> set[int]:
        found: set[int] = set()
        while todo:
            pid = todo.pop()
            if pid in found or pid in closed or pid not in self.by_pid:
                continue
            found.add(pid)
            todo += self.children.get(pid, ())
            todo += self.sessions.get(pid, ())
            todo += self.groups.get(pid, ())
        return found


# --- ends on this host ---


class Snapshot(NamedTuple):
    """One scan of the process table. `doubt`: one that was born meanwhile and is alive may not be in it."""

    table: KernelTable
    doubt: bool


class Scanner:
    """Scans the process table in a thread; scans that are asked for while one runs are one, the next."""

    def __init__(self) -> None:
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
        rows, doubt = proc.scan_with_doubt(PROCESS_ID_VARIABLE)
        return Snapshot(KernelTable(rows), doubt)


def kill_marked(marker: str) -> None:
    """Kill everything that carries the marker at the moment it is seen: for a chain of processes each of which has
    forked and left before a whole scan is through. Its next link dies if KILL comes before its own fork is done.
    """
    for pid in proc.pids():
        if proc.read_marker(pid, _VARIABLE) == marker:
            with suppress(OSError):
                _kill_still_marked(pid, marker)


def _kill_still_marked(pid: int, marker: str) -> None:
    """Look again with the pidfd in hand: the number may have been given out anew in between."""
    pidfd = os.pidfd_open(pid)
    try:
        if proc.read_marker(pid, _VARIABLE) == marker:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


_scanners: WeakKeyDictionary[asyncio.AbstractEventLoop, Scanner] = WeakKeyDictionary()
"""One for each loop."""


class _Held:
    """A member that has not ended, with its pidfd."""

    __slots__ = ("fd", "leads", "row")

    def __init__(self, row: proc.Row, fd: int, leads: bool) -> None:
        self.row, self.fd, self.leads = row, fd, leads

    def send(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.fd, signum)

    def kill(self) -> None:
        if self.leads:
            self._kill_group()
        self.send(signal.SIGKILL)

    def _kill_group(self) -> None:
        """In one go, so that no member forks away; a kernel that cannot do it leaves it to the rounds."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)


class _TreeKiller:
    """One tree being ended, with the pidfds of its members.

    Parameters:
        roots: pids known to belong to it.
    """

    def __init__(self, marker: str, roots: set[int]) -> None:
        self._marker, self._roots = marker, roots
        self._held: dict[int, _Held] = {}
        self._led: dict[int, int] = {}
        self._starved = self._escaped = self._doubt = False
        self._deadline: float | None = None
        self._calm = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._scanner = _scanners.setdefault(self._loop, Scanner())

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
            protected=table.ancestors(os.getpid()),
        )
        self._roots.clear()
        self._calm.clear()
        new = [table.by_pid[pid] for pid in found - self._held.keys()]
        for row in sorted(new, key=_age):  # parents first, lest a shell goes on to its next command
            self._hold(table, row, found)
        self._escaped = bool(found) and not self._held
        return bool(found)

    def _out_of_descriptors(self, refused: OSError) -> bool:
        """No descriptor left to look or to hold with: that is no proof of an end, so a later round looks again."""
        if refused.errno not in _NO_DESCRIPTORS:
            raise IoError(f"cannot look at the process table: {refused}") from refused
        self._starved = True
        return True

    def _alive(self, table: KernelTable) -> list[int]:
        """Members of earlier rounds that are still there: theirs stay members when a parent between has died."""
        return [
            pid
            for pid, held in self._held.items()
            if pid in table.by_pid and table.by_pid[pid].starttime == held.row.starttime
        ]

    def _hold(self, table: KernelTable, row: proc.Row, found: set[int]) -> None:
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

    def close(self) -> None:
        """Let go of what is held. Idempotent."""
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
            await asyncio.to_thread(kill_marked, self._marker)
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


def _age(row: proc.Row) -> tuple[int, int]:
    return row.starttime, row.pid


# --- an engine on another host ---

_SCRIPT = r"""
find_all() {
  for e in /proc/[0-9]*/environ; do
    if tr '\0' '\n' <"$e" 2>/dev/null | grep -qxF -- "$1"; then p=${e#/proc/}; echo "${p%/environ}"; fi
  done
}
pids=$(find_all "$1")
[ -n "$pids" ] && kill -s TERM $pids 2>/dev/null
n=0
while pids=$(find_all "$1"); [ -n "$pids" ]; do
  [ "$n" -ge "$2" ] && kill -s KILL $pids 2>/dev/null
  [ "$n" -ge "$3" ] && { echo left; exit 0; }
  n=$((n + 1))
  sleep 0.1 2>/dev/null || sleep 1
done
echo gone
"""
_TURNS_PER_SECOND = 10


async def end_remote_tree(
    calls: ExecCalls, container: str, marker: str, root_pid: int | None, grace: Grace, deadline_s: float
) -> None:
    """As `end_tree`, in one container (its full id). The grace is read once; `root_pid` means nothing here.

    Raises:
        ExecFailed: `unsupported`, where the image lacks the tools; `engine_timeout`, where something is left; and as
            `ExecCalls.create` and `start`.
    """
    seconds = max(grace.ends_at - asyncio.get_running_loop().time(), 0.0)
    try:
        async with asyncio.timeout(seconds + deadline_s):
            answer = await _run_script(calls, container, marker, seconds, deadline_s)
    except TimeoutError as error:
        raise ExecFailed(f"{marker} could not be ended within {deadline_s} s", "engine_timeout") from error
    if answer == b"left\n":
        raise ExecFailed(f"{marker} is still there {deadline_s} s after SIGKILL", "engine_timeout")
    if answer != b"gone\n":
        raise ExecFailed(
            "processes of an engine elsewhere are ended with sh, tr and grep, and the image lacks one", "unsupported"
        )


async def _run_script(calls: ExecCalls, container: str, marker: str, seconds: float, deadline_s: float) -> bytes:
    turns = int(seconds * _TURNS_PER_SECOND)
    words = [f"{PROCESS_ID_VARIABLE}={marker}", str(turns), str(turns + int(deadline_s * _TURNS_PER_SECOND / 2))]
    spec = StartSpec(process_id="", cmd=["sh", "-c", _SCRIPT, "sh", *words], env={}, user="0", stdin=False)
    session = await calls.create(container, create_body(spec))
    return await _stdout(await calls.start(session))


async def _stdout(hijacked: Upgraded) -> bytes:
    """All of it; the script writes one word."""
    with hijacked.sock:
        try:
            return await _read(hijacked)
        except ProtocolError as error:
            raise ExecFailed(f"the engine's stream makes no sense: {error}") from error
        except OSError as error:
            raise ExecFailed(f"the engine's stream broke: {error.strerror}", "engine_unavailable") from error


async def _read(hijacked: Upgraded) -> bytes:
    loop = asyncio.get_running_loop()
    demultiplexer, said = Demultiplexer(), b""
    data = hijacked.leftover or await loop.sock_recv(hijacked.sock, limits.HTTP_READ_BYTES)
    while data:
        slices = demultiplexer.feed(memoryview(data))
        said += b"".join(payload for stream, payload in slices if stream == STDOUT)
        if len(said) > limits.MAX_HTTP_BODY_BYTES:
            break
        data = await loop.sock_recv(hijacked.sock, limits.HTTP_READ_BYTES)
    return said
