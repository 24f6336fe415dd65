"""Which processes belong to a tree: decided from a snapshot of the process table, and from nothing else.

A process that wants to leave its tree can lose its parent (double fork), its group and session (setsid) or its
environment (`env -i`), but rarely all of them at once. So membership follows every one of these ties and is closed
under descent. Knows nothing of /proc, signals or time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INIT_PID = 1


class Row(NamedTuple):
    """One live process.

    Parameters:
        starttime: clock ticks since boot, field 22 of proc_pid_stat(5); with `pid` it identifies a process.
        marker: value of the marker variable in its environment, or None.
    """

    pid: int
    ppid: int
    pgrp: int
    session: int
    starttime: int
    marker: str | None


class ProcessTable:
    """A snapshot of the live processes, indexed so that one question costs as much as its answer is long."""

    __slots__ = ("by_pid", "children", "groups", "marked", "sessions")

    def __init__(self, rows: Iterable[Row]) -> None:
        self.by_pid: dict[int, Row] = {}
        self.children: defaultdict[int, list[int]] = defaultdict(list)
        self.groups: defaultdict[int, list[int]] = defaultdict(list)
        self.sessions: defaultdict[int, list[int]] = defaultdict(list)
        self.marked: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            self._add(row)

    def _add(self, row: Row) -> None:
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
                and groups still belong to the tree where somebody in them is older than that: a number is not given
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
