"""The timer: never early, soon after, and by the clock that nobody sets."""

from __future__ import annotations

import asyncio
import time

from fastclaw.bench.timer import Timer

SHOTS = 50
GAP_NS = 700_000


async def rung(gap_ns: int, count: int) -> list[tuple[int, int]]:
    """When it was due and when it rang."""
    rings: list[tuple[int, int]] = []
    over = asyncio.Event()
    due = time.monotonic_ns() + gap_ns

    def ring() -> int | None:
        nonlocal due
        rings.append((due, time.monotonic_ns()))
        if len(rings) == count:
            over.set()
            return None
        due = time.monotonic_ns() + gap_ns
        return due

    with Timer(ring) as timer:
        timer.arm(due)
        await over.wait()
    return rings


async def test_it_rings_when_it_is_due_and_not_before() -> None:
    rings = await rung(GAP_NS, SHOTS)
    lateness = sorted(rang - due for due, rang in rings)
    assert lateness[0] >= 0
    assert lateness[SHOTS // 4] < GAP_NS / 2  # a loop's own timer rings at the next millisecond


async def test_a_moment_that_has_passed_is_now() -> None:
    assert len(await rung(-5_000_000_000_000_000, 3)) == 3
