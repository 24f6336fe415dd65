"""The floor: the same loop for a moment, on a runtime that does nothing; the timer and the clock."""

from __future__ import annotations

import pytest

from fastclaw import bench_limits
from fastclaw.bench.calibration import floor_of, floor_plan, timer_lateness
from fastclaw.bench.job import Plan
from tests.bench.rig import MEMORY, job


@pytest.mark.parametrize(
    "plan", [Plan(concurrency=3, count=5), Plan(rate=50, duration_s=60, warm_up_s=5), Plan(burst=4, count=9)]
)
def test_the_loop_is_the_same(plan: Plan) -> None:
    floor = floor_plan(plan)
    assert (floor.loop, floor.rate, floor.burst, floor.concurrency) == (
        plan.loop,
        plan.rate,
        plan.burst,
        plan.concurrency,
    )
    assert (floor.duration_s, floor.count, floor.warm_up_s) == (bench_limits.BENCH_FLOOR_MS / 1000, None, 0.0)


async def test_the_timer_is_late_by_microseconds() -> None:
    late = await timer_lateness()
    assert late.samples == bench_limits.BENCH_TIMER_SHOTS
    assert late.percentiles["p50"].us < 50_000


async def test_the_floor_of_an_open_loop_has_its_rate() -> None:
    floor = await floor_of(job(MEMORY, plan=Plan(rate=1_000, duration_s=60)))
    assert 10 < floor.measured.begun < 150
    assert floor.measured.late is not None
    assert floor.measured.failed == {}
    assert floor.measured.cpu_us > 0
    assert floor.clock_ns >= 1
