"""How much a sandbox may take: connections, their rate, bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.network.egress.quota import Quota


def test_no_more_connections_than_may_be_open() -> None:
    quota = Quota(2, 1_000, None)
    assert [quota.enter(0), quota.enter(0), quota.enter(0)] == [None, None, "too_many_connections"]
    assert quota.open == 2
    quota.leave()
    assert quota.open == 1
    assert quota.enter(0) is None


def test_a_burst_of_one_seconds_worth_then_the_rate() -> None:
    quota = Quota(1_000, 4, None)
    assert [quota.enter(10.0) for _ in range(5)] == [None] * 4 + ["too_fast"]
    assert quota.enter(10.25) is None
    assert quota.enter(10.25) == "too_fast"
    assert [quota.enter(60.0) for _ in range(5)] == [None] * 4 + ["too_fast"]


def test_one_that_is_turned_away_costs_nothing() -> None:
    quota = Quota(1, 2, None)
    assert quota.enter(0) is None
    assert {quota.enter(0) for _ in range(10)} == {"too_many_connections"}
    assert quota.open == 1
    quota.leave()
    assert quota.enter(0) is None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    quota = Quota(100, 1, None)
    assert quota.enter(100.0) is None
    assert quota.enter(50.0) == "too_fast"
    assert quota.enter(50.9) == "too_fast"


@pytest.mark.parametrize(
    ("max_bytes", "moved", "told"),
    [
        (None, [10**18, 0], [True, True]),
        (10, [0, 9, 0, 1, 0], [True, True, True, False, False]),
        (10, [100, 1], [False, False]),
        (0, [0], [False]),
    ],
)
def test_bytes_until_they_are_used_up(max_bytes: int | None, moved: list[int], told: list[bool]) -> None:
    quota = Quota(1, 1, max_bytes)
    assert [quota.spend(count) for count in moved] == told


events = st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=60)


@given(events, st.integers(1, 5), st.integers(1, 8))
def test_whatever_happens_the_bounds_hold(events: list[tuple[float, bool]], most: int, rate: int) -> None:
    quota = Quota(most, rate, None)
    now_s, entered = 0.0, []
    for pause_s, comes in events:
        now_s += pause_s
        if comes and quota.enter(now_s) is None:
            entered.append(now_s)
        elif not comes and quota.open:
            quota.leave()
        assert 0 <= quota.open <= most
    for start in entered:
        # What the bucket holds, and what runs into it meanwhile; 1 for rounding.
        assert sum(start <= moment <= start + 1 for moment in entered) <= 2 * rate + 1
