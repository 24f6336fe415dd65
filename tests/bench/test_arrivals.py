"""Arrivals of an open loop: as many as were asked for, at random, and the same for the same seed."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from fastclaw.bench.arrivals import poisson


def taken(rate: float, count: int, seed: int = 1) -> list[int]:
    return list(itertools.islice(poisson(rate, random.Random(seed).random), count))


@pytest.mark.parametrize("rate", [0.5, 100, 50_000])
def test_the_gaps_are_those_of_a_poisson_process(rate: float) -> None:
    moments = taken(rate, 20_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise([0, *moments])]
    mean = statistics.fmean(gaps) * rate / 1e9
    assert 0.97 < mean < 1.03
    assert 0.95 < statistics.pstdev(gaps) * rate / 1e9 < 1.05  # as the mean, which is the exponential distribution's
    shorter = sum(gap * rate / 1e9 < 1 for gap in gaps) / len(gaps)
    assert abs(shorter - (1 - math.exp(-1))) < 0.02


def test_moments_never_go_back() -> None:
    moments = taken(1_000_000, 10_000)
    assert moments == sorted(moments)


def test_a_seed_gives_the_same_again() -> None:
    assert taken(100, 50, seed=7) == taken(100, 50, seed=7) != taken(100, 50, seed=8)


def test_the_least_that_can_be_drawn_is_a_moment_too() -> None:
    assert list(itertools.islice(poisson(1.0, lambda: 0.0), 2)) == [0, 0]
