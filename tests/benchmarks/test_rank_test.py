"""The rank test against figures that are published, and against what it must be whatever is measured."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rank_test import mann_whitney, sign_test

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8)


def test_against_a_published_figure() -> None:
    """The example of scipy.stats.mannwhitneyu: years until diabetes was found in men and women, U = 17."""
    men, women = [19, 22, 16, 29, 24], [20, 11, 17, 12]
    assert mann_whitney(men, women) == pytest.approx(0.1111111111111111, rel=1e-12)


def test_with_ties() -> None:
    """As scipy 1.17 has it with its correction for continuity."""
    assert mann_whitney([1, 1, 2], [1, 2, 2]) == pytest.approx(0.6192567541768621, rel=1e-12)


def test_many_without_ties_are_as_by_the_normal_distribution() -> None:
    """As scipy 1.17 has it with method="asymptotic"."""
    left, right = [float(number) for number in range(30)], [number + 9.5 for number in range(30)]
    assert mann_whitney(left, right) == pytest.approx(0.0003988101938466105, rel=1e-12)


def test_counts_every_order() -> None:
    """All ways to put three and four values in order, by hand."""
    orders = list(itertools.combinations(range(7), 3))
    for left in orders:
        right = [rank for rank in range(7) if rank not in left]
        wins = [sum(one > other for one in some for other in set(range(7)) - set(some)) for some in orders]
        mine = sum(one > other for one in left for other in right)
        high = max(mine, 12 - mine)
        expected = min(1.0, sum(won >= high or won <= 12 - high for won in wins) / len(orders))
        assert mann_whitney(left, right) == pytest.approx(expected, rel=1e-12)


@given(VALUES, VALUES)
def test_is_a_probability_and_the_same_both_ways(left: list[float], right: list[float]) -> None:
    p = mann_whitney(left, right)
    assert 0 < p <= 1
    assert p == pytest.approx(mann_whitney(right, left))


def test_equal_values_tell_nothing() -> None:
    assert mann_whitney([2.0] * 9, [2.0] * 9) == 1


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        mann_whitney([], [1])


@pytest.mark.parametrize(("below", "count", "p"), [(10, 10, 1 / 1024), (0, 10, 1.0), (9, 10, 11 / 1024)])
def test_sign_test(below: int, count: int, p: float) -> None:
    assert sign_test(below, count) == p
