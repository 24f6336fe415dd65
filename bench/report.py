"""docs/benchmarks.md, out of a file of results and the goals: python -m bench.report FILE.

What makes the text is pure: the same file and the same goals give the same page.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import p_text, quantity, spread
from bench.rank_test import mann_whitney
from bench.ratios import Budgets, read_budgets
from bench.results import P50, RATIO, ROOT, Header, Results, Series, read
from bench.rival_table import ABOUT, ways

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs" / "benchmarks.md"
USAGE = "usage: python -m bench.report FILE, a file of results (.bench/*.jsonl)\n"

TOP = """\
# Benchmarks

Written by `make bench`; do not edit. A ratio is the rate of ours over the rival's, both measured in turn in one run:
the median of the pairs, with their quartiles, so above 1 is better than the rival. `n` is the number of pairs; `p` says
how likely the two are to differ as much by noise alone (Mann-Whitney, two-sided). Ratios carry over to other machines;
rates do not. `make bench-check` fails below a goal; an aim is what the design asks for. Every value of every round is
in a file of results, `.bench/*.jsonl`, two of which `make bench-compare A=FILE B=FILE` compares. A part of them is made
by `.venv/bin/python -m pytest bench/test_wire.py --results=FILE`.
"""


def page(results: Results, budgets: Budgets) -> str:
    """All of it, as Markdown."""
    return "\n".join([TOP, *_head(results.header), "", *tables(results, budgets)]) + "\n"


def tables(results: Results, budgets: Budgets) -> list[str]:
    """Ratios, then rivals side by side, then what has neither rival nor goal."""
    measured = results.series()
    whats = dict.fromkeys(one.what for one in measured if one.unit == P50)
    rest = [one for one in measured if one.what not in whats]
    ratios, figures = [one for one in rest if not _is_figure(one)], list(filter(_is_figure, rest))
    lines: list[str] = []
    if ratios:
        lines += ["## Ratios", "", *_ratios(ratios, budgets)]
    if whats:
        lines += ["", "## Rivals", "", ABOUT]
    for what in whats:
        lines += ["", f"### {what[0].upper()}{what[1:]}", ""]
        lines += ways([one for one in measured if one.what == what], results.header)
    if figures:
        lines += ["", "## Figures", "", *_figures(figures)]
    return lines


def _ratios(measured: Sequence[Series], budgets: Budgets) -> list[str]:
    head = ["| what | ratio | quartiles | n | p | ours | rival | goal | aim |", f"|{' --- |' * 9}"]
    return head + [_ratio_line(one, budgets) for one in measured]


def _head(header: Header) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    return [
        f"- {header.date}, commit {header.commit}, {header.machine}, {header.kernel}",
        f"- load average before the run {header.load:.1f}: what others did on the machine",
        f"- Python {header.python}, {versions}",
        *(f"- Not measured: {name}; {how}" for name, how in header.missing.items()),
    ]


def _is_figure(one: Series) -> bool:
    return not one.rival and one.unit != RATIO


def _ratio_line(one: Series, budgets: Budgets) -> str:
    middle = statistics.median(one.values)
    goal, aim = (_least(middle, least.get(one.name)) for least in budgets)
    p = p_text(mann_whitney(one.ours, one.theirs)) if one.rival else ""
    sides = [quantity(statistics.median(side), one.unit) if one.rival else "" for side in (one.ours, one.theirs)]
    cells = [one.name, f"{middle:.3g}", spread(one.values, ""), str(len(one.ours)), p, *sides, goal, aim]
    return f"| {' | '.join(cells)} |"


def _least(found: float, least: float | None) -> str:
    if least is None:
        return ""
    return f"≥ {least:g}{' **missed**' if found < least else ''}"


def _figures(measured: Sequence[Series]) -> list[str]:
    lines = ["| what | median | quartiles | n |", "| --- | --- | --- | --- |"]
    for one in filter(_is_figure, measured):
        middle = quantity(statistics.median(one.ours), one.unit)
        lines.append(f"| {one.what} | {middle} | {spread(one.ours, one.unit)} | {len(one.ours)} |")
    return lines


def main(paths: list[str]) -> int:
    """Write the page; where the file is no file of results, it stays as it is."""
    if len(paths) != 1:
        sys.stderr.write(USAGE)
        return 2
    try:
        PAGE.write_text(page(read(Path(paths[0])), read_budgets()))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"bench.report: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
