"""What a step of a climb takes of the host: processor time, descriptors, and the queue that the runtime tells of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from fastclaw import bench_limits
from fastclaw.bench.cliff import Seen
from fastclaw.bench.leftovers import tree
from fastclaw.linux import own_process, proc

if TYPE_CHECKING:
    from fastclaw.bench.calls import Calls

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WAITING = frozenset({"waiting", "queued", "queue_length"})
"""What a runtime may call its queue in `health.details`; ours says `processes.waiting`."""

_DEPTH = 4


class Ticks(Struct, frozen=True, kw_only=True):
    """Processor time until a moment, in the kernel's ticks."""

    at: float
    machine: int
    tree: int
    runtime: int
    generator_s: float


def ticks(root: int) -> Ticks:
    """Until now. What has ended counts where its parent has reaped it."""
    return Ticks(
        at=time.monotonic(),
        machine=_busy(),
        tree=sum(sum(_times(pid)) for pid in tree(root)),
        runtime=sum(_times(root)[:2]),
        generator_s=time.process_time(),
    )


def _times(pid: int) -> tuple[int, int, int, int]:
    """utime, stime, and those of children that were waited for (proc_pid_stat(5))."""
    try:
        data = Path(f"{proc.PROC}/{pid}/stat").read_bytes()
    except OSError:
        return 0, 0, 0, 0
    fields = data[data.rindex(b")") + 2 :].split()
    user, system, of_children, system_of_children = map(int, fields[11:15])
    return user, system, of_children, system_of_children


def _busy() -> int:
    """All but idle and waiting for a disk (proc_stat(5)); what guests take is in `user` as well."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, _first_line("stat").split()[1:9])
    return user + nice + system + interrupts + soft + stolen


def _first_line(name: str) -> str:
    return Path(f"{proc.PROC}/{name}").read_text().partition("\n")[0]


def files_limit(pid: int) -> int | None:
    """How many descriptors a process may have; None where that is not known, or no limit."""
    with contextlib.suppress(OSError):
        for line in Path(f"{proc.PROC}/{pid}/limits").read_text().splitlines():
            if line.startswith("Max open files"):
                soft = line.split()[3]
                return int(soft) if soft.isdigit() else None
    return None


def waiting_in(details: Any, depth: int = _DEPTH) -> int | None:
    """What of a health's details is a queue, all of them together."""
    if not isinstance(details, dict) or not depth:
        return None
    own = [value for name, value in details.items() if name in _WAITING and type(value) is int]
    inner = [found for value in details.values() if (found := waiting_in(value, depth - 1)) is not None]
    return sum(own + inner) if own or inner else None


class Watch:
    """Looks while a step lasts."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._files = 0
        self._waiting: int | None = None
        self._status = "healthy"
        self._first = ticks(calls.pid)
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while self._calls.end is None:
            with contextlib.suppress(OSError):
                self._files = max(self._files, len(os.listdir(f"{proc.PROC}/{self._calls.pid}/fd")))
            _, health, _ = await self._calls.call("health", b"{}")
            if isinstance(health, dict):
                self._hear(health)
            await asyncio.sleep(bench_limits.BENCH_WATCH_MS / 1000)

    def _hear(self, health: dict[str, Any]) -> None:
        waiting = waiting_in(health.get("details"))
        if waiting is not None:
            self._waiting = max(waiting, self._waiting or 0)
        order = ("healthy", "degraded", "unhealthy")
        if health.get("status") in order:
            self._status = max(self._status, str(health["status"]), key=order.index)

    async def end(self) -> Seen:
        """What was seen."""
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking
        last, first = ticks(self._calls.pid), self._first
        passed = max(last.at - first.at, 1e-3)

        def processors(name: str) -> float:
            taken: int = getattr(last, name) - getattr(first, name)
            return round(max(0, taken) / _TICKS_PER_S / passed, 3)

        return Seen(
            processors=os.cpu_count() or 1,
            machine=processors("machine"),
            tree=processors("tree"),
            runtime=processors("runtime"),
            generator=round((last.generator_s - first.generator_s) / passed, 3),
            files=self._files,
            files_limit=files_limit(self._calls.pid) or own_process.host_limits().nofile,
            waiting=self._waiting,
            status=self._status,
        )
