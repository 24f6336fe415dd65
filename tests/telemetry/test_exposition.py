"""Buckets of Prometheus out of our histograms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.latency import OCTAVE_BITS, Histogram
from fastclaw.telemetry.exposition import BOUNDS_US, buckets

durations = st.lists(st.integers(0, 10**9), max_size=50)


@given(durations, durations)
def test_each_bucket_has_what_is_surely_below_its_bound_and_nothing_above(one: list[int], other: list[int]) -> None:
    histograms = [Histogram(), Histogram()]
    for histogram, values in zip(histograms, [one, other], strict=True):
        for value in values:
            histogram.add(value)
    told = buckets(histograms)
    last, of_all = told[-1]
    assert (last, int(of_all)) == ("+Inf", len(one) + len(other))
    for (name, upto), bound in zip(told[:-1], BOUNDS_US, strict=True):
        assert float(name) == bound / 1e6
        surely = sum(value * (1 + 1 / 2**OCTAVE_BITS) <= bound for value in [*one, *other])
        assert surely <= upto <= sum(value <= bound for value in [*one, *other])
