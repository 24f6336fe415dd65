"""Streams are held here first; then by workers, each asked for before it is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.decisions.placement import HERE, Placement


def fill(placement: Placement, count: int) -> list[int]:
    """Where so many streams go, workers being added as soon as they are wanted."""
    places = []
    for _ in range(count):
        if placement.wants_worker:
            placement.add_worker()
        place = placement.next_place()
        assert place is not None
        placement.take(place)
        places.append(place)
    return places


def test_here_first_then_the_workers_in_order() -> None:
    placement = Placement(here=4, each=3, workers=2)
    assert fill(placement, 10) == [HERE] * 4 + [0] * 3 + [1] * 3
    assert placement.next_place() is None
    assert not placement.wants_worker
    assert placement.counts() == {"here": 4, "workers": [3, 3], "most_here": 4, "most_each": 3}


def test_a_worker_is_wanted_before_the_last_place_is_taken() -> None:
    here = 10 * limits.RELAY_SPARE_PLACES
    placement = Placement(here=here, each=here, workers=1)
    for _ in range(here - limits.RELAY_SPARE_PLACES):
        assert not placement.wants_worker
        placement.take(HERE)
    assert placement.wants_worker
    assert placement.add_worker() == 0
    assert not placement.wants_worker


def test_places_that_are_given_back_are_taken_again() -> None:
    placement = Placement(here=1, each=2, workers=1)
    assert fill(placement, 3) == [HERE, 0, 0]
    placement.give_back(0)
    assert placement.next_place() == 0
    placement.give_back(HERE)
    assert placement.next_place() == HERE


def test_a_worker_that_is_gone_is_followed_by_one_with_another_number() -> None:
    placement = Placement(here=1, each=2, workers=1)
    assert fill(placement, 2) == [HERE, 0]
    placement.remove_worker(0)
    placement.give_back(0)  # news of what it held comes later
    assert placement.next_place() is None
    assert placement.wants_worker
    assert placement.add_worker() == 1
    assert placement.next_place() == 1


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 20), st.integers(1, 20), st.integers(0, 4))
def test_no_place_ever_holds_more_than_it_may(takes: list[bool], here: int, each: int, workers: int) -> None:
    placement, held = Placement(here, each, workers), list[int]()
    for take in takes:
        if placement.wants_worker:
            placement.add_worker()
        place = placement.next_place()
        if take and place is not None:
            placement.take(place)
            held.append(place)
        elif held:
            placement.give_back(held.pop(0))
    assert held.count(HERE) <= here
    assert all(held.count(place) <= each for place in set(held) - {HERE})
    assert len(set(held) - {HERE}) <= workers
