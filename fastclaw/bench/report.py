"""What was found, as values, and as text that fits a terminal. `--json` prints the values: docs/bench.md has each."""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

import msgspec
from msgspec import Struct, field

from fastclaw.bench.histogram import Latency
from fastclaw.bench.job import LoadName, Plan
from fastclaw.bench.leftovers import Leftovers
from fastclaw.printable import printable

LATE_US = 10_000
"""An open loop that begins one operation in a hundred later than this is not at its rate."""

_HELD_SHARE = 0.95
_DEVIATIONS = 3
_COLUMN = 11
_UNIT = re.compile(r"(?<=\d) (?=(?:µs|ms|s)\b)")
_NAME_CHARS = 40


class Measured(Struct, frozen=True, kw_only=True):
    """What came of operations.

    Parameters:
        begun: those that count, so not the warm-up.
        right, failed: what came of them; failures by reason.
        cut_off: under way when Ctrl-C ended it.
        warm_up, warm_up_failed: operations before those that count.
        seconds: from the first that counts to the end of the last.
        per_s: right ones in a second of it.
        right_percent: of those that ended.
        latency: of the right ones; in an open loop from the moment they were meant to begin.
        stages: the same for each part of an operation.
        inside: microseconds on average of each stage within the runtime, in its own words and order, where it tells of
            them in `timings` of its exit records; what is left of the latency was outside of it.
        late: by how much the generator itself began later than was meant, in an open loop.
        is_held: whether the rate of an open loop was held; None for other loops.
        cpu_us: processor time of the generator for each operation, in microseconds.
    """

    begun: int
    right: int
    failed: dict[str, int]
    cut_off: int
    warm_up: int
    warm_up_failed: int
    seconds: float
    per_s: float
    right_percent: float
    latency: Latency
    stages: dict[str, Latency]
    inside: dict[str, float]
    late: Latency | None
    is_held: bool | None
    cpu_us: float


class Floor(Struct, frozen=True, kw_only=True):
    """The generator's own share: the same plan against a runtime that does nothing.

    Parameters:
        timer: by how much the timer rings too late.
        clock_ns: the resolution of the clock, in nanoseconds.
    """

    measured: Measured
    timer: Latency
    clock_ns: int


class Report(Struct, frozen=True, kw_only=True):
    """One benchmark.

    Parameters:
        version: of this form: 1.
        ok: no operation failed, the runtime kept to the protocol and ended in order, nothing is left.
        server: what the runtime says it is.
        loop: `closed`, `open` or `burst`.
        cmd, live, size: of the load; each is used by some of them only.
        oddities: lines of the runtime that were no answers to what was asked, by kind; `late_answer` is no fault.
        example: the first of them.
        messages: of errors, the first one by reason.
        ended_early: what to say of a runtime that ended before its shutdown, or would not; None where all is well.
        exit_code: of the runtime; negative for a signal, None where it had to be killed.
        interrupted: by Ctrl-C, so that it is a part of what was planned.
    """

    version: int = 1
    ok: bool
    command: list[str]
    server: dict[str, Any] | None
    load: LoadName
    loop: str
    plan: Plan
    cmd: list[str]
    live: int
    size: int
    floor: Floor | None
    measured: Measured
    oddities: dict[str, int]
    example: str
    messages: dict[str, str] = field(default_factory=dict)
    ended_early: str | None = None
    exit_code: int | None = None
    interrupted: bool = False
    leftovers: Leftovers


def is_held(turns: list[tuple[int, int]], late_p99_us: int, failed: dict[str, int]) -> bool:
    """Whether an open loop was at its rate: in its second half as many ended as began, but for chance, and each began
    in time.

    Parameters:
        turns: begun and ended, half-way and at the end.
    """
    if late_p99_us > LATE_US or "generator_full" in failed:
        return False
    if len(turns) < 2:
        return True
    begun, ended = (turns[-1][which] - turns[0][which] for which in (0, 1))
    return ended >= _HELD_SHARE * begun - _DEVIATIONS * math.sqrt(begun)


def to_json(report: Report) -> bytes:
    """One object on one line."""
    return msgspec.json.encode(report) + b"\n"


# --- Text ---


def to_text(report: Report, width: int) -> str:
    """For a terminal of so many columns, 40 at least."""
    measured = report.measured
    parts = [
        *wrapped(title_of(report), width),
        *wrapped(f"{_count(measured.right)} right of {_count(measured.begun)}, {_rate(measured.per_s)}/s", width),
        "",
        *_blocks(_columns(report), width),
        "",
    ]
    for sentence in sentences(report):
        parts += wrapped(sentence, width)
    return "\n".join(parts) + "\n"


def title_of(report: Report) -> str:
    """What was measured, in a line."""
    return f"{report.load} on {named(report.server)}: {report.plan}"


def named(server: dict[str, Any] | None) -> str:
    """What a runtime calls itself."""
    given = server or {}
    told = [str(given[name])[:_NAME_CHARS] for name in ("name", "version") if name in given]
    return printable(" ".join(told)) or "a runtime"


