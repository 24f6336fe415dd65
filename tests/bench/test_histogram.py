"""Latencies: percentiles beside a list that is sorted, and what stands behind each."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fastclaw.bench.histogram import PERCENTILES, Latencies

LONGEST_US = 3_600_000_000
MANY = st.lists(st.integers(0, LONGEST_US), min_size=1, max_size=300)


def of(values_us: list[int]) -> Latencies:
    latencies = Latencies()
    for value in values_us:
        latencies.record(value * 1_000)
    return latencies


@settings(deadline=None)
@given(MANY)
def test_percentiles_are_those_of_the_sorted_list_to_three_digits(values: list[int]) -> None:
    summary, ordered = of(values).summary(), sorted(values)
    assert summary.samples == len(values)
    assert summary.max_us == ordered[-1]
    for share in PERCENTILES:
        found = summary.percentiles[f"p{share:g}"]
        true = ordered[max(1, int(share / 100 * len(values) + 0.5)) - 1]
        assert true <= found.us <= true * 1.001 + 1
        assert found.behind == sum(value > found.us for value in values)


def test_nothing_measured_is_nothing_said() -> None:
    summary = Latencies().summary()
    assert (summary.samples, summary.max_us, summary.percentiles) == (0, 0, {})


def test_a_thousand_have_one_behind_their_p999() -> None:
    summary = of(list(range(1, 1_001))).summary()
    behind = {name: found.behind for name, found in summary.percentiles.items()}
    assert behind == {"p50": 500, "p90": 100, "p99": 10, "p99.9": 1}
    assert summary.mean_us == 500.5


def test_what_is_longer_than_the_longest_counts_as_that() -> None:
    assert of([LONGEST_US * 5]).summary().max_us == LONGEST_US
    assert math.isclose(of([LONGEST_US * 5]).summary().mean_us, LONGEST_US)
