"""Ratios between ways of doing the same thing, measured in the same run: collected, shown, kept, checked.

Owns how two ways are compared (in turn, the median of the pairs) and how the result is written down.
"""

from __future__ import annotations

import datetime
import gc
import os
import platform
import statistics
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_benchmark.fixture import BenchmarkFixture

BUDGETS = Path(__file__).with_name("budgets.toml")
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Row(NamedTuple):
    """One line of the table. `value` is formatted already; `ratio` is None for plain facts."""

    what: str
    value: str
    ratio: float | None = None
    goal: float | None = None
    aim: float | None = None

    @property
    def missed(self) -> bool:
        """Below its goal."""
        return self.ratio is not None and self.goal is not None and self.ratio < self.goal

    def cell(self, least: float | None) -> str:
        """A goal or an aim, and whether it was missed."""
        if self.ratio is None or least is None:
            return ""
        return f"≥ {least:g}{' **missed**' if self.ratio < least else ''}"


class Comparison(NamedTuple):
    """What `compare` found.

    Parameters:
        ratios: by rival, the median over the rounds of the rival's time over ours.
        seconds: the median time of ours.
        rivals: the median time of each rival, in seconds.
    """

    ratios: dict[str, float]
    seconds: float
    rivals: dict[str, float]


class Ratios:
    """What this run has found.

    Parameters:
        goals: by name of the ratio, the least that is good enough.
        aims: the same, but shown only: what the design asks for, above the goal or without one.
    """

    def __init__(self, goals: Mapping[str, float], aims: Mapping[str, float]) -> None:
        self.goals = goals
        self.aims = aims
        self.rows: list[Row] = []

    def ratio(self, what: str, value: float) -> None:
        """Keep a ratio: the rate of ours over the rival's, so above 1 is better."""
        self.rows.append(Row(what, f"{value:.3g}", value, self.goals.get(what), self.aims.get(what)))

    def fact(self, what: str, value: str) -> None:
        """Keep something that has no goal."""
        self.rows.append(Row(what, value))

    def missed(self) -> list[str]:
        """Goals that were missed, and goals that nothing was measured for."""
        measured = {row.what for row in self.rows}
        below = [f"{row.what}: {row.value}, goal {row.goal}" for row in self.rows if row.missed]
        return below + [f"{what}: not measured" for what in self.goals if what not in measured]

    def table(self) -> list[str]:
        """The rows as a Markdown table."""
        head = ["| what | measured | goal | aim |", "| --- | --- | --- | --- |"]
        return head + [
            f"| {row.what} | {row.value} | {row.cell(row.goal)} | {row.cell(row.aim)} |" for row in self.rows
        ]

    def write(self) -> None:
        """Write docs/benchmarks.md."""
        PAGE.write_text("\n".join([*_head(), *self.table()]) + "\n")


def read_budgets() -> tuple[dict[str, float], dict[str, float]]:
    """Goals and aims in budgets.toml."""
    budgets: dict[str, dict[str, float]] = tomllib.loads(BUDGETS.read_text())
    return budgets["ratios"], budgets["aims"]


def _head() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.datetime.now(datetime.UTC).date()
    kernel = ".".join(platform.release().split(".")[:2])  # the rest names a distribution's build
    return [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. A ratio is the rate of ours over the rival's, both measured in turn in",
        "one run, the median of the pairs: above 1 is better than the rival. Ratios carry over to other machines;",
        "rates do not. `make bench-check` fails below a goal; an aim is what the design asks for.",
        "",
        f"- {today}, {os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {kernel} {platform.machine()}",
        f"- Python {platform.python_version()}, uvloop {version('uvloop')}, orjson {version('orjson')}, "
        f"msgspec {version('msgspec')}, podman-py {version('podman')}",
        "",
    ]


def in_turn(benchmark: BenchmarkFixture, ours: Callable[[], object], rivals: Callable[[], object], rounds: int) -> None:
    """Run the rivals, then ours: once to warm up, then `rounds` times. The benchmark's table has the times of ours."""
    # pytest-benchmark leaves `pedantic` untyped.
    run: Callable[..., None] = benchmark.pedantic
    run(ours, setup=rivals, rounds=rounds, iterations=1, warmup_rounds=1)


def compare(
    benchmark: BenchmarkFixture, ours: Callable[[], object], rivals: Mapping[str, Callable[[], object]], rounds: int
) -> Comparison:
    """How many times as fast `ours` is as each rival, by our own clock."""
    clocked = {name: lambda rival=rival: timed(rival) for name, rival in rivals.items()}
    return compare_told(benchmark, lambda: timed(ours), clocked, rounds)


def compare_told(
    benchmark: BenchmarkFixture, ours: Callable[[], float], rivals: Mapping[str, Callable[[], float]], rounds: int
) -> Comparison:
    """The same of programs that measure themselves: each returns the seconds it took, without its own start."""
    mine: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in rivals}

    def run_rivals() -> None:
        for name, rival in rivals.items():
            theirs[name].append(rival())

    in_turn(benchmark, lambda: mine.append(ours()), run_rivals, rounds)
    ratios = {name: median_ratio(times[1:], mine[1:]) for name, times in theirs.items()}
    benchmark.extra_info.update(ratios)
    seconds = {name: statistics.median(times[1:]) for name, times in theirs.items()}
    return Comparison(ratios, statistics.median(mine[1:]), seconds)


def median_ratio(theirs: list[float], ours: list[float]) -> float:
    """The median of the pairs' ratios: what disturbs the machine for a while disturbs both of a pair."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes. The garbage of the one before is not its affair."""
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
