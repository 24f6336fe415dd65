"""A plan in words."""

from __future__ import annotations

import pytest

from fastclaw import bench_limits
from fastclaw.bench.job import Job, Plan


@pytest.mark.parametrize(
    ("plan", "loop", "words"),
    [
        (Plan(concurrency=4, count=100), "closed", "closed loop, 4 at once, 100 operations"),
        (Plan(rate=12.5, duration_s=3), "open", "open loop, 12.5/s at random, 3 s"),
        (
            Plan(burst=8, duration_s=1.5, count=9, warm_up_s=1),
            "burst",
            "bursts of 8, 1.5 s or 9 operations after 1 s of warm-up",
        ),
    ],
)
def test_the_loop_and_its_words(plan: Plan, loop: str, words: str) -> None:
    assert (plan.loop, str(plan)) == (loop, words)


def test_files_under_way_have_a_bound_together() -> None:
    small, large = (Job(command=["x"], load="files", plan=Plan(count=1), size=size) for size in (1, 16 * 2**20))
    other = Job(command=["x"], load="run", plan=Plan(count=1), size=16 * 2**20)
    assert small.most_at_once == other.most_at_once == bench_limits.BENCH_AT_ONCE
    assert large.most_at_once == 64
