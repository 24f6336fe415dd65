"""Latencies as percentiles: an HDR histogram in microseconds.

Owns range and precision. Knows no clock and no terminal.
"""

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # hdrhistogram ships no types

LONGEST_US = 600_000_000
"""Ten minutes; what takes longer counts as that."""

DIGITS = 3
"""Significant digits: 0.1 % off at most."""


class Histogram:
    """Recorded durations, in constant memory."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values = HdrHistogram(1, LONGEST_US, DIGITS)

    def record(self, seconds: float) -> None:
        """Add one duration."""
        self._values.record_value(min(max(round(seconds * 1e6), 1), LONGEST_US))

    def __len__(self) -> int:
        return int(self._values.get_total_count())

    def percentile_ms(self, percent: float) -> float:
        """The duration in milliseconds below which `percent` of 100 lie; 0 where nothing was recorded."""
        return int(self._values.get_value_at_percentile(percent)) / 1000
