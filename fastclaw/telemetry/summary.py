"""Where the time of a journal's calls goes, stage by stage, and which took longest. Pure.

Its memory does not grow with the journal.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct

from fastclaw.latency import TOTAL, Histogram
from fastclaw.stages import ENVIRONMENT_STAGES, STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.telemetry.lines import Line

_ANSWERED = STAGES[-1]


class StageRow(Struct, frozen=True, kw_only=True):
    """One stage of one kind of call.

    Parameters:
        share: of the time of all its calls, that went into this stage.
    """

    kind: str
    lane: str
    outcome: str
    stage: str
    count: int
    share: float
    p50_us: int
    p90_us: int
    p99_us: int
    p999_us: int


def stages_of(line: Line) -> list[str]:
    """Those that a call has reached, in the order of `stages`; the first, at which its time begins, is left out."""
    names = ENVIRONMENT_STAGES if line.kind == "environment_start" else STAGES
    return [name for name in names[1:] if name in line.timings]


def own_times(line: Line) -> dict[str, int]:
    """How long each stage of a call took: microseconds since the stage before it that was reached. `answered` of an
    exec, which comes in the middle, is since its start."""
    last, told = 0, {}
    for name in stages_of(line):
        at = line.timings[name]
        before = line.timings.get("started", 0) if line.kind == "exec" and name == _ANSWERED else last
        told[name] = max(0, at - before)
        last = max(last, at)
    return told


def took_us(line: Line) -> int:
    """From the reading of its line to the last that is known of it."""
    return max(line.timings.values(), default=0)


class Summary:
    """What a journal's calls took, as far as it was added.

    Parameters:
        slowest: of how many calls are kept.
    """

    def __init__(self, slowest: int) -> None:
        self._most = slowest
        self._slowest: list[tuple[int, int, Line]] = []
        self._histograms: defaultdict[tuple[str, str, str], defaultdict[str, Histogram]] = defaultdict(
            lambda: defaultdict(Histogram)
        )
        self._number = self.lost = self._lost_last = 0

    def add(self, line: Line) -> None:
        """One more line."""
        if line.kind == "lost":
            is_same_runtime = line.lines >= self._lost_last  # each counts from 0
            self.lost += line.lines - self._lost_last if is_same_runtime else line.lines
            self._lost_last = line.lines
        if line.kind in {"lost", "gone"}:
            return
        of = self._histograms[line.kind, line.lane, line.outcome]
        for stage, microseconds in own_times(line).items():
            of[stage].add(microseconds)
        took = took_us(line)
        of[TOTAL].add(took)
        self._number += 1
        entry = (took, -self._number, line)
        if len(self._slowest) < self._most:
            heapq.heappush(self._slowest, entry)
        elif self._most:
            heapq.heappushpop(self._slowest, entry)

    def rows(self) -> Iterator[StageRow]:
        """A row for each stage, in the order in which they come, by kind, lane and outcome; `total` is the last."""
        for (kind, lane, outcome), of in sorted(self._histograms.items()):
            whole = of[TOTAL].sum_us
            names = ENVIRONMENT_STAGES if kind == "environment_start" else STAGES
            for stage in filter(of.__contains__, (*names, TOTAL)):
                histogram = of[stage]
                yield StageRow(
                    kind=kind, lane=lane, outcome=outcome, stage=stage, count=histogram.count,
                    share=histogram.sum_us / whole if whole else 0.0, **histogram.figures(),
                )  # fmt: skip

    def slowest(self) -> list[Line]:
        """Those that took longest, the slowest first."""
        return [line for _, _, line in sorted(self._slowest, reverse=True)]
