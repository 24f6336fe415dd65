"""Where the streams of the next process are held: in this process, or by which relay worker.

Counts in, places out. This process first, since nothing is faster; then workers in the order in which they came, so
that as few as possible are needed, and the next one is asked for before the last is full.
"""

from __future__ import annotations

from fastclaw import limits

HERE = -1
"""This process."""


class Placement:
    """Parameters:
    here: how many processes' streams this process may hold.
    each: how many a worker may.
    workers: how many workers there may be.
    """

    def __init__(self, here: int, each: int, workers: int) -> None:
        self._here, self._each, self._most = here, each, workers
        self._held: dict[int, int] = {HERE: 0}
        self._next_number = 0

    def _room(self, place: int) -> int:
        return (self._here if place == HERE else self._each) - self._held[place]

    def next_place(self) -> int | None:
        """`HERE`, a worker's number, or None where everything is full."""
        if self._held[HERE] < self._here:
            return HERE
        return next((place for place in self._held if self._room(place) > 0), None)

    @property
    def wants_worker(self) -> bool:
        """Whether another worker should be started now, lest somebody has to wait for it."""
        spare = min(limits.RELAY_SPARE_PLACES, self._here // 2)
        if self._room(HERE) > spare or len(self._held) > self._most:
            return False
        return sum(self._room(place) for place in self._held) <= spare

    def add_worker(self) -> int:
        """The number of a worker that is being started."""
        number = self._next_number
        self._next_number += 1
        self._held[number] = 0
        return number

    def remove_worker(self, number: int) -> None:
        """It is gone with all that it held."""
        del self._held[number]

    def take(self, place: int) -> None:
        """Streams go there."""
        self._held[place] += 1

    def give_back(self, place: int) -> None:
        """Streams that were there were closed."""
        if place in self._held:
            self._held[place] -= 1

    def counts(self) -> dict[str, object]:
        """For `health`."""
        workers = [count for place, count in self._held.items() if place != HERE]
        return {"here": self._held[HERE], "workers": workers, "most_here": self._here, "most_each": self._each}
