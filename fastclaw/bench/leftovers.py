"""What a runtime has left behind: processes of its tree, sockets, containers, environments.

Its processes are known by a variable that they inherit, and by having been in its tree while it lived.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fastclaw import bench_limits
from fastclaw.linux import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MARKER = "FASTCLAW_BENCH"


class Leftovers(Struct, frozen=True, kw_only=True):
    """How many of each are there after the runtime's end.

    Parameters:
        sockets: of those of the last operations.
        containers: whose name stands in the command line of a process, of those that the runtime told of.
        environments: that the runtime itself still listed before its shutdown.
    """

    processes: int
    sockets: int
    containers: int
    environments: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.processes + self.sockets + self.containers + self.environments

    @property
    def text(self) -> str:
        """In a line."""
        counts = {name: getattr(self, name) for name in self.__struct_fields__}
        return "left over: " + (", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing")


class Traces:
    """By which the processes of one runtime are found."""

    def __init__(self) -> None:
        self._token = f"bench-{secrets.token_hex(8)}"
        self._seen: set[tuple[int, int]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """For the runtime."""
        return {**os.environ, MARKER: self._token}

    def see(self, root: int) -> None:
        """Remember who descends from the runtime now."""
        self._seen |= {(pid, stat.starttime) for pid, stat in tree(root).items()}

    def alive(self) -> set[int]:
        """Processes of the runtime that there are."""
        marked = {row.pid for row in proc.scan(MARKER) if row.marker == self._token}
        seen = {pid for pid, starttime in self._seen if proc.is_running(pid, starttime)}
        return {pid for pid in marked | seen if not proc.is_podman_pause(pid)}

    async def gone(self) -> int:
        """How many processes are left once they have had a moment to end."""
        deadline = time.monotonic() + bench_limits.BENCH_GONE_MS / 1000
        while True:
            alive = self.alive()
            if not alive or time.monotonic() > deadline:
                return len(alive)
            await asyncio.sleep(bench_limits.BENCH_POLL_MS / 1000)


def tree(root: int) -> dict[int, proc.Stat]:
    """A process and all that descend from it."""
    stats = {pid: stat for pid in proc.pids() if (stat := proc.read_stat(pid)) is not None and not stat.gone}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.ppid, []).append(pid)
    found: dict[int, proc.Stat] = {}
    queue = [root]
    while queue:
        pid = queue.pop()
        if pid in stats and pid not in found:
            found[pid] = stats[pid]
            queue += children.get(pid, [])
    return found


def existing(paths: Iterable[str]) -> int:
    """How many of them are there."""
    return sum(os.path.lexists(path) for path in set(paths) if "\0" not in path)


def running(containers: Iterable[str], cmdlines: Callable[[], Iterable[bytes]] | None = None) -> int:
    """How many of them stand in the command line of some process: their monitors' have their names."""
    names = {name.encode() for name in containers}
    if not names:
        return 0
    lines = list((cmdlines or command_lines)())
    return sum(any(name in line for line in lines) for name in names)


def command_lines() -> list[bytes]:
    """Of all processes."""
    lines = []
    for pid in proc.pids():
        try:
            lines.append(Path(f"{proc.PROC}/{pid}/cmdline").read_bytes())
        except OSError:  # it has ended
            continue
    return lines
