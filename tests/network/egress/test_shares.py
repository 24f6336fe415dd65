"""Greedy environments get as much as each other, and leave as much for the next."""

from __future__ import annotations

import random

import pytest

from fastclaw.network.egress.shares import Pool, Share


@pytest.mark.parametrize("greedy", [1, 2, 3, 7, 31])
@pytest.mark.parametrize("units", [1, 2])
def test_each_of_those_who_want_all_gets_as_much_as_is_left(greedy: int, units: int) -> None:
    pool = Pool(320)
    shares = [Share(pool) for _ in range(greedy)]
    has_more = [True]
    while any(has_more):
        has_more = [share.take(units) for share in shares]
    fair = 320 / (greedy + 1)
    assert all(abs(share.held - fair) <= units for share in shares)
    assert pool.free >= fair - units * greedy
    assert Share(pool).take(units)


def test_one_that_came_first_gets_no_more_until_the_others_have_theirs() -> None:
    pool = Pool(12)
    first, second = Share(pool), Share(pool)
    while first.take():
        pass
    assert (first.held, pool.free) == (6, 6)
    while second.take():
        pass
    assert (second.held, pool.free) == (3, 3)
    first.give_back(1)
    assert not first.take()
    assert second.take()
    first.give_back(5)
    second.give_back(4)
    assert pool.free == 12


def test_whatever_is_taken_and_given_back_the_books_balance() -> None:
    rng = random.Random(1)
    pool = Pool(50)
    shares = [Share(pool) for _ in range(6)]
    for _ in range(5_000):
        share, units = rng.choice(shares), rng.choice((1, 2))
        if rng.random() < 0.6:
            before = share.held
            assert share.take(units) == (share.held > before)
        elif share.held >= units:
            share.give_back(units)
        assert pool.free + sum(share.held for share in shares) == 50
        assert pool.free >= 0
