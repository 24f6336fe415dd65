"""Ways to do the same thing as a table, ours among them. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.figures import p_text, quantity, spread
from bench.rank_test import mann_whitney
from bench.results import P50, P99, Header, Series

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OURS = "**fastclaw, run**"

ABOUT = """\
`true` started and awaited with its output, each way in a process of its own, in turn: the rate, and the percentiles of
one command, the median of the rounds (p99 where a round has a hundred). `ratio` is the rate of ours over this one."""

HEAD = ["| way | version | a second | p50 | p99 | ratio | quartiles | n | p |", f"|{' --- |' * 9}"]


def ways(measured: Sequence[Series], header: Header) -> list[str]:
    """The quickest first."""
    rates = {one.rival: one for one in measured if one.unit == "/s"}
    latencies = [{one.rival: one for one in measured if one.unit == unit} for unit in (P50, P99)]
    first = next(iter(rates))
    lines = [_ours(rates[first], [by_rival.get(first) for by_rival in latencies], header.commit)]
    lines += [_theirs(rate, latencies, header.ways.get(name, "")) for name, rate in rates.items()]
    return HEAD + [f"| {' | '.join(cells)} |" for _, cells in sorted(lines, reverse=True)]


def _ours(rate: Series, latencies: Sequence[Series | None], commit: str) -> tuple[float, list[str]]:
    times = [_time(one and one.ours) for one in latencies]
    median = statistics.median(rate.ours)
    return median, [OURS, commit, quantity(median, ""), *times, "1", "", str(len(rate.ours)), ""]


def _theirs(rate: Series, latencies: Sequence[Mapping[str, Series]], version: str) -> tuple[float, list[str]]:
    found = [by_rival.get(rate.rival) for by_rival in latencies]
    times = [_time(one and one.theirs) for one in found]
    ratio, p = statistics.median(rate.values), mann_whitney(rate.ours, rate.theirs)
    said = [f"{ratio:.3g}", spread(rate.values, ""), str(len(rate.ours)), p_text(p)]
    median = statistics.median(rate.theirs)
    return median, [rate.rival, version, quantity(median, ""), *times, *said]


def _time(values: Sequence[float] | None) -> str:
    return quantity(statistics.median(values), "s") if values else ""
