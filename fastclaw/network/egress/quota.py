"""How much one sandbox may take of the network: connections at a time and by the second, and bytes in all.

New connections are counted with a token bucket that holds one second's worth. It is told the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastclaw.network.egress.policy import Reason


class Quota:
    """The bounds of one sandbox and what is used of them.

    Parameters:
        max_connections: open at the same time.
        max_per_s: new ones in a second, and as many at once.
        max_bytes: both directions together, for the sandbox's whole life; None is no limit.
    """

    def __init__(self, max_connections: int, max_per_s: int, max_bytes: int | None) -> None:
        self.open = 0
        self._max_connections = max_connections
        self._max_per_s = max_per_s
        self._left = max_bytes
        self._tokens = float(max_per_s)
        self._filled_s: float | None = None

    def enter(self, now_s: float) -> Reason | None:
        """A new connection: why not, or None. Then `leave` is to be called once it has ended.

        Parameters:
            now_s: of a clock that does not go back.
        """
        self._fill(now_s)
        if self.open >= self._max_connections:
            return "too_many_connections"
        if self._tokens < 1:
            return "too_fast"
        self._tokens -= 1
        self.open += 1
        return None

    def leave(self) -> None:
        """A connection that entered has ended."""
        self.open -= 1

    def spend(self, count: int) -> bool:
        """Bytes were moved, in either direction; with 0 it only asks. False: nothing is left, move no more."""
        if self._left is None:
            return True
        self._left -= count
        return self._left > 0

    def _fill(self, now_s: float) -> None:
        passed = 0.0 if self._filled_s is None else max(0.0, now_s - self._filled_s)
        self._tokens = min(float(self._max_per_s), self._tokens + passed * self._max_per_s)
        self._filled_s = now_s
