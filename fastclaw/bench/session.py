"""One runtime from its start to its end, and the operations in between."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Struct

from fastclaw import limits
from fastclaw.bench.calls import Calls
from fastclaw.bench.driver import Driver
from fastclaw.bench.leftovers import Leftovers, Traces, existing, running
from fastclaw.bench.loads import LOADS, Load
from fastclaw.bench.recorder import Failed, Recorder
from fastclaw.bench.report import Measured, is_held

if TYPE_CHECKING:
    from fastclaw.bench.job import Job, Plan

_COUNT = itertools.count(1)

OnBegin = Callable[[Driver], None]
"""Is given each measurement when it begins."""


class NotMeasured(Exception):
    """Nothing could be measured; the text says why."""


class Farewell(Struct, frozen=True, kw_only=True):
    """How a runtime ended.

    Parameters:
        early: what to say where it ended, or was ended, before its shutdown; None where it did not.
        exit_code: None where it had to be killed.
    """

    early: str | None
    exit_code: int | None
    leftovers: Leftovers


class Session:
    """A runtime that is up.

    Attributes:
        welcome: what it answered to `initialize`.
        farewell: once it has ended.
    """

    def __init__(self, job: Job, calls: Calls, traces: Traces, welcome: dict[str, Any]) -> None:
        self.calls = calls
        self.welcome = welcome
        self.farewell: Farewell | None = None
        self.load: Load = LOADS[job.load](calls, job, _offered(welcome))
        self._job = job
        self._traces = traces
        if isinstance(welcome.get("container"), str):
            self.load.containers.append(welcome["container"])

    async def begin(self) -> None:
        """Make ready for operations.

        Raises:
            NotMeasured: the runtime does not offer what they need, or fails.
        """
        missing = [name for name in self.load.needs if name not in self.load.offered]
        if missing:
            offered = ", ".join(sorted(self.load.offered)) or "nothing"
            raise NotMeasured(f"--load {self._job.load} needs {missing[0]!r}; this runtime offers: {offered}")
        try:
            await self.load.begin()
        except Failed as failed:
            await self.load.end()
            said = self.calls.end or self.calls.messages.get(failed.reason) or failed.reason
            raise NotMeasured(f"--load {self._job.load} cannot begin: {said}") from failed
        self._traces.see(self.calls.pid)

    async def measure(
        self, plan: Plan, on_begin: OnBegin | None = None, *, keeps_histograms: bool = False
    ) -> tuple[Driver, Measured]:
        """Do what a plan says."""
        recorder = Recorder(keeps_histograms=keeps_histograms)
        driver = Driver(plan, self.load, self.calls, recorder, self._job.most_at_once)
        if on_begin is not None:
            on_begin(driver)
        began = time.process_time_ns()
        await driver.run()
        return driver, _summed(driver, time.process_time_ns() - began)

    async def end(self) -> None:
        """Take back what was made, shut the runtime down, and see what is left."""
        await self.load.end()
        early = self.calls.end
        environments = await self._environments()
        self._traces.see(self.calls.pid)
        _, _, reason = await self.calls.call("shutdown", b"{}", limits.CLIENT_SHUTDOWN_MS)
        if early is None and reason is not None:
            early = f"shutdown was answered with {reason}"
        exit_code = await self.calls.exit_code(limits.CLIENT_EXIT_MS)
        await self.calls.aclose()
        left = Leftovers(
            processes=await self._traces.gone(),
            sockets=existing(self.load.sockets),
            containers=running(self.load.containers),
            environments=environments,
        )
        self.farewell = Farewell(early=early, exit_code=exit_code, leftovers=left)

    async def _environments(self) -> int:
        """Those besides the main one."""
        if "environments" not in self.load.offered or self.calls.end is not None:
            return 0
        _, result, _ = await self.calls.call("environment_list", b"{}")
        rows = result.get("environments") if isinstance(result, dict) else None
        names = [row.get("environment") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return len([name for name in names if name != "main"])


def _summed(driver: Driver, cpu_ns: int) -> Measured:
    recorder = driver.recorder
    seconds = (recorder.last_ns - recorder.first_ns) / 1e9
    late = recorder.late.summary() if driver.plan.loop == "open" else None
    late_p99_us = late.percentiles["p99"].us if late is not None and late.samples else 0
    worked = recorder.ended + recorder.warm_up + recorder.warm_up_failed
    return Measured(
        begun=driver.begun,
        right=recorder.right,
        failed=dict(recorder.failed),
        cut_off=recorder.cut_off,
        warm_up=recorder.warm_up,
        warm_up_failed=recorder.warm_up_failed,
        seconds=round(seconds, 6),
        per_s=round(recorder.right / seconds, 3) if seconds else 0.0,
        right_percent=round(100 * recorder.right / recorder.ended, 4) if recorder.ended else 0.0,
        latency=recorder.whole.summary(),
        stages={name: stage.summary() for name, stage in recorder.stages.items()},
        inside={name: round(us / recorder.inside_count, 1) for name, us in recorder.inside.items()},
        late=late,
        is_held=None if late is None else is_held(driver.turns, late_p99_us, recorder.failed),
        cpu_us=round(cpu_ns / 1000 / worked, 2) if worked else 0.0,
    )


def _offered(welcome: dict[str, Any]) -> list[str]:
    told = welcome.get("capabilities", [])
    return [name for name in told if isinstance(name, str)] if isinstance(told, list) else []


@asynccontextmanager
async def up(job: Job) -> AsyncIterator[Session]:
    """Start the runtime of a job; at the end, it is ended.

    Raises:
        NotMeasured: it does not come up.
        IoError: it cannot be started.
    """
    calls, traces = Calls(job.deadline_ms), Traces()
    try:
        await calls.start(job.command, traces.environment)
        namespace = f"bench-{os.getpid()}-{next(_COUNT)}-{time.monotonic_ns() % 1_000_000}"
        params = orjson.dumps({"namespace": namespace, "options": job.options})
        try:
            _, welcome = await calls.result("initialize", params, limits.CLIENT_INITIALIZE_MS)
        except Failed as failed:
            said = calls.end or calls.messages.get(failed.reason) or failed.reason
            raise NotMeasured(f"initialize failed: {said}") from failed
        session = Session(job, calls, traces, welcome)
        yield session
        await session.end()
    finally:
        await calls.aclose()
