"""What two files of results say of each other: python -m bench.compare A B.

By the ratios of a run, and not its times: what makes the machine slow for a while makes the rival slow too, though not
by as much. So the load before each run is said. A row that has no rival is compared by its own values.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.figures import p_text
from bench.rank_test import mann_whitney
from bench.results import RATIO, Header, Results, Series, read

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAST_P = 0.01
"""From here on noise explains a difference. A page of a hundred rows then has one that differs by chance."""

ALONE = "; it has no rival beside it, so the state of the machine is in it"

USAGE = "usage: make bench-compare A=FILE B=FILE, two files of results (.bench/*.jsonl)\n"


class Line(NamedTuple):
    """One row that both files have.

    Parameters:
        medians: of the values of A and of B.
        counts: values in A and in B.
    """

    name: str
    rival: str
    unit: str
    medians: tuple[float, float]
    counts: tuple[int, int]
    p: float

    def __str__(self) -> str:
        before, after = self.medians
        counts = " + ".join(map(str, self.counts))
        return f"{self.name}: {before:.3g} -> {after:.3g}{self._unit()}, n {counts}: {self._verdict()}"

    def _unit(self) -> str:
        return "" if self.rival or self.unit == RATIO else f" {self.unit}"

    def _verdict(self) -> str:
        if self.p >= LEAST_P:
            return "no difference that noise does not explain"
        before, after = self.medians
        times = f"{after / before:.3f} times " if before else ""
        return f"{times}(p {p_text(self.p)}){'' if self.rival else ALONE}"


def compared(before: Results, after: Results) -> list[Line]:
    """The rows that both have, in the order of the first."""
    found = {(one.name, one.unit): one for one in after.series()}
    pairs = [(one, found[one.name, one.unit]) for one in before.series() if (one.name, one.unit) in found]
    return [_line(*pair) for pair in pairs]


def alone(before: Results, after: Results) -> Iterable[str]:
    """The rows that only one of them has, by their number."""
    names = [{(one.name, one.unit) for one in side.series()} for side in (before, after)]
    for side, only in (("A", names[0] - names[1]), ("B", names[1] - names[0])):
        if only:
            yield f"only in {side}: {len(only)} rows, as {min(only)[0]}"


def _line(before: Series, after: Series) -> Line:
    left, right = before.values, after.values
    medians = (statistics.median(left), statistics.median(right))
    return Line(before.name, before.rival, before.unit, medians, (len(left), len(right)), mann_whitney(left, right))


def differing(before: Header, after: Header) -> Iterable[str]:
    """What was not the same about the two runs, but for what is compared."""
    left, right = (
        {"machine": one.machine, "kernel": one.kernel, "Python": one.python, **one.versions, **one.ways}
        for one in (before, after)
    )
    for name in left:
        if left[name] != right.get(name, left[name]):
            yield f"not the same {name}: {left[name]}; {right[name]}"
    yield f"load before the runs: {before.load:.1f}; {after.load:.1f}"


def main(paths: list[str]) -> int:
    """Print what is to be said of two files."""
    if len(paths) != 2:
        sys.stderr.write(USAGE)
        return 2
    try:
        before, after = (read(Path(path)) for path in paths)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"bench-compare: {error}\n")
        return 1
    both = compared(before, after)
    lines = [*differing(before.header, after.header), *alone(before, after), *map(str, both)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if not both:
        sys.stderr.write("bench-compare: no row is in both\n")
    return int(not both)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
