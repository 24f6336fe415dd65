"""What a control socket shows of an `EnvironmentHost`: its environments, and pages of all their processes.

What costs something is done for the rows of a page alone: usage, and whether an output is blocked. Only an order by
usage needs the usage of all, and takes that as seldom as `Looks` says.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from fastclaw import limits, telemetry_limits
from fastclaw.control.protocol import BY_USAGE, EnvironmentRow, ProcessRow, ProcessRows, Snapshot, StartLatency
from fastclaw.control.rates import Rank
from fastclaw.control.socket import Watched
from fastclaw.printable import printable
from fastclaw.processes.blocked import BlockedOutputs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from fastclaw.control.protocol import AskProcesses, AskSnapshot, Sort
    from fastclaw.control.rates import Looks
    from fastclaw.latency import Latency
    from fastclaw.linux.meter import Takes
    from fastclaw.processes.lane import Usage
    from fastclaw.processes.process import Process
    from fastclaw.runtime import StreamName
    from fastclaw.runtimes.environment import Environment
    from fastclaw.telemetry.metrics import Counts

    Kill = Callable[[str, int | None], Coroutine[Any, Any, None]]


class _One(NamedTuple):
    process: Process
    environment: Environment


class HostView(Watched):
    """An `EnvironmentHost` as it is looked at.

    Parameters:
        namespace: of its `initialize`.
        environments: by name, as they are at any time.
        counts: what there is of all of them.
        ready: what is kept ready, as `health.details.pool`.
        latency: how long their starts took.
        end: the method `kill`.
    """

    def __init__(
        self,
        namespace: str,
        environments: Mapping[str, Environment],
        counts: Callable[[], Counts],
        ready: Callable[[], dict[str, Any]],
        latency: Latency,
        end: Kill,
    ) -> None:
        self._namespace, self._environments, self._counts = namespace, environments, counts
        self._ready, self._latency, self._end = ready, latency, end
        self._blocked = BlockedOutputs()
        self._started_at = time.time()

    async def kill(self, process_id: str, grace_ms: int | None) -> None:
        """See `Watched.kill`."""
        await self._end(process_id, grace_ms)

    # --- the whole ---

    async def snapshot(self, asked: AskSnapshot, looks: Looks) -> Snapshot:
        """See `Watched.snapshot`."""
        wanted = [one for one in self._environments.values() if asked.names is None or one.name in asked.names]
        page = wanted[asked.offset : asked.offset + asked.limit]
        rows = []
        for environment in page:
            rows.append(await self._environment(environment, looks))
            await asyncio.sleep(0)  # each reads some ten files: what else is due goes between
        looks.environments.keep({row.environment for row in rows})
        counts, decisions = self._counts(), Counter[str]()
        for (decision, _), count in counts.egress.items():
            decisions[decision] += count
        return Snapshot(
            at=time.time(),
            pid=os.getpid(),
            version=counts.version,
            namespace=self._namespace,
            started_at=self._started_at,
            states=dict(counts.environments),
            environments=rows,
            total=len(wanted),
            live=counts.processes,
            waiting=counts.waiting,
            starting=counts.starting,
            pool=self._ready(),
            decisions=dict(decisions),
            latency=self._start_latency(looks),
        )

    def _start_latency(self, looks: Looks) -> StartLatency | None:
        count, total_us = self._latency.starts()
        before, looks.starts = looks.starts, (count, total_us)
        new = count - before[0]
        return StartLatency(count=new, mean_us=(total_us - before[1]) / new) if new else None

    async def _environment(self, environment: Environment, looks: Looks) -> EnvironmentRow:
        takes = await self._takes(environment)
        listed, pool = environment.listed(), environment.pool
        counted = {} if pool is None else pool.health()
        return EnvironmentRow(
            environment=environment.name,
            state=listed.state,
            started_at=listed.started_at,
            runtime=environment.runtime,
            lane=listed.lane,
            container=listed.container,
            image=listed.image,
            live=listed.live,
            waiting=counted.get("waiting", 0),
            starting=counted.get("starting", 0),
            decisions=environment.decisions(),
            cpu_percent=looks.environments.percent(environment.name, takes.cpu_us, time.monotonic()),
            **takes._asdict(),
        )

    async def _takes(self, environment: Environment) -> Takes:
        """What its control groups say; else the sum of its processes, where they are few."""
        takes = environment.takes()
        live = [] if environment.pool is None else environment.pool.table.live()
        if takes.cpu_us is not None or len(live) > telemetry_limits.CONTROL_ROWS:
            return takes
        used = await environment.usage(live)
        known = [one for one in used if one is not None]
        if live and not known:
            return takes
        return takes._replace(
            cpu_us=sum(one.cpu_us for one in known),
            memory_bytes=sum(one.memory_bytes for one in known),
            pids=sum(one.processes for one in known),
        )

    # --- processes ---

    async def processes(self, asked: AskProcesses, looks: Looks) -> ProcessRows:
        """See `Watched.processes`."""
        ones = self._matching(asked)
        if asked.sort in BY_USAGE:
            await self._rank(ones, looks)
        self._sort(ones, asked, looks)
        offset = min(asked.offset, max(0, len(ones) - asked.limit))
        page = ones[offset : offset + asked.limit]
        used = await self._measured(page)
        blocked = await self._blocked.look([one.process for one in page], asked.limit, limits.LOOK_ANSWER_MS)
        rows = [_row(one, used.get(one.process), blocked.get(one.process), looks) for one in page]
        if asked.sort not in BY_USAGE:
            looks.processes.keep({row.process_id for row in rows})
        return ProcessRows(
            at=time.time(),
            total=len(ones),
            offset=offset,
            rows=rows,
            measured_at=looks.ranked_at if asked.sort in BY_USAGE else None,
        )

    def _matching(self, asked: AskProcesses) -> list[_One]:
        wanted = asked.filter.casefold()
        return [
            _One(process, environment)
            for environment in self._environments.values()
            if environment.pool is not None and asked.environment in (None, environment.name)
            for process in (environment.pool.table if asked.ended else environment.pool.table.live())
            if not wanted or wanted in f"{process.id} {environment.name} {' '.join(process.cmd)}".casefold()
        ]

    def _sort(self, ones: list[_One], asked: AskProcesses, looks: Looks) -> None:
        key, is_falling = _order(asked.sort, looks)
        ones.sort(key=key, reverse=is_falling is not asked.reverse)
        if asked.group:
            ones.sort(key=lambda one: one.environment.name)

    async def _rank(self, ones: Sequence[_One], looks: Looks) -> None:
        """Measure all of them, if it is time for that."""
        if not looks.may_rank(time.monotonic()):
            return
        began = time.process_time()
        used = await self._measured(ones)
        now = time.monotonic()
        ranks = {}
        for process, usage in used.items():
            cpu = looks.processes.percent(process.id, usage.cpu_us, now)
            if cpu is None:  # as yet: what it has had all its life
                cpu = usage.cpu_us / max(time.time() - process.started_at, 1e-3) / 1e4
            ranks[process.id] = Rank(cpu, usage.memory_bytes, usage.cpu_us, usage.in_bytes + usage.out_bytes)
        looks.processes.keep(ranks.keys())
        looks.ranked(ranks, time.time(), time.process_time() - began, now)

    async def _measured(self, ones: Sequence[_One]) -> dict[Process, Usage]:
        """What those of them take that run, where that is known."""
        found: dict[Process, Usage] = {}
        by_environment: dict[Environment, list[Process]] = {}
        for process, environment in ones:
            if process.is_running:
                by_environment.setdefault(environment, []).append(process)
        for environment, its in by_environment.items():
            used = await environment.usage(its)
            found.update((process, usage) for process, usage in zip(its, used, strict=True) if usage is not None)
        return found


_UNRANKED = Rank(-1.0, -1, -1, -1)


def _order(sort: Sort, looks: Looks) -> tuple[Callable[[_One], Any], bool]:
    """By what rows are sorted, and whether the largest comes first."""
    if sort in BY_USAGE:
        at = Rank._fields.index(sort)
        return lambda one: looks.ranks.get(one.process.id, _UNRANKED)[at], True
    if sort == "command":
        return lambda one: one.process.cmd, False
    if sort == "environment":
        return lambda one: one.environment.name, False
    return lambda one: one.process.started_at, True


def _row(one: _One, usage: Usage | None, blocked: list[StreamName] | None, looks: Looks) -> ProcessRow:
    process, info = one.process, one.process.info()
    row = ProcessRow(
        process_id=process.id,
        environment=one.environment.name,
        command=shown(process.cmd),
        state=info.state,
        started_at=info.started_at,
        is_run=process.is_run,
        exit_code=info.exit_code,
        signal=info.signal,
        reason=info.reason,
        blocked=blocked or [],
    )
    if usage is None:
        return row
    percent = looks.processes.percent(process.id, usage.cpu_us, time.monotonic())
    return structs.replace(row, cpu_percent=percent, **usage._asdict())


def shown(cmd: Sequence[str]) -> str:
    """A command line in one line of a screen."""
    return printable(" ".join(cmd)[: telemetry_limits.CONTROL_TEXT_CHARS])
