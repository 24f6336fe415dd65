"""A plan in words."""

from __future__ import annotations

import pytest

from fastclaw.bench.plan import Plan


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
