"""How long calls took, stage by stage: histograms by method, lane, outcome and stage, with their percentiles.

Log-linear, as HdrHistogram's (Gil Tene, https://hdrhistogram.github.io/HdrHistogram/): each octave of microseconds is
cut into equal parts, so that a value is off by at most one of them whatever its size, and adding one costs a
dictionary's look-up. Pure: the times come with the flights.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastclaw.stages import Flight

OCTAVE_BITS = 5
"""Each octave has 32 parts: an error of at most 3 % of the value."""
_EXACT_BITS = OCTAVE_BITS + 1
"""Of values that have a part each."""

TOTAL = "total"
"""Beside the stages: from the first to the last."""
_TOTAL_AT = stages.RECEIVED
"""Where it is counted: in the place of the stage that takes no time."""

QUANTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "p999_us": 0.999}
"""By the names that `health` has for them."""


class Histogram:
    """How often a duration of about so many microseconds came."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.sum_us = 0
        self.counts: defaultdict[int, int] = defaultdict(int)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def add(self, microseconds: int) -> None:
        """One more."""
        shift = microseconds.bit_length() - _EXACT_BITS
        self.counts[microseconds if shift < 0 else (shift << OCTAVE_BITS) + (microseconds >> shift)] += 1
        self.sum_us += microseconds

    def quantiles(self, shares: Sequence[float]) -> list[int]:
        """Microseconds that each of these shares of all did not exceed, up to the histogram's error.

        Parameters:
            shares: growing, above 0 and up to 1.
        """
        told: list[int] = []
        count = self.count
        for part, upto in self.cumulated():
            while len(told) < len(shares) and upto >= shares[len(told)] * count:
                told.append(highest(part))
        return told

    def figures(self) -> dict[str, int]:
        """Microseconds at each of `QUANTILES`."""
        return dict(zip(QUANTILES, self.quantiles(tuple(QUANTILES.values())), strict=True))

    def cumulated(self) -> Iterator[tuple[int, int]]:
        """Each part that has any, and how many have come up to it."""
        upto = 0
        for part in sorted(self.counts):
            upto += self.counts[part]
            yield part, upto


def highest(part: int) -> int:
    """The most microseconds that count in a part."""
    octave = part >> OCTAVE_BITS
    if octave <= 1:
        return part
    shift = octave - 1
    return ((part - (shift << OCTAVE_BITS) + 1) << shift) - 1


class Key(NamedTuple):
    """What a histogram is of."""

    method: str
    lane: str
    outcome: str
    stage: str


class _Kind(NamedTuple):
    """Flights of one method, lane and outcome: their stages, and a histogram for each."""

    names: tuple[str, ...]
    histograms: list[Histogram]


class Latency:
    """The histograms of a runtime; a `Ledger` of its flights."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], _Kind] = {}

    def __repr__(self) -> str:
        return f"<Latency {len(self._kinds)}>"

    def began(self, flight: Flight, program: str) -> None:
        """There is nothing to count yet."""

    def ended(self, flight: Flight) -> None:
        """Count each stage before the answer: its own time is since the stage before it that was reached."""
        at, histograms = flight.at, self._of(flight)
        last = at[0]
        for stage in range(1, len(at) - 1):
            when = at[stage]
            if not when:
                continue
            microseconds = 0
            if when > last:
                microseconds, last = (when - last) // 1000, when
            histogram = histograms[stage]  # as `Histogram.add` does it: each exec comes by here
            shift = microseconds.bit_length() - _EXACT_BITS
            histogram.counts[microseconds if shift < 0 else (shift << OCTAVE_BITS) + (microseconds >> shift)] += 1
            histogram.sum_us += microseconds

    def gone(self, flight: Flight) -> None:
        """Count what of its tree outlived its end."""
        self._of(flight)[stages.GONE].add(max(0, flight.at[stages.GONE] - flight.at[stages.EXITED]) // 1000)

    def answered(self, flight: Flight) -> None:
        """Count the answer, from the stage that it waited for, and all of it."""
        histograms, at = self._of(flight), flight.at
        histograms[_TOTAL_AT].add((at[-1] - at[0]) // 1000)
        if at[flight.waits_for]:
            histograms[-1].add(max(0, at[-1] - at[flight.waits_for]) // 1000)

    def _of(self, flight: Flight) -> list[Histogram]:
        key = (flight.method, flight.lane, flight.outcome)
        kind = self._kinds.get(key)
        if kind is None:
            names = (TOTAL, *flight.names[1:])
            kind = self._kinds[key] = _Kind(names, [Histogram() for _ in names])
        return kind.histograms

    def histograms(self) -> Iterator[tuple[Key, Histogram]]:
        """All that have anything."""
        for key, kind in self._kinds.items():
            for stage, histogram in zip(kind.names, kind.histograms, strict=True):
                if histogram.counts:
                    yield Key(*key, stage), histogram

    def starts(self) -> tuple[int, int]:
        """How many commands were started that have ended by now, and microseconds from their requests to there."""
        count = sum_us = 0
        for (method, *_), kind in self._kinds.items():
            upto = kind.histograms[stages.ADMITTED : stages.STARTED + 1]
            if method != "environment_start" and upto[-1].counts:
                count += upto[-1].count
                sum_us += sum(histogram.sum_us for histogram in upto)
        return count, sum_us

    def summary(self) -> dict[str, Any]:
        """By method, lane, outcome and stage: how many, and microseconds at each of `QUANTILES`."""
        told: dict[str, Any] = {}
        for key, histogram in self.histograms():
            of = told.setdefault(key.method, {}).setdefault(key.lane, {}).setdefault(key.outcome, {})
            of[key.stage] = {"count": histogram.count, **histogram.figures()}
        return told
