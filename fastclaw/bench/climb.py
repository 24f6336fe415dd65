"""Raises the load on one runtime, step by step, until a step does not converge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fastclaw import bench_limits
from fastclaw.bench.cliff import Cliff, Step, bounds, broken, held, next_level, why_not
from fastclaw.bench.session import up
from fastclaw.bench.watch import Watch

if TYPE_CHECKING:
    from fastclaw.bench.cliff import By
    from fastclaw.bench.job import Job, Plan
    from fastclaw.bench.session import OnBegin, Session


async def climb(job: Job, on_begin: OnBegin) -> Cliff:
    """Find the highest rate, or concurrency, that holds, and what binds above it.

    Parameters:
        job: its plan is the first step.
        on_begin: is given each step when it begins.

    Raises:
        NotMeasured: the runtime does not come up, or does not offer what was asked for.
        IoError: it cannot be started.
    """
    by: By = "concurrency" if job.plan.rate is None else "rate"
    steps: list[Step] = []
    async with up(job) as session:
        await session.begin()
        is_interrupted = await _climb(job, session, by, steps, on_begin)
        ended = session.calls.end
    farewell, bad = session.farewell, broken(steps)
    assert farewell is not None
    first = bad[0] if bad else steps[-1].level if ended is not None else None
    good = [level for level in held(steps) if first is None or level < first]
    best = next((step for step in steps if good and step.level == good[-1] and not step.why), None)
    server = session.welcome.get("server")
    is_in_order = farewell.early is None and farewell.exit_code == 0 and not farewell.leftovers.total
    return Cliff(
        ok=best is not None and is_in_order,
        command=job.command,
        server=server if isinstance(server, dict) else None,
        load=job.load,
        plan=job.plan,
        by=by,
        steps=steps,
        highest=None if best is None else best.level,
        per_s=None if best is None else best.measured.per_s,
        first=first,
        bounds=_bounds(steps, first, ended),
        ended_early=farewell.early,
        exit_code=farewell.exit_code,
        interrupted=is_interrupted,
        oddities=dict(session.calls.oddities),
        leftovers=farewell.leftovers,
    )


def _bounds(steps: list[Step], first: float | None, ended: str | None) -> list[str]:
    if first is None:
        return []
    return bounds([step for step in steps if step.level == first][-1], ended)


async def _climb(job: Job, session: Session, by: By, steps: list[Step], on_begin: OnBegin) -> bool:
    """All steps; whether they were interrupted."""
    start = float(job.plan.concurrency) if job.plan.rate is None else job.plan.rate
    highest = float(bench_limits.BENCH_RATE if by == "rate" else job.most_at_once)
    if job.load == "hold" and by == "concurrency":
        highest = float(job.live)
    while (level := next_level(steps, start, highest, by)) is not None:
        watch = Watch(session.calls)
        try:
            driver, measured = await session.measure(_plan_at(job.plan, level, by), on_begin)
        finally:
            seen = await watch.end()
        if driver.interrupted:
            return True
        steps.append(Step(level=level, why=why_not(level, measured, steps, by), measured=measured, seen=seen))
        if session.calls.end is not None:
            return False
    return False


def _plan_at(plan: Plan, level: float, by: By) -> Plan:
    return structs.replace(plan, rate=level) if by == "rate" else structs.replace(plan, concurrency=int(level))
