"""Percentiles come out as they went in, to three digits."""

import pytest

from fastclaw.cli.histogram import LONGEST_US, Histogram


def test_percentiles_of_a_known_set() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 101):
        histogram.record(milliseconds / 1000)
    assert len(histogram) == 100
    assert histogram.percentile_ms(50) == pytest.approx(50, rel=0.001)
    assert histogram.percentile_ms(99) == pytest.approx(99, rel=0.001)


def test_out_of_range_counts_as_the_end_of_the_range() -> None:
    histogram = Histogram()
    histogram.record(0.0)
    histogram.record(10 * LONGEST_US / 1e6)
    assert histogram.percentile_ms(50) == 0.001
    assert histogram.percentile_ms(100) == pytest.approx(LONGEST_US / 1000, rel=0.001)


def test_empty() -> None:
    assert len(Histogram()) == 0
    assert Histogram().percentile_ms(99) == 0
