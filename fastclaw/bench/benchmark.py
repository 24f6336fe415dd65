"""A whole benchmark: the generator's own floor, then the runtime, then a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw.bench.calibration import floor_of
from fastclaw.bench.report import Report
from fastclaw.bench.session import up

if TYPE_CHECKING:
    from fastclaw.bench.job import Job
    from fastclaw.bench.recorder import Recorder
    from fastclaw.bench.session import OnBegin

_HARMLESS = frozenset({"late_answer"})
"""Of what was not asked for: it was, and given up."""


async def benchmark(job: Job, on_begin: OnBegin) -> tuple[Report, Recorder]:
    """Measure.

    Parameters:
        on_begin: is given the measurement when it begins.

    Raises:
        NotMeasured: the runtime does not come up, or does not offer what was asked for.
        IoError: it cannot be started.
    """
    floor = await floor_of(job)
    async with up(job) as session:
        await session.begin()
        driver, measured = await session.measure(job.plan, on_begin, keeps_histograms=job.keeps_histograms)
    farewell, oddities = session.farewell, dict(session.calls.oddities)
    assert farewell is not None
    server = session.welcome.get("server")
    is_in_order = farewell.early is None and farewell.exit_code == 0 and not farewell.leftovers.total
    report = Report(
        ok=is_in_order and not measured.failed and measured.right > 0 and _HARMLESS.issuperset(oddities),
        command=job.command,
        server=server if isinstance(server, dict) else None,
        load=job.load,
        loop=job.plan.loop,
        plan=job.plan,
        cmd=job.cmd,
        live=job.live,
        size=job.size,
        floor=floor,
        measured=measured,
        oddities=oddities,
        example=session.calls.example,
        messages={name: said for name, said in session.calls.messages.items() if name in measured.failed},
        ended_early=farewell.early,
        exit_code=farewell.exit_code,
        interrupted=driver.interrupted,
        leftovers=farewell.leftovers,
    )
    return report, driver.recorder
