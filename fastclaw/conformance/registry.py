"""Which check proves which promise. Owns the table; knows neither the runtime nor the run."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from fastclaw.conformance.promises import BY_ID
from fastclaw.conformance.rig import Rig

Check = Callable[[Rig], Awaitable[None]]


class Entry(Struct, frozen=True):
    """One check. It returns where the promise holds, and raises `Broken` or `NotOffered` where not."""

    promise_id: str
    run: Check


CHECKS: list[Entry] = []


def proves(promise_id: str) -> Callable[[Check], Check]:
    """Register a check. A promise with several checks is kept where none of them breaks."""
    assert promise_id in BY_ID, promise_id

    def register(check: Check) -> Check:
        CHECKS.append(Entry(promise_id, check))
        return check

    return register
