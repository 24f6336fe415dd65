"""How long it takes until what ended is started again."""

import itertools

from fastclaw import limits
from fastclaw.linux.helper import Backoff, pause_s

FIRST_S, LAST_S, PROVEN_S = (
    number / 1000 for number in (limits.REVIVE_FIRST_MS, limits.REVIVE_LAST_MS, limits.REVIVE_PROVEN_MS)
)


class Life:
    """Something that is started, lives for a while and ends, on a clock of its own."""

    def __init__(self, forgiven: int = 0) -> None:
        self._now = 0.0
        self.backoff = Backoff(lambda: self._now, forgiven)

    def lives(self, seconds: float) -> float:
        """The pause after it."""
        self.backoff.came_up()
        self._now += seconds
        self.backoff.ended()
        return self.backoff.pause_s


def test_pauses_double_up_to_the_longest() -> None:
    delays = [pause_s(failures) for failures in range(12)]
    assert delays[0] == FIRST_S
    assert all(later in (2 * one, LAST_S) for one, later in itertools.pairwise(delays))
    assert delays[-1] == LAST_S
    assert pause_s(10**9) == LAST_S


def test_what_comes_up_and_dies_is_started_later_and_later() -> None:
    """A spawner that came up and died at once was started every 100 ms for ever."""
    life = Life()
    assert [life.lives(0.1) for _ in range(3)] == [2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert [life.lives(PROVEN_S - 0.1) for _ in range(20)][-1] == LAST_S


def test_what_was_up_for_long_is_started_soon() -> None:
    life = Life()
    assert [life.lives(seconds) for seconds in (0, 0, PROVEN_S, 0)] == [2 * FIRST_S, 4 * FIRST_S, FIRST_S, 2 * FIRST_S]


def test_the_first_failures_may_be_forgiven() -> None:
    life = Life(forgiven=1)
    assert [life.lives(0) for _ in range(3)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]


def test_a_successor_that_fails_is_a_failure_whatever_was_up_before() -> None:
    life = Life()
    life.lives(PROVEN_S)
    life.backoff.failed()
    life.backoff.ended()  # it never was up again
    assert life.backoff.failures == 2


def test_a_failed_successor_takes_nothing_from_what_is_still_up() -> None:
    life = Life()
    life.backoff.came_up()
    life.backoff.failed()
    assert life.lives(PROVEN_S) == FIRST_S