def _columns(report: Report) -> list[tuple[str, list[str]]]:
    """Each with its head; the first one names the rows."""
    measured, floor = report.measured, report.floor
    names = [*measured.latency.percentiles] or ["p50", "p90", "p99", "p99.9"]
    share = f"{measured.right_percent:.2f} %"
    columns = [
        ("", ["right", "samples", *names, "max", "mean"]),
        ("whole", _latency(measured.latency, names, share)),
        ("behind", ["", "", *(_count(_behind(measured.latency, name)) for name in names), "", ""]),
    ]
    if floor is not None:
        of_floor = f"{floor.measured.right_percent:.2f} %"
        columns.append(("floor", _latency(floor.measured.latency, names, of_floor)))
    columns += [(stage, _latency(latency, names, share)) for stage, latency in measured.stages.items()]
    return columns


def _latency(latency: Latency, names: list[str], share: str) -> list[str]:
    values = [time_text(latency.percentiles[name].us) if latency.samples else "-" for name in names]
    ends = [time_text(latency.max_us), time_text(latency.mean_us)] if latency.samples else ["-", "-"]
    return [share, _count(latency.samples), *values, *ends]


def _behind(latency: Latency, name: str) -> int:
    return latency.percentiles[name].behind if latency.samples else 0


def _blocks(columns: list[tuple[str, list[str]]], width: int) -> list[str]:
    """Tables beneath each other, each with as many columns as there is room for."""
    names = columns[0][1]
    label = max(map(len, names))
    fit = max(1, (width - label) // _COLUMN)
    lines: list[str] = []
    for first in range(1, len(columns), fit):
        block = columns[first : first + fit]
        lines += [""] if lines else []
        lines.append((" " * label + "".join(f"{head:>{_COLUMN}}" for head, _ in block)).rstrip())
        for row, name in enumerate(names):
            lines.append((f"{name:<{label}}" + "".join(f"{cells[row]:>{_COLUMN}}" for _, cells in block)).rstrip())
    return lines


def sentences(report: Report) -> list[str]:
    """What is to be known besides, each in a line."""
    measured, told = report.measured, []
    for reason, count in sorted(measured.failed.items(), key=lambda one: -one[1]):
        said = f" ({report.messages[reason]})" if reason in report.messages else ""
        told.append(f"failed: {_count(count)} {reason}{said}")
    if measured.late is not None:
        told.append(_of_rate(measured, measured.late))
    if measured.inside:
        stages = ", ".join(f"{name} {time_text(us)}" for name, us in measured.inside.items())
        outside = time_text(outside_us(measured))
        told.append(f"inside the runtime, on average: {stages}; outside of it {outside}")
    if measured.warm_up or measured.warm_up_failed:
        told.append(f"warm-up: {_count(measured.warm_up)} right, {_count(measured.warm_up_failed)} failed, not counted")
    if report.interrupted:
        told.append(f"interrupted: a part of what was planned; {_count(measured.cut_off)} under way were cut off")
    if report.oddities:
        kinds = ", ".join(f"{_count(count)} {kind}" for kind, count in report.oddities.items())
        told.append(f"not asked for: {kinds}" + (f", the first: {report.example}" if report.example else ""))
    told.append(_of_floor(report))
    if report.ended_early is not None:
        told.append(f"ended early: {report.ended_early}")
    elif report.exit_code != 0:
        told.append("the runtime had to be killed" if report.exit_code is None else f"exit code {report.exit_code}")
    return [*told, report.leftovers.text]


def _of_rate(measured: Measured, late: Latency) -> str:
    begun = measured.begun / measured.seconds if measured.seconds else 0.0
    p99, longest = (late.percentiles["p99"].us, late.max_us) if late.samples else (0, 0)
    word = "held" if measured.is_held else "NOT HELD"
    return (
        f"rate {word}: {_rate(begun)}/s begun, {_rate(measured.per_s)}/s right; the generator began them late by "
        f"{time_text(p99)} at p99, {time_text(longest)} at most"
    )


def _of_floor(report: Report) -> str:
    own = f"generator: {report.measured.cpu_us:.0f} µs of processor an operation"
    if report.floor is None:
        return own
    floor = report.floor
    late, per_s = floor.timer.percentiles["p50"].us, _rate(floor.measured.per_s)
    return f"{own}; floor is the same against a runtime that does nothing, {per_s}/s; the timer is late by {late} µs"


def outside_us(measured: Measured) -> float:
    """What of the mean latency the runtime does not account for: the way to it and back, and what it does not know."""
    return max(0.0, measured.latency.mean_us - sum(measured.inside.values()))


def time_text(us: float) -> str:
    """Three digits, with the unit that fits."""
    for bound, unit, divisor in ((1_000, "µs", 1), (1_000_000, "ms", 1_000), (math.inf, "s", 1_000_000)):
        if us < bound:
            value = us / divisor
            digits = 0 if unit == "µs" or value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError(us)


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 100 else _count(round(per_s))


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a sentence, none of which ends between a number and its unit."""
    held = _UNIT.sub("\u00a0", printable(text))
    lines = textwrap.wrap(held, width, subsequent_indent="  ") or [""]
    return [line.replace("\u00a0", " ") for line in lines]
