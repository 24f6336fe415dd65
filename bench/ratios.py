"""Ways of doing the same thing, measured in turn in the same run, and every value that comes of it.

Owns how two ways are compared: in turn, pair by pair. What is made of the values: results.py, report.py.
"""

from __future__ import annotations

import gc
import statistics
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.results import RATIO, Results, Row, Series, make_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

BUDGETS = Path(__file__).with_name("budgets.toml")


class Budgets(NamedTuple):
    """Goals, below which `make bench-check` fails, and aims, which are shown: what the design asks for.

    Each is the least median ratio, by the name of its row.
    """

    goals: dict[str, float]
    aims: dict[str, float]

    def missed(self, measured: Sequence[Series]) -> list[str]:
        """Goals that were missed, and goals that nothing was measured for."""
        medians = {one.name: statistics.median(one.values) for one in measured}
        lines = [(name, medians.get(name), goal) for name, goal in self.goals.items()]
        return [
            f"{name}: not measured" if found is None else f"{name}: {found:.3g}, goal {goal:g}"
            for name, found, goal in lines
            if found is None or found < goal
        ]


class Pairs(NamedTuple):
    """What ours and a rival took, round by round, without those to warm up.

    Parameters:
        unit: of both (bench.results.Row).
        at: Unix time of the end of each round.
    """

    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    at: Sequence[float]


class Comparison(NamedTuple):
    """What `compare` found: seconds by round, of ours and of each rival, and the end of each round in Unix time."""

    ours: list[float]
    rivals: dict[str, list[float]]
    at: list[float]

    def times(self, rival: str) -> Pairs:
        """Seconds."""
        return Pairs("s", self.ours, self.rivals[rival], self.at)

    def rates(self, rival: str, count: float, their_count: float | None = None, unit: str = "/s") -> Pairs:
        """How many a second, of `count` in a round; the rival may have had another number of them to do."""
        theirs = count if their_count is None else their_count
        return Pairs(
            unit, [count / took for took in self.ours], [theirs / took for took in self.rivals[rival]], self.at
        )


class Ratios:
    """What this run has found: each value of each round.

    Nothing is kept twice: a name stands for one series of rounds. `header` is of the moment when this was made.
    """

    def __init__(self) -> None:
        self.header = make_header()
        self.rows: list[Row] = []

    def compared(self, what: str, rival: str, pairs: Pairs) -> None:
        """Keep what was measured in turn with a rival."""
        self._keep(what, pairs.unit, pairs.ours, pairs.at, rival)
        rows = enumerate(zip(pairs.theirs, pairs.at, strict=True))
        self.rows += [
            Row(what=what, rival=rival, side="rival", unit=pairs.unit, value=value, round=number, at=at)
            for number, (value, at) in rows
        ]

    def allowed(self, what: str, values: Sequence[float]) -> None:
        """Keep what is allowed over what was taken, for each round: above 1 is better."""
        self._keep(what, RATIO, values)

    def figure(self, what: str, values: Sequence[float], unit: str) -> None:
        """Keep something that has neither rival nor goal."""
        self._keep(what, unit, values)

    def _keep(
        self, what: str, unit: str, values: Sequence[float], at: Sequence[float] | None = None, rival: str = ""
    ) -> None:
        assert not any((row.what, row.rival, row.unit) == (what, rival, unit) for row in self.rows), what
        ends = at or [time.time()] * len(values)
        self.rows += [
            Row(what=what, rival=rival, unit=unit, value=value, round=number, at=end)
            for number, (value, end) in enumerate(zip(values, ends, strict=True))
        ]

    def results(self) -> Results:
        """All of it."""
        return Results(self.header, self.rows)


def read_budgets() -> Budgets:
    """Goals and aims in budgets.toml."""
    budgets: dict[str, dict[str, float]] = tomllib.loads(BUDGETS.read_text())
    return Budgets(budgets["ratios"], budgets["aims"])


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
    found = Comparison([], {name: [] for name in rivals}, [])

    def run_rivals() -> None:
        for name, rival in rivals.items():
            found.rivals[name].append(rival())

    def run_ours() -> None:
        found.ours.append(ours())
        found.at.append(time.time())

    in_turn(benchmark, run_ours, run_rivals, rounds)
    return Comparison(found.ours[1:], {name: times[1:] for name, times in found.rivals.items()}, found.at[1:])


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes. The garbage of the one before is not its affair."""
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
