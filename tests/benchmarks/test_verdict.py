"""What noise explains: budgets that correct code keeps although single rounds are far below, and slow code does not."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from bench.verdict import LOOKS, judge

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 2_000
BUDGET = 0.38


def noisy(seed: int, median: float, spread: float) -> Callable[[int], list[float]]:
    """Rounds about a median, now and then one that is far off."""
    chance = random.Random(seed)

    def one() -> float:
        value = median * chance.lognormvariate(0, spread)
        return value * chance.choice((0.2, 4)) if chance.random() < 0.1 else value

    return lambda count: [one() for _ in range(count)]


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_correct_code_is_not_failed_by_noise(spread: float) -> None:
    """Even where its median is the budget itself."""
    assert not any(judge("row", BUDGET, noisy(seed, BUDGET, spread)).missed for seed in range(SEEDS))


def test_slow_code_is_failed() -> None:
    """A third slower than the budget, under noise of a fifth."""
    missed = sum(judge("row", BUDGET, noisy(seed, BUDGET * 0.66, 0.2)).missed for seed in range(SEEDS))
    assert missed > 0.98 * SEEDS


def test_is_asked_again_before_it_fails() -> None:
    """The first look came while something else had the machine: it does not count."""
    looks = itertools.chain([[0.1] * LOOKS[0][0]], itertools.repeat([0.5] * LOOKS[1][0]))
    verdict = judge("row", BUDGET, lambda count: next(looks))
    assert not verdict.missed
    assert len(verdict.values) == LOOKS[1][0]


def test_asks_once_where_nothing_is_wrong() -> None:
    verdict = judge("row", BUDGET, lambda count: [0.5] * count)
    assert len(verdict.values) == LOOKS[0][0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "ok     row: 0.5 (0.5 to 0.5), budget 0.38: n 16"),
        (0.3, "FAILED row: 0.3 (0.3 to 0.3), budget 0.38: below in 32 of 32 pairs, p 2.3e-10, twice"),
    ],
)
def test_what_is_said(value: float, text: str) -> None:
    assert str(judge("row", BUDGET, lambda count: [value] * count)) == text


@pytest.mark.parametrize(("below", "missed"), [(11, False), (12, True)])
def test_how_many_are_enough_at_the_first_look(below: int, missed: bool) -> None:
    looks = iter([[0.1] * below + [0.5] * (16 - below), [0.1] * 32])
    assert judge("row", BUDGET, lambda count: next(looks)).missed == missed
