"""Calls as a trace that https://ui.perfetto.dev opens: Chrome's trace event format, which is JSON (Google, "Trace Event
Format", 2016). Pure.

Each environment is a process of the trace. Its calls lie in rows, each in the first that is free at its time, so that
there are as many rows as calls were under way at once; in a call's slice are those of its stages. Counters say how many
calls waited and how many processes ran.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import msgspec

from fastclaw.telemetry.summary import stages_of, took_us

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastclaw.telemetry.lines import Line

STARTS = "starts of environments"
"""Their process in the trace: an environment's own begins with its end."""


def events(lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
    """The events of calls, in any order of these."""
    calls = sorted((line for line in lines if line.timings and line.kind != "gone"), key=lambda line: line.received_ns)
    if not calls:
        return
    first = calls[0].received_ns
    rows: dict[str, _Rows] = {}
    for line in calls:
        begun, took = (line.received_ns - first) / 1000, took_us(line)
        track = line.environment or STARTS
        if track not in rows:
            rows[track] = _Rows(len(rows) + 1)
            yield {"ph": "M", "name": "process_name", "pid": rows[track].number, "args": {"name": track}}
        place = {"pid": rows[track].number, "tid": rows[track].take(begun, begun + took)}
        yield from _slices(line, begun, took, place)
    yield from _counters(calls, first)


class _Rows:
    """The rows of one environment: which is free when. `number`: of its process in the trace."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free: list[int] = []
        self._busy: list[tuple[float, int]] = []
        self._count = 0

    def take(self, begin: float, end: float) -> int:
        """The first row that is free at `begin`; it is taken until `end`. Begins never go back."""
        while self._busy and self._busy[0][0] <= begin:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if not self._free:
            self._count += 1
            heapq.heappush(self._free, self._count)
        row = heapq.heappop(self._free)
        heapq.heappush(self._busy, (end, row))
        return row


def _slices(line: Line, begun: float, took: int, place: dict[str, int]) -> Iterator[dict[str, Any]]:
    about = {"id": line.id, "lane": line.lane, "outcome": line.outcome, **line.timings}
    name = f"{line.kind} {line.outcome}"
    yield {"ph": "X", "cat": line.kind, "name": name, "ts": begun, "dur": took, "args": about, **place}
    at = 0
    for stage in sorted(stages_of(line), key=lambda stage: line.timings[stage]):
        until = line.timings[stage]
        yield {"ph": "X", "cat": "stage", "name": stage, "ts": begun + at, "dur": until - at, **place}
        at = until


def _counters(calls: list[Line], first: int) -> Iterator[dict[str, Any]]:
    """How many calls waited for their turn, and how many processes ran, whenever that changed."""
    changes: list[tuple[float, str, int]] = []
    for line in calls:
        begun, timings = (line.received_ns - first) / 1000, line.timings
        if line.kind == "environment_start":
            continue
        changes.append((begun, "waiting", 1))
        changes.append((begun + timings.get("admitted", took_us(line)), "waiting", -1))
        if "started" in timings and "exited" in timings:
            changes.append((begun + timings["started"], "running", 1))
            changes.append((begun + timings["exited"], "running", -1))
    counts = {"waiting": 0, "running": 0}
    for at, name, change in sorted(changes):
        counts[name] += change
        yield {"ph": "C", "name": name, "pid": 0, "ts": at, "args": {name: counts[name]}}


def document(lines: Iterable[Line]) -> Iterator[bytes]:
    """The whole file, piece by piece."""
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    separator = b""
    for event in events(lines):
        yield separator + msgspec.json.encode(event)
        separator = b",\n"
    yield b"\n]}\n"
