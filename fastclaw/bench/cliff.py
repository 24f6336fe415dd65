"""How far a runtime goes: which level comes next, whether a step has converged, and what bound it. Knows no clock."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from fastclaw import bench_limits
from fastclaw.bench.job import LoadName, Plan
from fastclaw.bench.leftovers import Leftovers
from fastclaw.bench.report import LATE_US, Measured, named, time_text, wrapped

By = Literal["rate", "concurrency"]

_GAIN = 0.05
"""That much more a second for twice as many at once, or there is nothing more to be had."""

_FULL = 0.9
"""Of a processor, of all of them, of the descriptors."""

_NEAR = 1.1
"""Levels that are no further apart need nothing in between: three between one and its double."""

_TRIES = 2
"""A step that does not converge is made again: other programs of the host have their moments."""

_LOWEST: dict[By, float] = {"rate": 0.1, "concurrency": 1.0}

_STEP_COLUMNS = (("p50", 9), ("p99", 9), ("right", 8))
_WIDE = 100
_SEEN_COLUMNS = (("runtime", 9), ("tree", 7), ("gen.", 7), ("busy", 7), ("files", 8), ("waiting", 9))


class Seen(Struct, frozen=True, kw_only=True):
    """What was taken, on average but for descriptors and queue, which are the most that was seen.

    Parameters:
        processors: of this host.
        machine: processors that were busy, with whatever.
        tree: of them, with the runtime and all that descends from it.
        runtime: of them, with the runtime's own process alone.
        generator: of them, with the generator.
        files, files_limit: descriptors of the runtime's own process, and how many it may have.
        waiting: starts that wait in the runtime, as its health says; None where it does not.
        status: the worst that its health said.
    """

    processors: int
    machine: float
    tree: float
    runtime: float
    generator: float
    files: int
    files_limit: int | None
    waiting: int | None
    status: str


class Step(Struct, frozen=True, kw_only=True):
    """A level, and what came of it.

    Parameters:
        level: operations a second, or at once.
        why: it has not converged; empty where it has.
    """

    level: float
    why: str
    measured: Measured
    seen: Seen


class Cliff(Struct, frozen=True, kw_only=True):
    """A climb.

    Parameters:
        version: of this form: 1.
        ok: some level held, the runtime ended in order, and nothing is left.
        plan: of the first step.
        by: what was raised.
        highest: the highest level that held; None where none did.
        per_s: right operations a second there.
        first: the lowest level that did not; None where all did.
        bounds: what was at its end there, the first of it first, each in a sentence.
    """

    version: int = 1
    ok: bool
    command: list[str]
    server: dict[str, Any] | None
    load: LoadName
    plan: Plan
    by: By
    steps: list[Step]
    highest: float | None
    per_s: float | None
    first: float | None
    bounds: list[str]
    ended_early: str | None
    exit_code: int | None
    interrupted: bool = False
    oddities: dict[str, int] = field(default_factory=dict)
    leftovers: Leftovers


# --- Which level is next ---


def held(steps: list[Step]) -> list[float]:
    """Levels that converged, the lowest first."""
    return sorted({step.level for step in steps if not step.why})


def broken(steps: list[Step]) -> list[float]:
    """Levels that did not however often they were tried, the lowest first."""
    tries = [step.level for step in steps if step.why]
    return sorted({level for level in tries if tries.count(level) >= _TRIES} - {*held(steps)})


def next_level(steps: list[Step], start: float, highest: float, by: By) -> float | None:
    """Twice as much while it holds, then closer to where it broke; None where that is known.

    Parameters:
        start: the first level.
        highest: no level is above.
    """
    if not steps:
        return min(start, highest)
    if len(steps) >= bench_limits.BENCH_STEPS:
        return None
    last = steps[-1].level
    good, bad = held(steps), broken(steps)
    if last not in good and last not in bad:
        return last
    if not bad:
        return min(2 * last, highest) if last < highest else None
    below = [level for level in good if level < bad[0]]
    if not below:
        lower = float(int(bad[0] / 2)) if by == "concurrency" else _whole(bad[0] / 2, by)
        return lower if lower >= _LOWEST[by] else None
    middle = _whole(math.sqrt(below[-1] * bad[0]), by)
    is_near = bad[0] / below[-1] <= _NEAR or middle in (below[-1], bad[0])
    return None if is_near else middle


def _whole(level: float, by: By) -> float:
    return float(round(level)) if by == "concurrency" else float(f"{level:.3g}")


# --- Whether a step has converged ---


def why_not(level: float, measured: Measured, steps: list[Step], by: By) -> str:
    """Why a step has not converged; empty where it has."""
    if measured.failed:
        return f"{sum(measured.failed.values())} failed"
    if not measured.right:
        return "nothing ended"
    if by == "rate":
        return "" if measured.is_held else "rate not held"
    below = [step for step in steps if not step.why and step.level < level]
    if not below:
        return ""
    best = max(below, key=lambda step: step.measured.per_s)
    gain = 1 + _GAIN * math.log2(level / best.level)
    return "" if measured.per_s >= best.measured.per_s * gain else "no more a second"


# --- What bound it ---


def bounds(step: Step, ended: str | None) -> list[str]:
    """What was at its end in a step that has not converged, each in a sentence, the first cause first.

    Parameters:
        ended: what to say of a runtime that ended under the load.
    """
    seen, measured = step.seen, step.measured
    found = [f"the runtime ended: {ended}"] if ended is not None else []
    if seen.files_limit is not None and seen.files >= _FULL * seen.files_limit:
        found.append(f"descriptors: {seen.files} of {seen.files_limit} of the runtime's own process")
    if seen.generator >= _FULL:
        found.append(f"the generator took {seen.generator:.2f} of its one processor: the runtime may go further")
    if seen.runtime >= _FULL:
        found.append(f"one processor: the runtime's own process took {seen.runtime:.2f}")
    if seen.machine >= _FULL * seen.processors:
        others = max(0.0, seen.machine - seen.tree - seen.generator)
        found.append(
            f"all processors: {seen.machine:.2f} of {seen.processors} busy, {seen.tree:.2f} with the runtime and its "
            f"children, {seen.generator:.2f} with the generator, {others:.2f} with others"
        )
    if seen.waiting:
        found.append(f"the runtime's queue: {seen.waiting} waited")
    errors = sorted(measured.failed.items(), key=lambda one: -one[1])
    found += [f"errors: {count} {reason}" for reason, count in errors]
    late_us = measured.late.percentiles["p99"].us if measured.late is not None and measured.late.samples else 0
    if late_us > LATE_US:
        found.append(f"the generator began late, by {time_text(late_us)} at p99: the runtime may go further")
    return found or ["nothing that is watched: neither processors, descriptors, a queue nor errors"]


# --- Text ---


def to_json(cliff: Cliff) -> bytes:
    """One object on one line."""
    return msgspec.json.encode(cliff) + b"\n"


def to_text(cliff: Cliff, width: int) -> str:
    """For a terminal of so many columns, 40 at least."""
    lines = [*wrapped(f"{cliff.load} on {named(cliff.server)}, raising the {cliff.by}", width), ""]
    lines += _table(cliff, width)
    lines.append("")
    for sentence in sentences(cliff):
        lines += wrapped(sentence, width)
    return "\n".join(lines) + "\n"


def _table(cliff: Cliff, width: int) -> list[str]:
    """What a step took of the host, where there is room."""
    has_room = width >= _WIDE
    heads = [(cliff.by[:4], 6), ("per s", 8), *_STEP_COLUMNS, *(_SEEN_COLUMNS if has_room else ())]
    lines = ["".join(f"{head:>{columns}}" for head, columns in heads)]
    for step in cliff.steps:
        cells = [*_cells(step), *(_seen_cells(step.seen) if has_room else ())]
        line = "".join(f"{cell:>{columns}}" for cell, (_, columns) in zip(cells, heads, strict=True))
        lines.append(line)
        if step.why:
            lines[-1:] = (
                [f"{line}  {step.why}"] if len(line) + 2 + len(step.why) <= width else [line, f"{'':6} {step.why}"]
            )
    return lines


def _cells(step: Step) -> list[str]:
    measured = step.measured
    told = measured.latency.percentiles
    times = [time_text(told[name].us) if name in told else "-" for name in ("p50", "p99")]
    return [f"{step.level:g}", f"{measured.per_s:.0f}", *times, f"{measured.right_percent:.1f} %"]


def _seen_cells(seen: Seen) -> list[str]:
    shares = [f"{share:.2f}" for share in (seen.runtime, seen.tree, seen.generator, seen.machine)]
    return [*shares, f"{seen.files}", "-" if seen.waiting is None else f"{seen.waiting}"]


def sentences(cliff: Cliff) -> list[str]:
    """What there is to say."""
    unit = "/s" if cliff.by == "rate" else " at once"
    holds = f"holds {cliff.highest:g}{unit}, {cliff.per_s:.0f}/s right" if cliff.highest is not None else ""
    told = [holds or "no level held"]
    if cliff.first is not None:
        told.append(f"not {cliff.first:g}{unit}; what bound first:")
        told += [f"- {bound}" for bound in cliff.bounds]
    elif cliff.highest is not None and not cliff.interrupted:
        told.append("nothing bound it: that is the highest level there is, or the last that was tried")
    if cliff.interrupted:
        told.append("interrupted: a part of the climb")
    if cliff.oddities:
        told.append("not asked for: " + ", ".join(f"{count} {kind}" for kind, count in cliff.oddities.items()))
    if cliff.ended_early is not None:
        told.append(f"ended early: {cliff.ended_early}")
    elif cliff.exit_code != 0:
        told.append("the runtime had to be killed" if cliff.exit_code is None else f"exit code {cliff.exit_code}")
    return [*told, cliff.leftovers.text]
