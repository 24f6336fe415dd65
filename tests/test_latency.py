"""Histograms of how long stages take: never far off, whatever the size."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fastclaw import stages
from fastclaw.latency import OCTAVE_BITS, Histogram, Key, Latency, highest
from fastclaw.stages import ENVIRONMENT_STAGES, Flight

MOST_US = 10**13
"""Over a hundred days."""


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(st.integers(0, MOST_US))
def test_a_value_is_told_with_an_error_of_a_thirty_second_at_most(value: int) -> None:
    (told,) = of([value]).quantiles([1.0])
    assert value <= told <= value + value / 2**OCTAVE_BITS


@given(st.integers(0, MOST_US), st.integers(0, MOST_US))
def test_what_is_greater_is_never_told_as_less(one: int, other: int) -> None:
    (first,), (second,) = of([one]).quantiles([1.0]), of([other]).quantiles([1.0])
    assert (first <= second) == (one <= other) or first == second


@given(st.lists(st.integers(0, MOST_US), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_that_of_the_sorted_values(values: list[int], share: float) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    (told,) = of(values).quantiles([share])
    assert exact <= told <= exact + exact / 2**OCTAVE_BITS


def test_parts_follow_each_other_without_a_gap() -> None:
    histogram = of([0, 31, 32, 63, 64, 65, 66, 127, 128])
    assert [(highest(part), upto) for part, upto in histogram.cumulated()] == [
        (0, 1), (31, 2), (32, 3), (63, 4), (65, 6), (67, 7), (127, 8), (131, 9),
    ]  # fmt: skip
    assert (histogram.count, histogram.sum_us) == (9, 576)
    assert Histogram().quantiles([0.5]) == []


def test_a_stage_s_own_time_is_since_the_one_before_it_that_was_reached() -> None:
    latency = Latency()
    flight = Flight(1_000)
    flight.lane, flight.ledger = "spawn", latency
    flight.reach(stages.ADMITTED, 11_000)
    flight.merge((0, 41_000, 0, 61_000, 0))
    flight.end("exited")
    flight.reach(stages.ANSWERED, 66_000)
    flight.answer()
    flight.merge((0, 0, 0, 0, 68_000))
    counted = {key: histogram.sum_us for key, histogram in latency.histograms()}
    expected = {"admitted": 10, "started": 30, "exited": 20, "gone": 7, "answered": 5, "total": 65}
    assert counted == {Key("run", "spawn", "exited", stage): sum_us for stage, sum_us in expected.items()}


def test_an_exec_s_answer_waits_for_its_start() -> None:
    latency = Latency()
    flight = Flight(1_000)
    flight.lane, flight.ledger, flight.waits_for = "spawn", latency, stages.STARTED
    flight.merge((0, 41_000, 0, 0, 0))
    flight.reach(stages.ANSWERED, 44_000)
    flight.answer()
    assert list(latency.histograms()) == [], "how it ends is not known yet"
    flight.merge((0, 0, 0, 9_000_000, 0))
    flight.end("signaled")
    assert {key.stage: histogram.sum_us for key, histogram in latency.histograms()} == {
        "started": 40, "exited": 8_959, "answered": 3, "total": 43,
    }  # fmt: skip


def test_a_clock_that_is_behind_makes_no_negative_time() -> None:
    latency = Latency()
    flight = Flight(50_000)
    flight.ledger = latency
    flight.merge((10_000, 60_000, 0, 0, 0))
    flight.end("killed")
    assert {key.stage: histogram.sum_us for key, histogram in latency.histograms()} == {"taken": 0, "started": 10}


def test_the_summary_is_by_method_lane_outcome_and_stage() -> None:
    latency = Latency()
    for microseconds in range(1, 1001):
        flight = Flight(1_000, ENVIRONMENT_STAGES)
        flight.lane, flight.ledger = "clone", latency
        flight.reach(stages.MADE, 1_000 + 1_000 * microseconds)
        flight.end("ready")
    made = latency.summary()["environment_start"]["clone"]["ready"]["made"]
    assert made["count"] == 1000
    wanted = {"p50_us": 500, "p90_us": 900, "p99_us": 990, "p999_us": 999}
    assert all(figure <= made[name] <= figure * (1 + 1 / 2**OCTAVE_BITS) for name, figure in wanted.items())
    assert list(latency.summary()) == ["environment_start"]


def test_a_start_is_what_came_before_the_command_ran_and_only_of_those_that_did() -> None:
    latency = Latency()
    assert latency.starts() == (0, 0)
    for outcome, started, exited in (("exited", 61_000, 99_000), ("killed", 31_000, 32_000), ("not_found", 0, 0)):
        flight = Flight(1_000)
        flight.lane, flight.ledger = "spawn", latency
        flight.reach(stages.ADMITTED, 11_000)
        flight.merge((0, started, 0, exited, 0))
        flight.end(outcome)
    environment = Flight(1_000, ENVIRONMENT_STAGES)
    environment.ledger = latency
    environment.end("ready")
    assert latency.starts() == (2, 60 + 30)
