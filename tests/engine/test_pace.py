"""A bound on calls in flight, over machines that are simulated: their best rate is known, and so is where it is."""

import random
from collections.abc import Iterable
from itertools import cycle, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import engine_limits
from fastclaw.engine.pace import Pace

WORK = {"create": 0.01, "start": 0.06, "remove": 0.02}
"""Seconds of each kind, alone on a machine."""


class Machine:
    """Cores that are shared by all calls in flight; each call more than there are cores costs a little.

    Parameters:
        cores: how many calls at a time it gains by.
        noise: by how much of itself a call's work varies.
    """

    def __init__(self, cores: float, noise: float = 0.3, seed: int = 1) -> None:
        self.cores = cores
        self.now = 0.0
        self.done = 0
        self._noise = noise
        self._random = random.Random(seed)

    def serve(self, pace: Pace, kinds: Iterable[str], seconds: float) -> float:
        """There is always somebody waiting; returns calls in a second over the second half of the time."""
        flying: list[list[float | str]] = []
        end, half = self.now + seconds, self.now + seconds / 2
        late = 0
        kind = iter(kinds)
        while self.now < end:
            while len(flying) < pace.bound:
                name = next(kind)
                work = WORK[name] * self._random.uniform(1 - self._noise, 1 + self._noise)
                flying.append([work, name, self.now])
            over = max(0.0, len(flying) - self.cores)
            speed = min(1.0, self.cores / len(flying)) / (1 + 0.005 * over)
            first = min(flying, key=lambda call: call[0])
            step = float(first[0]) / speed
            self.now += step
            for call in flying:
                call[0] = float(call[0]) - step * speed
            flying.remove(first)
            pace.finished(str(first[1]), float(first[2]), self.now)
            late += self.now > half
        return late / (seconds / 2)


def best(cores: float, work: float) -> float:
    """Calls in a second where all cores are busy and nothing is lost."""
    return cores / work


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_it_climbs_to_where_it_stops_gaining_and_no_further(cores: int, seed: int) -> None:
    pace = Pace()
    rate = Machine(cores, seed=seed).serve(pace, repeat("start"), 60)
    assert rate > 0.8 * best(cores, WORK["start"])
    assert pace.bound <= 4 * cores


def test_it_follows_a_machine_that_becomes_slower_and_faster_again() -> None:
    pace, machine = Pace(), Machine(8)
    machine.serve(pace, repeat("start"), 60)
    assert pace.bound >= 6
    machine.cores = 1
    machine.serve(pace, repeat("start"), 120)
    assert pace.bound <= 4
    machine.cores = 8
    assert machine.serve(pace, repeat("start"), 120) > 0.8 * best(8, WORK["start"])


def test_a_mix_that_becomes_cheaper_is_no_gain() -> None:
    """One core: nothing is gained by two calls at a time, whatever is asked for."""
    for seed in range(10):
        pace, machine = Pace(), Machine(1, seed=seed)
        for kind in ("start", "create", "start", "remove", "create"):
            machine.serve(pace, repeat(kind), 3)
            assert pace.bound <= 4, (seed, kind)


def test_kinds_that_come_in_turn() -> None:
    rate = Machine(4).serve(Pace(), cycle(WORK), 60)
    assert rate > 0.8 * best(4, sum(WORK.values()) / len(WORK))


def test_it_begins_low_and_is_not_moved_by_calls_that_nobody_waits_behind() -> None:
    pace = Pace()
    assert pace.bound == engine_limits.PACE_STEPS[1]
    for number in range(1_000):
        pace.finished("start", number, number + 0.5)
        pace.idle()
    assert (pace.bound, pace.rate) == (engine_limits.PACE_STEPS[1], 0.0)


def test_one_step_is_a_fixed_bound() -> None:
    pace = Pace((4,))
    assert Machine(16).serve(pace, repeat("start"), 10) > 0
    assert pace.bound == 4
    assert repr(pace) == f"<Pace 4, {pace.rate:.1f}/s>"


@given(st.lists(st.tuples(st.sampled_from(sorted(WORK)), st.floats(0, 1e3), st.floats(0, 1e3), st.booleans())))
def test_whatever_it_is_told_the_bound_is_one_of_the_steps(told: list[tuple[str, float, float, bool]]) -> None:
    pace, now = Pace(), 0.0
    for kind, pause, took, is_idle in told:
        now += pause
        pace.finished(kind, max(0.0, now - took), now)
        if is_idle:
            pace.idle()
        assert pace.bound in engine_limits.PACE_STEPS
        assert pace.rate >= 0
