"""When a container is followed by a fresh one."""

import itertools

import pytest

from fastclaw import limits
from fastclaw.linux.restart import Rotation, revival_delay_s


def test_a_fresh_one_is_neither_worn_nor_in_use() -> None:
    rotation = Rotation()
    assert (rotation.is_worn, rotation.is_drained) == (False, True)


def test_use_wears_it_and_giving_back_does_not_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXECS_PER_CONTAINER", 3)
    rotation = Rotation()
    for turn in range(1, 4):
        rotation.take()
        assert (rotation.is_worn, rotation.is_drained) == (turn == 3, False)
        rotation.give_back()
    assert (rotation.is_worn, rotation.is_drained) == (True, True)


def test_it_is_drained_when_the_last_one_is_over() -> None:
    rotation = Rotation()
    rotation.take()
    rotation.take()
    rotation.give_back()
    assert not rotation.is_drained
    rotation.give_back()
    assert rotation.is_drained


def test_pauses_double_up_to_the_longest() -> None:
    delays = [revival_delay_s(failures) for failures in range(12)]
    assert delays[0] == limits.REVIVE_FIRST_MS / 1000
    assert all(later in (2 * one, limits.REVIVE_LAST_MS / 1000) for one, later in itertools.pairwise(delays))
    assert delays[-1] == limits.REVIVE_LAST_MS / 1000
    assert revival_delay_s(10**9) == limits.REVIVE_LAST_MS / 1000
