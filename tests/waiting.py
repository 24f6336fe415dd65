"""Waiting for what sends a test no event: one deadline, and a failure that quotes what was awaited."""

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable

DEADLINE_S = 30.0
"""Far more than anything here takes on a busy machine, and less than a test may take."""

_LOOK_S = 0.002
_EAGER_LOOKS = 50
"""So many looks are a turn of the loop apart: most of what is awaited is due, and some states last for a turn only."""


async def until(holds: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """Return once `holds()` is true; AssertionError after so many seconds. The loop goes on meanwhile."""
    end = time.monotonic() + seconds
    for look in itertools.count():
        if holds():
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


def _check(end: float, holds: Callable[[], object], seconds: float) -> None:
    assert time.monotonic() < end, f"not within {seconds} s: {_words(holds)}"


def _words(holds: Callable[[], object]) -> str:
    try:
        return inspect.getsource(holds).strip()
    except (OSError, TypeError):  # no function of a file, but a bound method of the library, or so
        return repr(holds)
