"""Latencies, summed in a histogram (https://hdrhistogram.github.io/HdrHistogram): microseconds, to three digits."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from fastclaw import bench_limits

if TYPE_CHECKING:
    from collections.abc import Iterable

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_HIGHEST_US = bench_limits.BENCH_MAX_OPERATION_MS * 1_000
_DIGITS = 3


class Percentile(Struct, frozen=True, kw_only=True):
    """One latency of many.

    Parameters:
        us: microseconds that this share of all took at most.
        behind: how many samples are above it, which is what stands behind the number: with a handful it is chance.
    """

    us: int
    behind: int


class Latency(Struct, frozen=True, kw_only=True):
    """What operations, or a stage of them, took.

    Parameters:
        samples: how many were measured.
        percentiles: by name, `p50` to `p99.9`.
    """

    samples: int
    mean_us: float
    max_us: int
    percentiles: dict[str, Percentile]


class Latencies:
    """A histogram of durations."""

    __slots__ = ("_sum_us", "histogram")

    def __init__(self) -> None:
        self.histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        self._sum_us = 0

    def record(self, nanoseconds: int) -> None:
        """Add one; what is longer than the longest counts as that."""
        us = min((nanoseconds + 500) // 1_000, _HIGHEST_US)
        self._sum_us += us
        self.histogram.record_value(us)

    def summary(self) -> Latency:
        """What there is to say of them."""
        count = int(self.histogram.total_count)
        return Latency(
            samples=count,
            mean_us=round(self._sum_us / count, 1) if count else 0.0,
            max_us=int(self.histogram.max_value),
            percentiles={f"p{share:g}": found for share, found in zip(PERCENTILES, self.at(PERCENTILES), strict=False)},
        )

    def at(self, shares: Iterable[float]) -> list[Percentile]:
        """Percentiles, by shares in percent; none where there is no sample. The library's own looks at each of 20 000
        counters for it, by a call each."""
        histogram = self.histogram
        count, highest = int(histogram.total_count), int(histogram.max_value)
        if not count:
            return []
        up_to = list(accumulate(histogram.counts[: histogram.get_counts_array_index(highest) + 1]))
        found = []
        for share in shares:
            index = bisect_left(up_to, histogram.get_target_count_at_percentile(share))
            last = histogram.get_highest_equivalent_value(histogram.get_value_from_index(index))
            found.append(Percentile(us=min(int(last), highest), behind=count - up_to[index]))
        return found
