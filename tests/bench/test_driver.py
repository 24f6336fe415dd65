"""When operations begin: as many at once as was said, at the rate, in bursts; and that they end."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fastclaw import bench_limits
from fastclaw.bench.arrivals import poisson
from fastclaw.bench.driver import Driver
from fastclaw.bench.job import Plan
from fastclaw.bench.recorder import Ended, Failed, Recorder


class Sleeps:
    """Operations that take so long, and what is seen of them."""

    def __init__(self, seconds: float, fails_every: int = 0) -> None:
        self.seconds = seconds
        self.slots: set[int] = set()
        self.most = self.count = 0
        self.began: list[int] = []
        self._fails_every = fails_every

    async def once(self, slot: int) -> Ended:
        self.began.append(time.monotonic_ns())
        assert slot not in self.slots
        self.slots.add(slot)
        self.count += 1
        self.most = max(self.most, len(self.slots))
        fails = self._fails_every and self.count % self._fails_every == 0
        await asyncio.sleep(self.seconds)
        self.slots.remove(slot)
        if fails:
            raise Failed("no_answer")
        return Ended(time.monotonic_ns(), (("sleep", 1),))


def driver(load: Any, most: int = bench_limits.BENCH_AT_ONCE, **plan: Any) -> Driver:
    calls: Any = SimpleNamespace(end=None, on_end=None)
    return Driver(Plan(**plan), load, calls, Recorder(), most)


async def test_a_closed_loop_has_so_many_under_way() -> None:
    load = Sleeps(0.002)
    one = driver(load, concurrency=7, count=50)
    await one.run()
    assert (load.most, load.count, one.begun, one.recorder.right, one.in_flight) == (7, 50, 50, 50, 0)


async def test_a_duration_ends_it() -> None:
    load = Sleeps(0.002)
    one = driver(load, concurrency=2, duration_s=0.2, warm_up_s=0.1)
    began = time.monotonic()
    await one.run()
    assert 0.3 <= time.monotonic() - began < 3
    assert one.recorder.warm_up > 0
    assert one.recorder.right == one.begun > 0
    assert load.count == one.begun + one.recorder.warm_up


async def test_an_open_loop_begins_at_its_rate_whatever_is_under_way() -> None:
    load = Sleeps(0.3)
    one = driver(load, rate=500, duration_s=0.5)
    await one.run()
    assert 150 < one.begun < 350
    assert load.most > 60  # none waited for another
    assert one.recorder.right == one.begun


async def test_what_was_meant_to_begin_before_the_end_begins_however_late() -> None:
    """The loop is held up over the end of the duration."""

    class Blocks(Sleeps):
        async def once(self, slot: int) -> Ended:
            if self.count == 20:
                time.sleep(0.3)  # noqa: ASYNC251 - it is what is tested
            return await super().once(slot)

    quick, held_up = driver(Sleeps(0), rate=500, duration_s=0.2), driver(Blocks(0), rate=500, duration_s=0.2)
    await quick.run()
    await held_up.run()
    assert held_up.begun == quick.begun == held_up.recorder.right  # the seed is the same


async def test_the_last_of_a_count_waits_for_no_other() -> None:
    first, second = itertools.islice(poisson(0.2, random.Random(165).random), 2)
    assert (first // 10**9, second // 10**9) == (0, 16)
    one = driver(Sleeps(0), rate=0.2, count=1, seed=165)
    await asyncio.wait_for(one.run(), 10)
    assert one.begun == 1


async def test_a_rate_of_less_than_one_in_the_duration_ends() -> None:
    one = driver(Sleeps(0), rate=0.001, duration_s=0.1)
    await asyncio.wait_for(one.run(), 5)
    assert one.begun == 0


async def test_latency_counts_from_the_intended_start() -> None:
    """A load that holds up the loop itself: what should have begun meanwhile was late, and says so."""

    class Blocks(Sleeps):
        async def once(self, slot: int) -> Ended:
            if self.count == 5:
                time.sleep(0.2)  # noqa: ASYNC251 - it is what is tested
            return await super().once(slot)

    one = driver(Blocks(0), rate=1_000, count=200)
    await one.run()
    assert one.recorder.late.summary().max_us > 150_000
    assert one.recorder.whole.summary().percentiles["p50"].us > 1_000
    assert one.recorder.whole.summary().max_us > 150_000


async def test_what_has_no_room_is_a_failure() -> None:
    one = driver(Sleeps(0.5), most=10, rate=2_000, count=50)
    await one.run()
    assert one.recorder.right == 10
    assert one.recorder.failed == {"generator_full": 40}
    assert one.begun == 50


async def test_a_burst_begins_when_the_last_one_has_ended() -> None:
    load = Sleeps(0.1)
    one = driver(load, burst=5, count=12)
    await one.run()
    assert (load.most, load.count, one.recorder.right) == (5, 12, 12)
    gaps = [later - earlier for earlier, later in zip(load.began, load.began[1:], strict=False)]
    assert sorted(range(11), key=lambda at: gaps[at])[-2:] in ([4, 9], [9, 4])


async def test_failures_count_and_do_not_end_it() -> None:
    one = driver(Sleeps(0, fails_every=4), concurrency=3, count=40)
    await one.run()
    assert (one.recorder.right, one.recorder.failed) == (30, {"no_answer": 10})


async def test_an_interruption_cuts_off_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_limits, "BENCH_CUT_OFF_MS", 50)
    one = driver(Sleeps(60), concurrency=3, duration_s=60)
    asyncio.get_running_loop().call_later(0.05, one.interrupt)
    await one.run()
    assert one.interrupted
    assert (one.recorder.cut_off, one.recorder.ended, one.in_flight) == (3, 0, 0)


async def test_the_end_of_the_runtime_ends_it() -> None:
    one = driver(Sleeps(0.01), rate=0.001, duration_s=60)
    calls = cast("Any", one)._calls

    def end() -> None:
        calls.end = "runtime exited"
        calls.on_end()

    asyncio.get_running_loop().call_later(0.05, end)
    await asyncio.wait_for(one.run(), 5)


async def test_an_error_of_our_own_is_raised() -> None:
    class Broken(Sleeps):
        async def once(self, slot: int) -> Ended:
            raise KeyError("x")

    with pytest.raises(KeyError):
        await driver(Broken(0), concurrency=2, duration_s=60).run()


async def test_half_way_and_end_are_noted() -> None:
    by_count, by_time = driver(Sleeps(0), count=10), driver(Sleeps(0.001), duration_s=0.1)
    await by_count.run()
    await by_time.run()
    assert by_count.turns == [(5, 4), (10, 10)]
    assert 0 < by_time.turns[0][0] < by_time.turns[1][0]
