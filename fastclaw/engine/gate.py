"""The door before something that bears only so many calls at a time: in order of arrival, as wide as its `Pace` says.

Calls that carry on what has begun go before those that begin something: with a hundred at once, the first of them are
complete when half of the time is over, and not all of them at its end.

Used where calls go to an engine, and where programs are run beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.engine.pace import Pace


class Gate:
    """Lets calls through, as many at a time as its pace says; the others wait in order of arrival.

    Belongs to one loop. How many wait is bounded by who calls, each of whom may end its wait at any time.

    Parameters:
        stall_s: a call that waits gives up when no other has come to an end for so long, in seconds.
    """

    def __init__(self, pace: Pace, stall_s: float) -> None:
        self._pace = pace
        self._stall_s = stall_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._carrying_on: deque[asyncio.Future[None]] = deque()
        self._in_flight = 0
        self._progress = float("-inf")
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._in_flight} of {self._pace.bound}, {self.waiting} wait>"

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiting) + len(self._carrying_on)

    def health(self) -> dict[str, Any]:
        """In flight, waiting, the bound now, calls in a second."""
        return {
            "in_flight": self._in_flight,
            "waiting": self.waiting,
            "bound": self._pace.bound,
            "per_second": round(self._pace.rate, 1),
        }

    @asynccontextmanager
    async def passing(self, kind: str) -> AsyncIterator[None]:
        """Wait for a place, and have it for the block.

        Parameters:
            kind: calls of a kind take about as long as each other.

        Raises:
            TimeoutError: as for `enter`.
        """
        place = await self.enter(kind)
        try:
            yield
        finally:
            place.leave()

    async def enter(self, kind: str, *, carries_on: bool = False) -> Place:
        """Wait for a place; who gets it leaves it.

        Parameters:
            carries_on: what it is a part of has begun; such calls have to be as many as those that begin, at the most.

        Raises:
            TimeoutError: nothing has come to an end for `stall_s`.
            RuntimeError: the gate is closed.
        """
        if self._closed:
            raise RuntimeError("the gate is closed")
        loop = asyncio.get_running_loop()
        if self.waiting or self._in_flight >= self._pace.bound:
            await self._turn(loop, self._carrying_on if carries_on else self._waiting)
        else:
            self._in_flight += 1
        return Place(self, kind, loop.time())

    def close(self) -> None:
        """Turn away who waits and who still comes. Idempotent."""
        self._closed = True
        for queue in (self._carrying_on, self._waiting):
            while queue:
                queue.popleft().cancel()

    async def _turn(self, loop: asyncio.AbstractEventLoop, queue: deque[asyncio.Future[None]]) -> None:
        turn = loop.create_future()
        queue.append(turn)
        came = loop.time()
        try:
            while not turn.done():
                left = max(came, self._progress) + self._stall_s - loop.time()
                if left <= 0:
                    raise TimeoutError(f"nothing has come to an end for {self._stall_s:g} s")
                await asyncio.wait((turn,), timeout=left)
        except BaseException:
            if turn in queue:
                queue.remove(turn)
            elif not turn.cancelled():
                self._in_flight -= 1
                self._let_in()
            raise
        if turn.cancelled():
            raise RuntimeError("the gate was closed")

    def _left(self, place: Place, *, done: bool) -> None:
        now = asyncio.get_running_loop().time()
        self._in_flight -= 1
        if done:
            self._progress = now
            self._pace.finished(place.kind, place.began, now)
        self._let_in()

    def _let_in(self) -> None:
        while self.waiting and self._in_flight < self._pace.bound:
            self._in_flight += 1
            (self._carrying_on or self._waiting).popleft().set_result(None)
        if self._in_flight < self._pace.bound:
            self._pace.idle()


class Place:
    """One call's place behind a gate.

    Attributes:
        kind: of the call.
        began: when it got it, in the loop's clock.
    """

    __slots__ = ("_gate", "_is_left", "began", "kind")

    def __init__(self, gate: Gate, kind: str, began: float) -> None:
        self._gate, self.kind, self.began = gate, kind, began
        self._is_left = False

    def leave(self, *, done: bool = True) -> None:
        """It has ended. Idempotent.

        Parameters:
            done: it came to an end by itself, however that was; False: it was given up.
        """
        if not self._is_left:
            self._is_left = True
            self._gate._left(self, done=done)
