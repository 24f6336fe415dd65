"""How many calls may be in flight at a time: found by climbing, from how fast they are done. Told the time.

    rest ── every few windows ──> one step up or down, for a window ── it gains: go on that way
                                                                   └─ it does not: one step back, rest

A window is a number of calls that ended while others waited: without that, the rate says what was asked for and not
what can be had. Rates of two windows are compared by the same weights for each kind of call, so that a mix that
changes is not taken for a gain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastclaw import engine_limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _Window(NamedTuple):
    """What was done in some time."""

    counts: Mapping[str, int]
    seconds: float

    def rate(self, weights: Mapping[str, float]) -> float:
        """Weighted calls in a second."""
        return sum(count * weights[kind] for kind, count in self.counts.items()) / self.seconds


class Pace:
    """A bound on calls in flight that follows what it is good for.

    Parameters:
        steps: the bounds to choose from, rising. One of them: it is fixed.

    Attributes:
        rate: calls in a second, in the last window; 0 before the first.
    """

    def __init__(self, steps: Sequence[int] = engine_limits.PACE_STEPS) -> None:
        self._steps = steps
        self._at = min(1, len(steps) - 1)
        self._probe = 0
        """How the bound was moved for the window that goes on: 1 up, -1 down, 0 not."""
        self._last_way = -1
        self._rested = engine_limits.PACE_REST_WINDOWS
        self._before: _Window | None = None
        self._weights: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._began: float | None = None
        self._moved = float("-inf")
        self.rate = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bound}, {self.rate:.1f}/s>"

    @property
    def bound(self) -> int:
        """How many calls may be in flight now; 1 at the least."""
        return self._steps[self._at]

    def idle(self) -> None:
        """A place is free and no call waits for it: this window says nothing."""
        self._began = None
        self._counts.clear()

    def finished(self, kind: str, began: float, now: float) -> None:
        """A call has ended, whatever its outcome.

        Parameters:
            kind: calls of a kind take about as long as each other.
            began, now: in seconds of one clock.
        """
        took = now - began
        known = self._weights.get(kind, took)
        self._weights[kind] = known + (took - known) * engine_limits.PACE_NEWEST_PERCENT / 100
        if began < self._moved:
            return  # for a part of its time the bound was another one
        if self._began is None:
            self._began = now
            return
        self._counts[kind] = self._counts.get(kind, 0) + 1
        seconds = now - self._began
        count = sum(self._counts.values())
        enough = max(engine_limits.PACE_WINDOW_CALLS, 2 * self.bound)
        if count >= enough and seconds * 1000 >= engine_limits.PACE_WINDOW_MS:
            self.rate = count / seconds
            window = _Window(dict(self._counts), seconds)
            self._counts.clear()
            self._began = now
            self._decide(window, now)

    def _decide(self, window: _Window, now: float) -> None:
        before, self._before = self._before, window
        if self._probe and before is not None:
            percent = 100 * window.rate(self._weights) / max(before.rate(self._weights), 1e-9)
            if self._pays(percent):
                self._move(self._probe, now)
            else:
                self._before = before
                self._move(-self._probe, now)
                self._probe = 0
                self._rested = 0
            return
        self._rested += 1
        if self._rested > engine_limits.PACE_REST_WINDOWS:
            self._last_way = self._possible(-self._last_way)
            self._move(self._last_way, now)

    def _pays(self, percent: float) -> bool:
        """Whether the step was worth it: up has to gain, down need only lose next to nothing."""
        if self._probe > 0:
            return percent >= 100 + engine_limits.PACE_GAIN_PERCENT
        return percent >= 100 - engine_limits.PACE_LOSS_PERCENT

    def _possible(self, way: int) -> int:
        return way if 0 <= self._at + way < len(self._steps) else -way

    def _move(self, way: int, now: float) -> None:
        """One step; at an end of the steps it is none, and the rest begins."""
        if not 0 <= self._at + way < len(self._steps):
            self._probe, self._rested = 0, 0
            return
        self._at += way
        self._probe = way
        self._moved = now
        self._began = None
