"""What of the figures is the generator's own: the same plan against a runtime that does nothing, timer and clock."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from fastclaw import bench_limits
from fastclaw.bench import null_main
from fastclaw.bench.histogram import Latencies, Latency
from fastclaw.bench.report import Floor
from fastclaw.bench.session import up
from fastclaw.bench.timer import Timer

if TYPE_CHECKING:
    from fastclaw.bench.job import Job, Plan

NULL = [sys.executable, "-I", str(Path(null_main.__file__))]
_SHOT_NS = 500_000


async def floor_of(job: Job) -> Floor:
    """Measure the generator, as for this job.

    Raises:
        NotMeasured, IoError: this Python cannot even start another one.
    """
    timer = await timer_lateness()
    async with up(structs.replace(job, command=NULL, options={})) as session:
        await session.begin()
        _, measured = await session.measure(floor_plan(job.plan))
    return Floor(measured=measured, timer=timer, clock_ns=round(time.get_clock_info("monotonic").resolution * 1e9))


def floor_plan(plan: Plan) -> Plan:
    """The same loop, for a moment."""
    return structs.replace(plan, duration_s=bench_limits.BENCH_FLOOR_MS / 1000, count=None, warm_up_s=0.0)


async def timer_lateness() -> Latency:
    """How late the timer of an open loop rings."""
    late, over = Latencies(), asyncio.Event()
    due = time.monotonic_ns() + _SHOT_NS
    left = bench_limits.BENCH_TIMER_SHOTS

    def ring() -> int | None:
        nonlocal due, left
        now = time.monotonic_ns()
        late.record(now - due)
        left -= 1
        if not left:
            over.set()
            return None
        due = now + _SHOT_NS
        return due

    with Timer(ring) as timer:
        timer.arm(due)
        await over.wait()
    return late.summary()
