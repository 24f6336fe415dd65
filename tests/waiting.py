"""Waiting for what sends a test no event: one deadline, and a failure that quotes what was awaited. And not waiting."""

import asyncio
import inspect
import itertools
import selectors
import time
from collections.abc import Callable

DEADLINE_S = 30.0
"""Far more than anything here takes on a busy machine, and less than a test may take."""

_LOOK_S = 0.002
_EAGER_LOOKS = 50
"""So many looks are a turn of the loop apart: most of what is awaited is due, and some states last for a turn only."""


async def until(holds: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """Return once `holds()`, awaited if need be, is true; AssertionError after so many seconds. The loop goes on."""
    end = time.monotonic() + seconds
    for look in itertools.count():
        held = holds()
        if inspect.isawaitable(held):
            held = await asyncio.wait_for(held, max(end - time.monotonic(), 0))
        if held:
            return
        _check(end, holds, seconds)
        await asyncio.sleep(0 if look < _EAGER_LOOKS else _LOOK_S)


def wait_until(holds: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """`until` where no loop runs."""
    end = time.monotonic() + seconds
    while not holds():
        _check(end, holds, seconds)
        time.sleep(_LOOK_S)


async def turns(count: int = 20) -> None:
    """Let the loop run so many times: what is due has happened then."""
    for _ in range(count):
        await asyncio.sleep(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own, which stands still and jumps to the next timer when nothing else is due.

    For tests of timing alone: they sleep for no time, and a busy machine makes no timer late. Other processes and
    threads do not know this clock.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds."""
        return self._jumping.now


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if timeout and not ready:
            self.now += timeout
        return ready


def _check(end: float, holds: Callable[[], object], seconds: float) -> None:
    assert time.monotonic() < end, f"not within {seconds} s: {_words(holds)}"


def _words(holds: Callable[[], object]) -> str:
    try:
        return inspect.getsource(holds).strip()
    except (OSError, TypeError):  # no function of a file, but a bound method of the library, or so
        return repr(holds)
