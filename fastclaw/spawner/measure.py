"""What processes take, as their spawners see it from inside: /proc of their trees, and what their pumps have moved."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from fastclaw import telemetry_limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Usage
from fastclaw.spawner import frames
from fastclaw.spawner.spawn_process import SpawnProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.processes.lane import LaneProcess
    from fastclaw.spawner.link import Spawner

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


async def measured(processes: Sequence[LaneProcess]) -> list[Usage | None]:
    """What each of them takes; None of one that has ended, or is no spawner's."""
    found: dict[LaneProcess, Usage | None] = {}
    by_spawner: dict[Spawner, list[SpawnProcess]] = {}
    for process in processes:
        if isinstance(process, SpawnProcess):
            by_spawner.setdefault(process.spawner, []).append(process)
    for spawner, its in by_spawner.items():
        for first in range(0, len(its), telemetry_limits.USAGE_ROWS):
            some = its[first : first + telemetry_limits.USAGE_ROWS]
            found.update(zip(some, await _ask(spawner, some), strict=False))
    return [found.get(process) for process in processes]


async def _ask(spawner: Spawner, processes: Sequence[SpawnProcess]) -> list[Usage | None]:
    """Nothing where no answer comes in time. The pump that looks may be held up for ever, so a spawner is not asked
    again and again."""
    if spawner.unmeasured >= telemetry_limits.USAGE_TRIES:
        return []
    tail = b"".join(frames.ASKED_USAGE.pack(*process.whereabouts) for process in processes)
    try:
        async with asyncio.timeout(telemetry_limits.USAGE_MS / 1000):
            said = await spawner.written(frames.MEASURE, len(processes), tail, telemetry_limits.USAGE_BYTES)
    except ExecFailed:  # it has ended, or no pump is free
        return []
    except TimeoutError:
        spawner.unmeasured += 1
        return []
    spawner.unmeasured = 0
    return [used and _usage(used) for used in frames.used(said)]


def _usage(used: frames.Used) -> Usage:
    memory = used.pages * _PAGE_BYTES
    return Usage(used.ticks * _TICK_US, memory, used.processes, in_bytes=used.read, out_bytes=used.written)
