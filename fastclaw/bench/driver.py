"""Begins operations when the plan says, and gives what came of each to a recorder."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from typing import TYPE_CHECKING

from fastclaw import bench_limits
from fastclaw.bench.arrivals import poisson
from fastclaw.bench.recorder import Failed
from fastclaw.bench.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastclaw.bench.calls import Calls
    from fastclaw.bench.job import Plan
    from fastclaw.bench.loads import Load
    from fastclaw.bench.recorder import Recorder

_NS = 1_000_000_000


class Driver:
    """One measurement.

    Parameters:
        most: operations under way at most; in an open loop, those that have no room have failed.

    Attributes:
        begun: operations that count, so far.
        in_flight: under way now.
        turns: how many had begun and how many had ended, half-way and when the last one began.
        interrupted: it was ended before its time.
    """

    def __init__(self, plan: Plan, load: Load, calls: Calls, recorder: Recorder, most: int) -> None:
        self.recorder = recorder
        self.begun = 0
        self.in_flight = 0
        self.turns: list[tuple[int, int]] = []
        self.interrupted = False
        self.plan = plan
        self._load = load
        self._most = most
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._free_slots: list[int] = []
        self._new_slots = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._began_ns = 0
        self._ends_ns: int | None = None

    async def run(self) -> None:
        """Until the plan is done, the runtime has ended, or `interrupt`."""
        self._began_ns = time.monotonic_ns()
        first_ns = self._began_ns + round(self.plan.warm_up_s * _NS)
        self.recorder.count_from(first_ns)
        self._calls.on_end = self._stop
        timers = []
        if self.plan.duration_s is not None:
            warm_up_s, duration_s = self.plan.warm_up_s, self.plan.duration_s
            timers.append(self._loop.call_later(warm_up_s + duration_s / 2, self._turn))
            self._ends_ns = first_ns + round(duration_s * _NS)
            if self.plan.loop != "open":  # what was meant to begin before the end begins, however late
                timers.append(self._loop.call_later(warm_up_s + duration_s, self._stop))
        try:
            await {"closed": self._closed, "open": self._open, "burst": self._bursts}[self.plan.loop]()
            self._turn()
            await self._settle()
        finally:
            for timer in timers:
                timer.cancel()
            await self._cut_off()
        if self._error is not None:
            raise self._error
        self.recorder.close()

    def interrupt(self) -> None:
        """Begin no more."""
        self.interrupted = True
        self._stop()

    def _stop(self) -> None:
        self._is_stopped = True
        self._changed.set()

    @property
    def elapsed_s(self) -> float:
        """Since the first operation that counts; negative in the warm-up."""
        return (time.monotonic_ns() - self.recorder.first_ns) / _NS

    # --- When operations begin ---

    async def _closed(self) -> None:
        for slot in range(self.plan.concurrency):
            self._task(self._work(slot))
        await self._stopped_or_idle()

    async def _work(self, slot: int) -> None:
        while self._may_begin(now := time.monotonic_ns()):
            await self._operation(slot, now)

    async def _open(self) -> None:
        arrivals = poisson(self.plan.rate or 1.0, random.Random(self.plan.seed).random)
        due = self._began_ns + next(arrivals)

        def begin_due() -> int | None:
            """Begin all that are due; when the next one is."""
            nonlocal due
            now = time.monotonic_ns()
            while due <= now and self._may_begin(due):
                self._begin_late(due, now)
                due = self._began_ns + next(arrivals)
            is_over = self.begun == self.plan.count or (self._ends_ns is not None and due >= self._ends_ns)
            if due <= now or is_over:
                self._stop()
                return None
            return due

        with Timer(begin_due) as timer:
            timer.arm(min(due, self._ends_ns or due))
            while not self._is_stopped:
                await self._change()

    def _begin_late(self, due: int, now: int) -> None:
        if due >= self.recorder.first_ns:
            self.recorder.begun_late(now - due)
        if len(self._tasks) >= self._most:
            self.recorder.went_wrong(due, now, "generator_full")
            return
        self._task(self._one(due))

    async def _bursts(self) -> None:
        while self._may_begin(now := time.monotonic_ns(), count=0):
            for _ in range(self.plan.burst or 1):
                if self._may_begin(now):
                    self._task(self._one(now))
            await self._stopped_or_idle()

    def _may_begin(self, at_ns: int, count: int = 1) -> bool:
        """Whether an operation may begin, which is then counted."""
        if self._is_stopped or self._calls.end is not None:
            return False
        if at_ns < self.recorder.first_ns:
            return True
        if self._ends_ns is not None and at_ns >= self._ends_ns:
            return False
        if self.plan.count is not None and self.begun >= self.plan.count:
            return False
        self.begun += count
        if self.plan.duration_s is None and self.plan.count == 2 * self.begun:
            self._turn()
        return True

    def _turn(self) -> None:
        self.turns.append((self.begun, self.recorder.ended))

    # --- Operations ---

    def _task(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = task.exception()
            self._stop()
        if not self._tasks:
            self._changed.set()

    async def _one(self, began_ns: int) -> None:
        slot = heapq.heappop(self._free_slots) if self._free_slots else next(self._new_slots)
        try:
            await self._operation(slot, began_ns)
        finally:
            heapq.heappush(self._free_slots, slot)

    async def _operation(self, slot: int, began_ns: int) -> None:
        self.in_flight += 1
        try:
            ended = await self._load.once(slot)
        except Failed as failed:
            self.recorder.went_wrong(began_ns, time.monotonic_ns(), failed.reason)
        except asyncio.CancelledError:
            self.recorder.cut_off += 1
            raise
        else:
            self.recorder.took(began_ns, ended)
        finally:
            self.in_flight -= 1

    # --- The end ---

    async def _change(self) -> None:
        """Until it is stopped or interrupted, or nothing is under way."""
        self._changed.clear()
        await self._changed.wait()

    async def _stopped_or_idle(self) -> None:
        while self._tasks and not self._is_stopped:
            await self._change()

    async def _settle(self) -> None:
        """What is under way ends by itself: each call has a deadline. After Ctrl-C it is waited for a moment only."""
        while self._tasks and not self.interrupted:
            await self._change()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=bench_limits.BENCH_CUT_OFF_MS / 1000)

    async def _cut_off(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
