"""Latencies, summed in a histogram (https://hdrhistogram.github.io/HdrHistogram): microseconds, to three digits."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from fastclaw import bench_limits

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
        histogram = self.histogram
        count, highest = int(histogram.total_count), int(histogram.max_value)
        values = histogram.get_percentile_to_value_dict(list(PERCENTILES)) if count else {}
        return Latency(
            samples=count,
            mean_us=round(self._sum_us / count, 1) if count else 0.0,
            max_us=highest,
            percentiles={
                f"p{share:g}": self._percentile(int(value), highest) for share, value in sorted(values.items())
            },
        )

    def _percentile(self, value: int, highest: int) -> Percentile:
        us = min(value, highest)  # the end of its bucket may be beyond
        return Percentile(us=us, behind=self._above(value))

    def _above(self, value: int) -> int:
        """How many samples are in the buckets above the one of a value."""
        histogram = self.histogram
        first = histogram.get_counts_array_index(value) + 1
        last = histogram.get_counts_array_index(histogram.max_value)
        return sum(histogram.counts[first : last + 1])
